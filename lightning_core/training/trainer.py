"""TRL's GRPOTrainer, fed with materialised sequences instead of prompts.

What is overridden: where inputs come from (`_prepare_inputs`, the data loader), how token log-probabilities are
computed (`_get_per_token_logps_and_entropies`: packed, scored only where trained), what the loss is divided by (the
weights of `plan`), and how metrics leave. Each loss, its clipping and its KL, the optimizer, the clipping of the
gradient and the loop over steps stay TRL's and transformers'.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from trl import GRPOTrainer

from lightning_core.config import PolicySettings
from lightning_core.training.arguments import arguments
from lightning_core.training.correction import from_all_ranks
from lightning_core.training.course import Course
from lightning_core.training.errors import TrainingError
from lightning_core.training.inputs import Start, materialise
from lightning_core.training.plan import MicroBatch, Step, line_up
from lightning_core.training.schedule import EntropyBonus
from lightning_core.training.scoring import score
from lightning_core.training.stepping import Stepping

logger = logging.getLogger(__name__)

_MOST_NATS = 20.0  # by which a token can be more likely in what is told: e^20, before numbers overflow
# What is summed over a step's trained tokens: the metrics that are not TRL's.
_SUMS = ("tokens", "entropy", "mismatch", "mismatch_kl", "kl", "ratio", "sampled", "informative_entropy")


class SequenceTrainer(Stepping, GRPOTrainer):
    """Trains `model` on planned steps, one optimizer step each, as `course` says.

    `starts`: what `start.py` found out of each micro-batch before the first step; `informative`: tokens of high entropy
    of each step, by its id. Raises TrainingError where loss or gradient stop being finite; nothing has been saved then.
    """

    current_gradient_accumulation_steps: float  # of transformers' Trainer; TRL divides by it

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        steps: list[Step],
        policy: PolicySettings,
        *,
        scratch: Path,
        course: Course,
        peft_config: Any = None,
    ) -> None:
        settings = policy.training
        self.planned = steps
        self.course = course
        self.starts: list[Start] | None = None
        self.informative: dict[int, int] = {}
        self.bonus: EntropyBonus = EntropyBonus(settings, settings.entropy_coef)
        self.settings = settings
        # More than one step an epoch: from the second on, the weights are no longer those that sampled.
        self.use_sampling_logps = settings.steps_per_epoch > 1
        self._queue = line_up(steps, course.first)
        left = len(steps) - course.first
        self._current: Any = None
        self._sums = dict.fromkeys(_SUMS, 0.0)
        self._weights: list[float] = []  # of each micro-batch of this step, in TRL's metrics
        super().__init__(
            model=model,
            reward_funcs=_no_reward,
            args=arguments(policy, left, len(self._queue) // left, scratch, course.seed),
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
        step, at = divmod(inputs["number"], self.args.gradient_accumulation_steps)
        if at == 0:
            self.begin_step(self.course.first + step)
        if self._queue[inputs["number"]][1] is None:
            self._step += 1
            return torch.zeros((), device=self.args.device)
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            raise TrainingError(
                f"step {self.done}: the loss is {loss.item()}; lower "
                "`training.learning_rate`, or look at the advantages and logprobs of this epoch's sequences"
            )
        if self.course.first + step == 0 and at == self.args.gradient_accumulation_steps - 1:  # no rank's is None
            shares = from_all_ranks((self._sums["sampled"], self._sums["tokens"]))
            sampled, tokens = (sum(of_ranks) for of_ranks in zip(*shares, strict=True))
            self.check_mismatch(sampled / tokens)
        return loss

    def _prepare_inputs(self, generation_batch: dict[str, Any]) -> dict[str, Any]:
        number = generation_batch["number"]
        step, batch = self._queue[number]
        assert batch is not None
        start = self.starts[number] if self.starts else Start()
        if self.beta != 0.0 and start.reference is None:
            raise TrainingError("beta > 0 needs `reference` log-probabilities")
        inputs = materialise(batch, step.normalizer, self.use_sampling_logps, start)
        layout = inputs.pop("layout").to(self.args.device)
        inputs = self._prepare_input(inputs)
        if "importance_sampling_ratio" in inputs and self.loss_type != "vespo":
            # TRL multiplies the token losses, which grow with the advantages alone; `vespo` wants the ratio itself.
            inputs["advantages"] = inputs["advantages"] * inputs.pop("importance_sampling_ratio")
        self._current = layout, step, inputs
        return inputs

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Any, attention_mask: Any, logits_to_keep: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        layout, step, inputs = self._current
        with self.accelerator.autocast():
            logps, entropies = score(model, self.accelerator.unwrap_model(model), layout)
        self._current = layout, step, inputs | {"entropies": entropies}
        self._measure(logps.detach(), entropies.detach(), inputs)
        return logps, entropies, None

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        width, ranks = self.current_gradient_accumulation_steps, self.accelerator.num_processes
        if self.loss_type == "sapo":
            # Its mean over the rows of a micro-batch becomes their weighted sum, divided by the step's normalizer.
            rows = inputs["prompt_ids"].shape[0]
            self.current_gradient_accumulation_steps = float(inputs["num_items_in_batch"]) / (rows * ranks)
        # For metrics that are not told, TRL gathers a value a row, and ranks have different numbers of rows.
        self.accelerator.gather = lambda tensor: tensor
        try:
            loss = super()._compute_loss(model, inputs)
        finally:
            self.current_gradient_accumulation_steps = width
            del self.accelerator.gather
        if self.bonus.weight:
            _, step, inputs = self._current
            count = self.informative.get(id(step), step.trained_tokens)
            total = (inputs["entropies"] * _rewarded(inputs)).sum()
            loss = loss - self.bonus.weight * total * ranks / count
        return loss

    def get_high_entropy_mask(self, entropies: Any, mask: Any, threshold: float) -> torch.Tensor:
        """TRL takes the quantile of a micro-batch; it was taken of the whole step."""
        informative: torch.Tensor = self._current[2]["informative"]
        return informative

    @staticmethod
    def get_off_policy_mask(*args: Any, mask: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """TRL's, with weights as the mask they are made from."""
        return GRPOTrainer.get_off_policy_mask(*args, mask=(mask > 0).float(), **kwargs)

    @staticmethod
    def get_gamma_weights(*args: Any, mask: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """TRL's, with weights as the mask they are made from."""
        return GRPOTrainer.get_gamma_weights(*args, mask=(mask > 0).float(), **kwargs)

    def _measure(self, logps: torch.Tensor, entropies: torch.Tensor, inputs: dict[str, Any]) -> None:
        weights = inputs["tool_mask"]
        trained = (weights > 0).float()
        self._weights.append(float(weights.sum()))
        difference = (logps - inputs["sampling_per_token_logps"]) * trained
        measured = {
            "tokens": trained,
            "entropy": entropies * trained,
            "mismatch": difference.abs(),
            "sampled": -difference,
            # http://joschu.net/blog/kl-approx.html, k3: never negative, and of little variance
            "mismatch_kl": torch.expm1(difference.clamp(max=_MOST_NATS)) - difference,
            "ratio": torch.exp(difference.clamp(max=_MOST_NATS)) * trained,
            "informative_entropy": entropies * _rewarded(inputs),
        }
        if self.beta:
            to_reference = (inputs["ref_per_token_logps"] - logps) * trained
            measured["kl"] = torch.expm1(to_reference.clamp(max=_MOST_NATS)) - to_reference
        for name, values in measured.items():
            self._sums[name] += float(values.sum())

    def score_all(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Log-probabilities and entropies by the weights as they are, a micro-batch each, without gradients."""
        with self.accelerator.autocast():  # as in training, or what differs would count as a ratio
            return score_queue(self.model, [batch for _, batch in self._queue], self.args.device)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        return 0  # transformers would look for input ids in what the loader yields

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Called once an optimizer step (and once at the end, with what is ignored here)."""
        shares = from_all_ranks((self._sums, self._weights))
        sums = {name: sum(share[name] for share, _ in shares) for name in _SUMS}
        weights = [sum(of_ranks) for of_ranks in zip(*(share for _, share in shares), strict=True)]
        clipped = self._metrics["train"].get("clip_ratio/region_mean") or self._metrics["train"].get("cispo_clip_ratio")
        clip_ratio = _mean(clipped, weights) if clipped else None
        self._metrics["train"].clear()
        self._sums, self._weights = dict.fromkeys(_SUMS, 0.0), []
        if "grad_norm" not in logs:
            return
        done = self.done
        grad_norm = float(logs["grad_norm"])
        if not math.isfinite(grad_norm):
            raise TrainingError(f"step {done - 1}: the gradient's norm is {grad_norm}; lower `training.learning_rate`")
        step = self.planned[done - 1]
        tokens = max(sums["tokens"], 1.0)
        self.course.on_step(
            self,
            self.told(done - 1, len(self.planned))
            | {
                "loss": float(logs["loss"]),
                "grad_norm": grad_norm,
                "kl": sums["kl"] / tokens if self.beta else None,
                "entropy": sums["entropy"] / tokens,
                "entropy_coef": self.bonus.coef,
                "clip_ratio": clip_ratio,
                "ratio": sums["ratio"] / tokens,
                "mismatch": sums["mismatch"] / tokens,
                "mismatch_kl": sums["mismatch_kl"] / tokens,
                "tokens": step.tokens,
                "unique_tokens": step.unique_tokens,
                "trained_tokens": step.trained_tokens,
            },
        )
        self.bonus.update(sums["informative_entropy"] / self.informative.get(id(step), step.trained_tokens))
        self.course.on_done(self, done)


def score_queue(
    model: Any, batches: list[MicroBatch | None], device: torch.device
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Log-probabilities and entropies of micro-batches, `(B, T)` each on the CPU (empty for None), without dropout."""
    was_training = model.training
    model.eval()
    nothing = torch.empty(0), torch.empty(0)
    scores = []
    with torch.no_grad():
        for batch in batches:
            of_batch = nothing if batch is None else score(model, model, batch.layout().to(device))
            scores.append((of_batch[0].cpu(), of_batch[1].cpu()))
    model.train(was_training)
    return scores


def _rewarded(inputs: dict[str, Any]) -> torch.Tensor:
    """Float (B, T): the tokens whose entropy counts, all that are trained or those of high entropy."""
    informative = inputs.get("informative")
    return (inputs["tool_mask"] > 0 if informative is None else informative).float()


def _no_reward(**_: Any) -> list[float]:
    """TRL wants a source of rewards; advantages come with the sequences, so nothing may ask for one."""
    raise AssertionError("TRL asked for rewards: its training loop no longer goes through `_prepare_inputs`")


def _mean(values: list[float], weights: list[float]) -> float | None:
    """Weighted mean of the micro-batches' values; those that hold nothing are NaN with weight 0."""
    pairs = [(v, w) for v, w in zip(values, weights, strict=True) if w > 0 and math.isfinite(v)]
    total = sum(w for _, w in pairs)
    return sum(v * w for v, w in pairs) / total if total else None
