"""TRL's GRPOTrainer, fed with materialised sequences instead of prompts.

What is overridden: where inputs come from (`_prepare_inputs`, the data loader), how token log-probabilities are
computed (`_get_per_token_logps_and_entropies`: packed, scored only where trained), and how metrics leave. The loss
itself, clipping, KL, optimizer, clipping of the gradient and the loop over steps stay TRL's and transformers'.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from trl import GRPOConfig, GRPOTrainer

from lightning_core.config import PolicySettings
from lightning_core.training.errors import TrainingError
from lightning_core.training.plan import MicroBatch, Step, line_up
from lightning_core.training.scoring import score

logger = logging.getLogger(__name__)

# The loss types whose sums `plan` has turned into weights; TRL gets the reduction that sums and divides.
_REDUCTION = "dapo"
# Our names of TRL's metrics, of which it keeps one value a micro-batch.
_METRICS = {"kl": "kl", "entropy": "entropy", "clip_ratio": "clip_ratio/region_mean"}


class SequenceTrainer(GRPOTrainer):
    """Trains `model` on planned steps, one optimizer step each.

    `reference`: log-probabilities of the KL's reference, one `(B, T)` a micro-batch in order; needed where beta > 0.
    `on_step` gets a dict of metrics after each optimizer step. Raises TrainingError where loss or gradient stop
    being finite; nothing has been saved then.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        steps: list[Step],
        policy: PolicySettings,
        *,
        scratch: Path,
        seed: int,
        on_step: Callable[[dict[str, Any]], None] = lambda metrics: None,
        optimizer_state: dict[str, Any] | None = None,
        peft_config: Any = None,
    ) -> None:
        settings = policy.training
        self.planned = steps
        self.reference: list[torch.Tensor] | None = None
        self.on_step = on_step
        # More than one step an epoch: from the second on, the weights are no longer those that sampled.
        self.use_sampling_logps = settings.steps_per_epoch > 1
        self._optimizer_state = optimizer_state
        self._queue = line_up(steps)
        width = len(self._queue) // len(steps)
        self._current: Any = None
        self._trained: list[float] = []  # weight of each micro-batch of this step in the metrics
        self._mismatch: list[float] = []
        self._step_began = time.perf_counter()
        super().__init__(
            model=model,
            reward_funcs=_no_reward,
            args=_arguments(policy, len(steps), width, scratch, seed),
            train_dataset=Dataset.from_dict({"prompt": [str(i) for i in range(len(self._queue))]}),
            processing_class=tokenizer,
            peft_config=peft_config,
        )
        # Set after TRL's own set-up, which for beta > 0 would load a second copy of the newest weights as reference.
        self.beta = settings.beta

    def get_train_dataloader(self) -> Any:
        """The planned micro-batches in order, by number: TRL's sampler would shuffle and repeat them."""
        return DataLoader(range(len(self._queue)), batch_size=1, collate_fn=lambda numbers: {"number": numbers[0]})

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any) -> torch.Tensor:
        if inputs["number"] % self.args.gradient_accumulation_steps == 0:
            self._step_began = time.perf_counter()
        if self._queue[inputs["number"]][1] is None:
            self._step += 1
            return torch.zeros((), device=self.args.device)
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            raise TrainingError(
                f"step {self.state.global_step}: the loss is {loss.item()}; lower `training.learning_rate`, or look at "
                "the advantages and logprobs of this epoch's sequences"
            )
        return loss

    def _prepare_inputs(self, generation_batch: dict[str, Any]) -> dict[str, Any]:
        number = generation_batch["number"]
        step, batch = self._queue[number]
        assert batch is not None
        inputs = materialise(batch, step.normalizer, self.use_sampling_logps)
        layout = inputs.pop("layout").to(self.args.device)
        inputs = self._prepare_input(inputs)
        if self.beta != 0.0:
            if self.reference is None:
                raise TrainingError("beta > 0 needs `reference` log-probabilities")
            inputs["ref_per_token_logps"] = self.reference[number].to(self.args.device)
        self._current = layout, inputs["sampled_logps"], inputs["tool_mask"]
        return inputs

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Any, attention_mask: Any, logits_to_keep: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        layout, sampled, mask = self._current
        with self.accelerator.autocast():
            logps, entropies = score(model, self.accelerator.unwrap_model(model), layout)
        weight = float(mask.sum())
        self._trained.append(weight)
        difference = ((logps.detach() - sampled).abs() * mask).sum()
        self._mismatch.append(float(difference) / weight if weight else math.nan)
        return logps, entropies, None

    def score_all(self) -> list[torch.Tensor]:
        """Log-probabilities by the weights as they are, for `reference`: one `(B, T)` a micro-batch, no gradients."""
        return score_queue(self.model, [batch for _, batch in self._queue], self.args.device)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        optimizer = super().create_optimizer(*args, **kwargs)
        if self._optimizer_state is not None:
            optimizer.load_state_dict(self._optimizer_state)
            # A setting of today wins over the one that was saved with the moments.
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] = self.args.learning_rate
            self._optimizer_state = None
        return optimizer

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        return 0  # transformers would look for input ids in what the loader yields

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Called once an optimizer step (and once at the end, with what is ignored here)."""
        measured = {
            "mismatch": self._mismatch,
            **{name: self._metrics["train"].get(key) for name, key in _METRICS.items()},
        }
        metrics = {name: _mean(values, self._trained) if values else None for name, values in measured.items()}
        self._metrics["train"].clear()
        self._trained, self._mismatch = [], []
        if "grad_norm" not in logs:
            return
        grad_norm = float(logs["grad_norm"])
        if not math.isfinite(grad_norm):
            raise TrainingError(
                f"step {self.state.global_step - 1}: the gradient's norm is {grad_norm}; lower `training.learning_rate`"
            )
        step = self.planned[self.state.global_step - 1]
        self.on_step(
            {
                "step": self.state.global_step,
                "steps": len(self.planned),
                "loss": float(logs["loss"]),
                "grad_norm": grad_norm,
                **{name: metrics[name] for name in ("kl", "entropy", "clip_ratio", "mismatch")},
                "tokens": step.tokens,
                "unique_tokens": step.unique_tokens,
                "trained_tokens": step.trained_tokens,
                "seconds": round(time.perf_counter() - self._step_began, 4),
            }
        )


def materialise(batch: MicroBatch, normalizer: float, use_sampling_logps: bool) -> dict[str, Any]:
    """TRL's inputs of one micro-batch: `B` sequences, prompts padded left to `P`, the rest padded right to `T`.

    `tool_mask` (B, T) carries the weights of the trained tokens, 0 elsewhere; `layout` is what is computed.
    """
    sequences = batch.sequences
    prompt = max(s.prompt_length for s in sequences)
    rest = max(len(s) - s.prompt_length for s in sequences)
    b = len(sequences)
    ids = {"prompt_ids": np.zeros((b, prompt), np.int64), "prompt_mask": np.zeros((b, prompt), np.int64)}
    ids |= {"completion_ids": np.zeros((b, rest), np.int64), "completion_mask": np.zeros((b, rest), np.int64)}
    floats = {name: np.zeros((b, rest), np.float32) for name in ("tool_mask", "advantages", "sampled_logps")}
    for row, (sequence, weight) in enumerate(zip(sequences, batch.weights, strict=True)):
        p, n = sequence.prompt_length, len(sequence) - sequence.prompt_length
        ids["prompt_ids"][row, prompt - p :] = sequence.token_ids[:p]
        ids["prompt_mask"][row, prompt - p :] = 1
        ids["completion_ids"][row, :n] = sequence.token_ids[p:]
        ids["completion_mask"][row, :n] = 1
        trained = sequence.loss_mask[p:]
        floats["tool_mask"][row, :n] = np.where(trained, weight, 0.0)
        floats["advantages"][row, :n] = np.where(trained, sequence.advantages[p:], 0.0)
        floats["sampled_logps"][row, :n] = np.where(trained, sequence.logprobs[p:], 0.0)
    inputs: dict[str, Any] = {name: torch.from_numpy(array) for name, array in (ids | floats).items()}
    inputs["num_items_in_batch"] = torch.tensor(normalizer)
    inputs["layout"] = batch.layout()
    if use_sampling_logps:
        inputs["old_per_token_logps"] = inputs["sampled_logps"]
    return inputs


def score_queue(model: Any, batches: list[MicroBatch | None], device: torch.device) -> list[torch.Tensor]:
    """Log-probabilities of micro-batches, one `(B, T)` each on the CPU (empty for None). Leaves the mode as it was."""
    was_training = model.training
    model.eval()
    with torch.no_grad():
        scores = [
            torch.empty(0) if batch is None else score(model, model, batch.layout().to(device))[0].cpu()
            for batch in batches
        ]
    model.train(was_training)
    return scores


def _no_reward(**_: Any) -> list[float]:
    """TRL wants a source of rewards; advantages come with the sequences, so nothing may ask for one."""
    raise AssertionError("TRL asked for rewards: its training loop no longer goes through `_prepare_inputs`")


def _mean(values: list[float], weights: list[float]) -> float | None:
    """Weighted mean of the micro-batches' values; those that hold nothing are NaN with weight 0."""
    pairs = [(v, w) for v, w in zip(values, weights, strict=True) if w > 0 and math.isfinite(v)]
    total = sum(w for _, w in pairs)
    return sum(v * w for v, w in pairs) / total if total else None


def _arguments(policy: PolicySettings, steps: int, width: int, scratch: Path, seed: int) -> GRPOConfig:
    settings = policy.training
    return GRPOConfig(
        output_dir=str(scratch),
        seed=seed,
        max_steps=steps,
        gradient_accumulation_steps=width,
        # TRL checks these against each other; what is really in a micro-batch is the plan's decision.
        per_device_train_batch_size=2,
        num_generations=2,
        loss_type=_REDUCTION,
        beta=0.0,
        epsilon=settings.epsilon,
        epsilon_high=settings.epsilon_high,
        temperature=policy.sampling.temperature,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant",
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        optim="adamw_torch_fused",
        bf16=settings.bf16,
        gradient_checkpointing=settings.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if settings.gradient_checkpointing else None,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        # Not said outright, several processes on CPUs would each train alone.
        use_cpu=not torch.accelerator.is_available(),
        dataloader_pin_memory=False,
    )
