"""Every private hook of TRL that the trainers stand on; tests/unit/test_trl_hook.py fails when TRL moves one.

TRL's trainer samples, rewards and shuffles. Here it gets planned micro-batches instead (trainer.py). Each loss
with its clipping and its KL stays TRL's; the optimizer, the clipping of the gradient and the loop over steps transformers'.
(One hook lies elsewhere, as it comes before the import: `job.import_trainer` hides packages that TRL only tries out. What trainer.py
and steps.py override are transformers' own documented hooks: `training_step`, `log`, `create_accelerator_and_postprocess` and
`get_optimizer_cls_and_kwargs`.)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from trl import GRPOConfig, GRPOTrainer
from trl.trainer import utils as trl_utils

from lightning_core.config import PolicySettings
from lightning_core.training.hardware import checkpoints_gradients, computes_in_bf16

# TRL's LM head projects so many vocabulary entries at a time. On a CPU its own 32,768 makes tiles of 128 KB a scored token,
# several at once, and what is done to a tile waits for memory; of 512 to 32,768 this is the fastest.
if not torch.accelerator.is_available():
    trl_utils._CHUNKED_LOGPROB_CHUNK_SIZE = 2048

# TRL takes each token's loss by the loss type, and its reduction too. Those that differ in the reduction alone, all that clip
# on both sides, are one here, `dapo`: weights and normalizer, which micro_batches.py works out, make the difference.
_OWN_FORMULA = ("cispo", "sapo", "vespo")
_OPTIMIZERS = {"adamw": "adamw_torch_fused", "adamw_8bit": "adamw_torch_8bit"}
_CISPO_LIMIT = 5.0  # of the ratio, as its paper and TRL recommend; TRL's own default would be 0.2


def grpo_arguments(policy: PolicySettings, steps: int, width: int, scratch: Path, seed: int) -> GRPOConfig:
    """Return TRL's arguments for `steps` optimizer steps of `width` micro-batches. Beta stays 0 until the trainer is
    made."""
    settings = policy.training
    again = checkpoints_gradients(settings)
    given = settings.trl | {
        "output_dir": str(scratch),
        "seed": seed,
        "max_steps": steps,
        "gradient_accumulation_steps": width,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": "constant",  # `begin_step` sets the rate
        "optim": _OPTIMIZERS[settings.optimizer],
        "bf16": computes_in_bf16(settings),
        # Of mixtures of experts: it would be a mean over micro-batches, whatever they hold, and tries have no place for it.
        # Dense models have none, and TRL takes a 0 for either.
        "router_aux_loss_coef": 0.0,
        "gradient_checkpointing": again,
        "gradient_checkpointing_kwargs": {"use_reentrant": False} if again else None,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        # Not said outright, several processes on CPUs would each train alone.
        "use_cpu": not torch.accelerator.is_available(),
        "dataloader_pin_memory": False,
    }
    if settings.loss_type == "cispo":
        given["epsilon_high"] = given.get("epsilon_high") or _CISPO_LIMIT
    return GRPOConfig(
        **given
        | {
            # TRL checks these against each other; what is really in a micro-batch is the plan's decision.
            "per_device_train_batch_size": 2,
            "num_generations": 2,
            "loss_type": settings.loss_type if settings.loss_type in _OWN_FORMULA else "dapo",
            "importance_sampling_level": settings.ratio_level,
            # Examples were sampled at any temperature, or at none.
            "temperature": 1.0 if policy.imitates else policy.sampling.temperature,
        }
    )


class PlannedGRPOTrainer(GRPOTrainer):
    """GRPOTrainer on numbered micro-batches. Of its subclass it asks:

    `inputs_of(number)`: what TRL's loss reads of a micro-batch (inputs.py). Of the one it gave last: `score_inputs(model)`:
    log-probabilities and entropies `(B, T)`, before the loss reads advantages and ratios; `high_entropy()`: bool `(B, T)`; `last_word(loss)`: its loss, from TRL's.
    """

    current_gradient_accumulation_steps: float  # of transformers' Trainer; TRL divides by it

    def __init__(
        self, model: Any, tokenizer: Any, args: GRPOConfig, micro_batches: int, beta: float, peft_config: Any = None
    ) -> None:
        self._micro_batches = micro_batches
        super().__init__(
            model=model,
            # TRL wants rewards and prompts to sample from. Inputs come from `inputs_of`, so neither is ever asked for.
            reward_funcs=_no_reward,
            train_dataset=Dataset.from_dict({"prompt": [str(i) for i in range(micro_batches)]}),
            args=args,
            processing_class=tokenizer,
            peft_config=peft_config,
        )
        # For beta > 0, TRL's set-up would load a second copy of the newest weights as reference.
        self.beta = beta
        # TRL would add the entropy as a mean over each micro-batch; `last_word` adds it as one over the whole step.
        self._entropy_bonus_enabled = False

    def get_train_dataloader(self) -> Any:
        """Return the micro-batches in order, by number: TRL's sampler would shuffle and repeat them."""
        return DataLoader(range(self._micro_batches), batch_size=1, collate_fn=lambda numbers: {"number": numbers[0]})

    def _prepare_inputs(self, generation_batch: dict[str, Any]) -> dict[str, Any]:
        """Return the inputs planned: TRL would sample completions here, reward them and work out advantages."""
        return self.inputs_of(generation_batch["number"])

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Any, attention_mask: Any, logits_to_keep: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Return the scores by `score_inputs`: TRL would run padded rows through the model, and score prompts too."""
        return *self.score_inputs(model), None

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """Compute TRL's loss of a micro-batch, as its share of the step's, and return what `last_word` makes of it."""
        width, ranks = self.current_gradient_accumulation_steps, self.accelerator.num_processes
        if self.loss_type == "sapo":
            # Its mean over the rows of a micro-batch becomes their weighted sum, divided by the step's normalizer.
            rows = inputs["prompt_ids"].shape[0]
            self.current_gradient_accumulation_steps = float(inputs["num_items_in_batch"]) / (rows * ranks)
        # For metrics that nothing reads, TRL gathers a value a row, and ranks have different numbers of rows.
        self.accelerator.gather = lambda tensor: tensor
        try:
            loss = super()._compute_loss(model, inputs)
        finally:
            self.current_gradient_accumulation_steps = width
            del self.accelerator.gather
        return self.last_word(loss)

    def get_high_entropy_mask(self, entropies: Any, mask: Any, threshold: float) -> torch.Tensor:
        """Return the tokens of high entropy in the whole step: TRL would take the quantile of a micro-batch."""
        return self.high_entropy()

    @staticmethod
    def get_off_policy_mask(*args: Any, mask: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Return TRL's off-policy mask; the weights in `mask` are made a mask of 0 and 1 first."""
        return GRPOTrainer.get_off_policy_mask(*args, mask=(mask > 0).float(), **kwargs)

    @staticmethod
    def get_gamma_weights(*args: Any, mask: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Return TRL's gamma weights; the weights in `mask` are made a mask of 0 and 1 first."""
        return GRPOTrainer.get_gamma_weights(*args, mask=(mask > 0).float(), **kwargs)

    def take_clip_ratios(self) -> list[float] | None:
        """Return the share of clipped tokens of each micro-batch since the last call, where the loss clips; TRL's
        metrics are emptied."""
        metrics = self._metrics["train"]
        clipped: list[float] | None = metrics.get("clip_ratio/region_mean") or metrics.get("cispo_clip_ratio")
        metrics.clear()
        return clipped

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        return 0  # transformers would look for input ids in what the loader yields


def add_head(model: Any, policy: PolicySettings) -> None:
    """Make a model without a trainer score as `fused_scores` asks: TRL's trainer does this to its own."""
    in_float32 = policy.training.of_trl("cast_lm_head_to_fp32")
    trl_utils.add_fused_lm_head(model, temperature=policy.sampling.temperature, cast_lm_head_to_fp32=in_float32)


def remove_head(model: Any) -> None:
    """Take TRL's LM head and accelerate's autocast off a model: TRL's next trainer would put another around them."""
    for part in (model, model.get_base_model() if hasattr(model, "get_base_model") else model):
        part.__dict__.pop("forward", None)


def fused_scores(model: Any, inputs: dict[str, Any], targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return log-probabilities of `targets` `(N,)` by TRL's LM head, which never makes whole logits; entropies where it
    was asked for them.

    Soft-capping, logit scale, temperature and the head's dtype stay TRL's business.
    """
    out = model(**inputs, shift_labels=targets.unsqueeze(0), fused_lm_head=True)
    return out.log_probs, out.entropy


def _no_reward(**_: Any) -> list[float]:
    raise AssertionError("TRL asked for rewards: its training loop no longer goes through `_prepare_inputs`")
