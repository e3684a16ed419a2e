"""How one policy is trained. A setting that the chosen loss would ignore is an error that names the remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from lightning_core.config.section import Section
from lightning_core.config.trl import ADAPTIVE_ENTROPY, PASSED, checked, declared

LossType = Literal["grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo"]


class TrainingSettings(Section):
    learning_rate: float = Field(1e-5, gt=0)
    lr_schedule: Literal["constant", "linear", "cosine", "wsd"] = Field(
        "constant",
        description="schedule over the whole run (`epochs` times `steps_per_epoch`), falling to 0 at its end; `wsd` (warm-up, stable, decay) falls only in the last third, linearly",
    )
    warmup_steps: int = Field(
        0,
        ge=0,
        description="number of optimizer steps at the start of the run with a rising learning rate; epochs without a step do not count",
    )
    steps_per_epoch: int = Field(
        1,
        ge=1,
        description="number of optimizer steps over which the groups of an epoch are spread; for `sft`, in each of its `passes`",
    )
    min_groups_per_step: int = Field(
        1,
        ge=1,
        description="an epoch with fewer groups than this for each of `steps_per_epoch` has fewer steps, or goes through them again (`max_passes`)",
    )
    max_passes: int = Field(
        1,
        ge=1,
        description="how often a group is trained on at most, if an epoch has too few groups for its `steps_per_epoch` of `min_groups_per_step`",
    )

    loss_type: LossType = Field("dapo", description="TRL's GRPO loss")
    normalization: Literal["token", "rollout"] | None = Field(
        None,
        description="what weighs the same in the loss: each trained token, or each rollout; null: as the loss defines it",
    )
    beta: float = Field(0.0, ge=0, description="weight of the KL to the reference")
    kl_reference: Literal["base", "previous"] = Field(
        "base", description="`base`: the policy's `model`; `previous`: the weights that the epoch began with"
    )
    trl: dict[str, Any] = Field(
        default_factory=dict,
        description="settings that only TRL reads, with the names of its GRPOConfig (`epsilon`, `entropy_coef`, `weight_decay`, …); docs/training.md",
    )

    importance_correction: (
        Literal["none", "token_truncate", "token_mask", "rollout_truncate", "rollout_mask"] | None
    ) = Field(
        None,
        description="weighs the loss by the trainer's probability over vLLM's, of a token or of a whole rollout; null: `token_truncate`, or `none` if both compute in float32",
    )
    importance_clip_max: float | None = Field(3.0, gt=0)
    importance_clip_min: float | None = Field(None, gt=0)

    max_mismatch: float | None = Field(
        4.0,
        gt=0,
        description="training stops before its first step if tokens are this much less likely (nats, on average) than their logprobs say, because another model sampled them; null: never",
    )

    packing: Literal["none", "concat", "tree"] = Field(
        "tree",
        description="`tree`: tokens that sequences share are computed once; `concat`: sequences end to end, without padding; `none`: padded rows",
    )
    tokens_per_micro_batch: int | None = Field(
        None,
        ge=64,
        description="number of tokens (unique ones, with `tree`) in one forward pass; null: on a GPU as many as fit into what is free "
        "before the run's first training, on a CPU and with an accelerate file 2048",
    )
    max_sequence_tokens: int = Field(4096, ge=16, description="longer sequences are left out and counted")
    bf16: bool | None = Field(
        None,
        description="compute in bf16, with weights and moments in float32 (the base model under an adapter in bf16 too, except with "
        "FSDP2 and DeepSpeed); null: on a GPU that has it (not with DeepSpeed), on a CPU that has it if vLLM samples in it, or if the accelerate file says `bf16`",
    )
    optimizer: Literal["adamw", "adamw_8bit"] = Field(
        "adamw",
        description="`adamw_8bit`: AdamW with moments of one byte instead of four (torchao): 6 bytes a trained parameter less",
    )
    gradient_checkpointing: bool | None = Field(
        None,
        description="compute activations again in the backward pass instead of keeping them; null: on a GPU",
    )
    checkpoint_seconds: float | None = Field(
        60.0,
        ge=0,
        description="seconds of work that a kill may cost: after this long without a checkpoint, the next optimizer step ends with one (later if a checkpoint takes long: those after the first take at most a twentieth of the time); 0: after each step; null: none",
    )
    processes: int = Field(
        1,
        ge=1,
        description="number of training processes on this machine; 1 with `accelerate_config`: as many as that file says",
    )
    accelerate_config: Path | None = Field(
        None,
        description="file of `accelerate config` (DDP, FSDP2, or DeepSpeed if it is installed) with which the processes are launched",
    )

    @property
    def corrected(self) -> bool:
        """Return whether an importance correction was chosen."""
        return self.importance_correction not in (None, "none")

    @property
    def ratio_level(self) -> Literal["token", "sequence"]:
        level: Literal["token", "sequence"] | None = self.trl.get("importance_sampling_level")
        return level or ("sequence" if self.loss_type == "luspo" else "token")

    def of_trl(self, name: str) -> Any:
        """Return the value of a setting of TRL's: as `trl` says, else TRL's default."""
        return self.trl[name] if name in self.trl else declared()[name][1]

    @model_validator(mode="before")
    @classmethod
    def _trls_own(cls, data: Any) -> Any:
        for name in PASSED.keys() & (data if isinstance(data, dict) else {}):
            raise ValueError(f"`{name}` is TRL's own: write it under `training.trl`")
        return data

    @field_validator("trl")
    @classmethod
    def _trl(cls, given: dict[str, Any]) -> dict[str, Any]:
        return {name: checked(name, value) for name, value in given.items()}

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> TrainingSettings:
        for name in self.trl:
            losses = PASSED[name]
            if losses is not None and self.loss_type not in losses:
                raise ValueError(
                    f"`trl`: `{name}` has no effect with loss_type `{self.loss_type}`; leave it out, or use {_either(losses)}"
                )
        if self.normalization is not None and self.loss_type in ("dr_grpo", "luspo"):
            raise ValueError(
                f"loss_type `{self.loss_type}` fixes the `normalization`; leave it out, or use loss_type `grpo` or `dapo`"
            )
        if self.optimizer == "adamw_8bit" and self.accelerate_config is not None:
            raise ValueError("`optimizer: adamw_8bit` was not tried with `accelerate_config`; leave one of the two out")
        self._ratio()
        self._kl()
        self._entropy()
        self._correction()
        return self

    def _ratio(self) -> None:
        level = self.trl.get("importance_sampling_level")
        if level == "sequence" and self.loss_type not in ("grpo", "luspo"):
            raise ValueError(
                f"`importance_sampling_level: sequence` does not fit loss_type `{self.loss_type}`, which weighs tokens; "
                "use `grpo` (that is GSPO) or `luspo`"
            )
        if self.loss_type == "luspo" and level == "token":
            raise ValueError("loss_type `luspo` is defined on whole sequences; leave `importance_sampling_level` out")
        delta = self.trl.get("delta")
        if delta is not None and declared() and delta <= 1 + (self.trl.get("epsilon_high") or self.of_trl("epsilon")):
            raise ValueError("`delta` has to be above 1 + `epsilon_high`: it limits what that clip does not")
        if self.steps_per_epoch == 1:
            self._ratio_is_one()
            for name in filter(self.differs, ("min_groups_per_step", "max_passes")):
                raise ValueError(
                    f"`{name}` has no effect with one step an epoch; raise `steps_per_epoch`, or leave it out"
                )

    def _ratio_is_one(self) -> None:
        """Raise ValueError for settings of the ratio: with one step an epoch it is 1."""
        for name in self.trl:
            if PASSED[name] is None:
                continue  # it bends no ratio
            if self.loss_type == "vespo" and self.corrected:
                continue  # it weighs by both ratios
            if name == "epsilon_high" and self.loss_type == "cispo" and (self.trl[name] or 1) < 1:
                continue  # its limit of the ratio, not of a distance from 1
            raise ValueError(
                f"`trl`: `{name}` has no effect with one step an epoch, where the ratio to the sampling policy is 1; raise "
                "`steps_per_epoch`, or leave it out"
            )

    def _kl(self) -> None:
        for name in ("kl_reference", "use_bias_correction_kl"):
            if not self.beta and (name in self.trl if name in PASSED else self.differs(name)):
                raise ValueError(f"`{name}` has no effect while `beta` is 0; set `beta`, or leave it out")
        if self.kl_reference == "previous" and self.steps_per_epoch == 1:
            raise ValueError(
                "`kl_reference: previous` has no effect with one step an epoch, which starts from the reference itself; "
                "raise `steps_per_epoch`, or use `base`"
            )

    def _entropy(self) -> None:
        if not self.trl.get("use_adaptive_entropy"):
            for name in self.trl.keys() & ADAPTIVE_ENTROPY:
                raise ValueError(f"`trl`: `{name}` has no effect without `use_adaptive_entropy: true`")
        elif declared() and self.of_trl("entropy_coef_min") > self.of_trl("entropy_coef_max"):
            raise ValueError("`entropy_coef_min` is above `entropy_coef_max`; swap the two")

    def _correction(self) -> None:
        if not self.corrected:
            for name in filter(self.differs, ("importance_clip_min", "importance_clip_max")):
                raise ValueError(f"`{name}` has no effect without `importance_correction`; set that too")
            return
        low, high = self.importance_clip_min, self.importance_clip_max
        if low is None and high is None:
            raise ValueError("`importance_correction` needs a bound; set `importance_clip_max`")
        if low is not None and high is not None and low >= high:
            raise ValueError("`importance_clip_min` has to be below `importance_clip_max`")
        if self.loss_type == "vespo" and str(self.importance_correction).startswith("rollout"):
            raise ValueError(
                "loss_type `vespo` multiplies the ratios of a sequence itself; use `token_truncate` or `token_mask`"
            )


def _either(names: tuple[Any, ...]) -> str:
    *most, last = [f"`{name}`" for name in names]
    return f"{', '.join(most)} or {last}" if most else last
