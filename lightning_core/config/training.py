"""How one policy is trained. A setting that the chosen loss would ignore is an error that names the remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from lightning_core.config.section import Section

LossType = Literal["grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo"]

_CLIPPED = ("grpo", "dr_grpo", "dapo", "bnpo", "luspo")
# Settings that only some losses read. A value other than the default, with another loss, would do nothing.
_READ_BY: dict[str, tuple[str, ...]] = {
    "epsilon": _CLIPPED,
    "epsilon_high": (*_CLIPPED, "cispo"),
    "delta": _CLIPPED,
    "sapo_temperature_pos": ("sapo",),
    "sapo_temperature_neg": ("sapo",),
    "vespo_k_pos": ("vespo",),
    "vespo_lambda_pos": ("vespo",),
    "vespo_k_neg": ("vespo",),
    "vespo_lambda_neg": ("vespo",),
}
_ADAPTIVE = ("entropy_coef_min", "entropy_coef_max", "entropy_coef_delta", "entropy_target")


class TrainingSettings(Section):
    learning_rate: float = Field(1e-5, gt=0)
    lr_schedule: Literal["constant", "linear", "cosine", "wsd"] = Field(
        "constant",
        description="over the whole run (`epochs` times `steps_per_epoch`), falling to 0 at its end; `wsd` (warm-up, stable, decay) falls in its last third alone, linearly",
    )
    warmup_steps: int = Field(
        0,
        ge=0,
        description="first optimizer steps of the run, with a rising learning rate; epochs without a step do not count",
    )
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    steps_per_epoch: int = Field(
        1, ge=1, description="optimizer steps the groups of an epoch are spread over; of `sft`, in each of its `passes`"
    )
    min_groups_per_step: int = Field(
        1,
        ge=1,
        description="an epoch with fewer groups than this for each of `steps_per_epoch` has fewer steps, or goes through them again (`max_passes`)",
    )
    max_passes: int = Field(
        1,
        ge=1,
        description="times a group is trained on at most, where an epoch has too few groups for its `steps_per_epoch` of `min_groups_per_step`",
    )

    loss_type: LossType = Field("dapo", description="TRL's GRPO loss")
    importance_sampling_level: Literal["token", "sequence"] | None = Field(
        None, description="`sequence` with `grpo` is GSPO; null: `token`, and `sequence` for `luspo`"
    )
    normalization: Literal["token", "rollout"] | None = Field(
        None, description="each trained token, or each rollout, weighs the same; null: as the loss defines it"
    )
    epsilon: float = Field(
        0.2,
        gt=0,
        description="clip range of the ratio to the sampling logprobs; with `importance_correction` to the trainer's own before its first step",
    )
    epsilon_high: float | None = Field(
        None, gt=0, description="its upper end; null: `epsilon`, and for `cispo` a ratio of 5"
    )
    delta: float | None = Field(None, gt=0, description="upper limit of the ratio where the advantage is negative")
    sapo_temperature_pos: float = Field(1.0, gt=0)
    sapo_temperature_neg: float = Field(1.05, gt=0)
    vespo_k_pos: float = Field(2.0, ge=0)
    vespo_lambda_pos: float = Field(3.0, ge=0)
    vespo_k_neg: float = Field(3.0, ge=0)
    vespo_lambda_neg: float = Field(2.0, ge=0)
    off_policy_mask_threshold: float | None = Field(
        None,
        gt=0,
        description="sequences of negative advantage that drifted further than this (nats a token) are masked",
    )

    beta: float = Field(0.0, ge=0, description="weight of the KL to the reference")
    kl_reference: Literal["base", "previous"] = Field(
        "base", description="the model the policy's settings name, or the weights that the epoch began with"
    )
    use_bias_correction_kl: bool = Field(True, description="the KL term weighed by the importance ratio")

    entropy_coef: float = Field(0.0, ge=0, description="weight of the mean entropy a token, which is rewarded")
    top_entropy_quantile: float = Field(
        1.0, ge=0, le=1, description="share of the tokens, those of highest entropy, that the policy's loss is made of"
    )
    use_adaptive_entropy: bool = Field(False, description="`entropy_coef` moves so that entropy stays at the target")
    entropy_coef_min: float = Field(0.0, ge=0)
    entropy_coef_max: float = Field(1.0, ge=0)
    entropy_coef_delta: float = Field(0.005, gt=0)
    entropy_target: float = Field(0.2, ge=0, description="nats a token")

    importance_correction: Literal["none", "token_truncate", "token_mask", "rollout_truncate", "rollout_mask"] = Field(
        "none", description="the loss weighed by trainer's over server's probability, of a token or of a whole rollout"
    )
    importance_clip_max: float | None = Field(3.0, gt=0)
    importance_clip_min: float | None = Field(None, gt=0)

    max_mismatch: float | None = Field(
        4.0,
        gt=0,
        description="training stops before its first step where tokens are so much less likely (nats, in the mean) than their logprobs say: another model sampled them; null: never",
    )

    packing: Literal["none", "concat", "tree"] = Field(
        "tree",
        description="`tree`: tokens that sequences share are computed once; `concat`: sequences end to end, without padding; `none`: padded rows",
    )
    tokens_per_micro_batch: int = Field(
        2048, ge=64, description="tokens (unique ones, with `tree`) in one forward pass"
    )
    max_sequence_tokens: int = Field(4096, ge=16, description="longer sequences are left out and counted")
    bf16: bool | None = Field(
        None,
        description="compute in bf16, weights and moments in float32 (the base model under an adapter in bf16 too, but for "
        "FSDP2 and DeepSpeed); null: on a GPU that has it (not with DeepSpeed), or where the accelerate file says `bf16`",
    )
    gradient_checkpointing: bool = False
    checkpoint_seconds: float | None = Field(
        60.0,
        ge=0,
        description="work that an epoch loses when it is killed: once so much has been done since the last checkpoint, the next optimizer step ends with one (later where one takes long: a twentieth of the time at most goes into those after the first); 0: each does; null: none",
    )
    processes: int = Field(
        1,
        ge=1,
        description="training processes on this machine; 1 with `accelerate_config`: as many as that file says",
    )
    accelerate_config: Path | None = Field(
        None,
        description="file of `accelerate config` (DDP, FSDP2, or DeepSpeed where it is installed) to launch them with",
    )

    @property
    def ratio_level(self) -> Literal["token", "sequence"]:
        return self.importance_sampling_level or ("sequence" if self.loss_type == "luspo" else "token")

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> TrainingSettings:
        for name, losses in _READ_BY.items():
            if self.differs(name) and self.loss_type not in losses:
                raise ValueError(
                    f"`{name}` has no effect with loss_type `{self.loss_type}`; leave it out, or take {_either(losses)}"
                )
        if self.normalization is not None and self.loss_type in ("dr_grpo", "luspo"):
            raise ValueError(
                f"`normalization` is part of what `{self.loss_type}` is; leave it out, or take loss_type `grpo` or `dapo`"
            )
        self._ratio()
        self._kl()
        self._entropy()
        self._correction()
        return self

    def _ratio(self) -> None:
        sequence = self.importance_sampling_level == "sequence"
        if sequence and self.loss_type not in ("grpo", "luspo"):
            raise ValueError(
                f"`importance_sampling_level: sequence` does not fit loss_type `{self.loss_type}`, which weighs tokens; "
                "take `grpo` (that is GSPO) or `luspo`"
            )
        if self.loss_type == "luspo" and self.importance_sampling_level == "token":
            raise ValueError("loss_type `luspo` is defined on whole sequences; leave `importance_sampling_level` out")
        if self.delta is not None and self.delta <= 1 + (self.epsilon_high or self.epsilon):
            raise ValueError("`delta` has to lie above 1 + `epsilon_high`: it limits what that clip does not")
        if self.steps_per_epoch == 1:
            self._ratio_is_one()
            for name in ("min_groups_per_step", "max_passes"):
                if self.differs(name):
                    raise ValueError(
                        f"`{name}` has no effect with one step an epoch; raise `steps_per_epoch`, or leave it out"
                    )

    def _ratio_is_one(self) -> None:
        """With one step an epoch, the weights that are trained are those the ratio is taken to."""
        for name in _READ_BY:
            if not self.differs(name):
                continue
            if self.loss_type == "vespo" and self.importance_correction != "none":
                continue  # it weighs by both ratios
            if name == "epsilon_high" and self.loss_type == "cispo" and (self.epsilon_high or 1) < 1:
                continue  # its limit of the ratio, not of a distance from 1
            raise ValueError(
                f"`{name}` has no effect with one step an epoch, where the ratio to the sampling policy is 1; raise "
                "`steps_per_epoch`, or leave it out"
            )

    def _kl(self) -> None:
        for name in ("kl_reference", "use_bias_correction_kl"):
            if self.differs(name) and not self.beta:
                raise ValueError(f"`{name}` has no effect while `beta` is 0; set `beta`, or leave it out")
        if self.kl_reference == "previous" and self.steps_per_epoch == 1:
            raise ValueError(
                "`kl_reference: previous` has no effect with one step an epoch, which starts where the reference is; "
                "raise `steps_per_epoch`, or take `base`"
            )

    def _entropy(self) -> None:
        for name in _ADAPTIVE:
            if self.differs(name) and not self.use_adaptive_entropy:
                raise ValueError(f"`{name}` has no effect without `use_adaptive_entropy: true`")
        if self.entropy_coef_min > self.entropy_coef_max:
            raise ValueError("`entropy_coef_min` lies above `entropy_coef_max`")

    def _correction(self) -> None:
        if self.importance_correction == "none":
            for name in ("importance_clip_min", "importance_clip_max"):
                if self.differs(name):
                    raise ValueError(f"`{name}` has no effect without `importance_correction`")
            return
        low, high = self.importance_clip_min, self.importance_clip_max
        if low is None and high is None:
            raise ValueError("`importance_correction` without a bound; set `importance_clip_max`")
        if low is not None and high is not None and low >= high:
            raise ValueError("`importance_clip_min` has to be below `importance_clip_max`")
        if self.loss_type == "vespo" and self.importance_correction.startswith("rollout"):
            raise ValueError(
                "loss_type `vespo` multiplies the ratios of a sequence itself; take `token_truncate` or `token_mask`"
            )


def _either(names: tuple[Any, ...]) -> str:
    *most, last = [f"`{name}`" for name in names]
    return f"{', '.join(most)} or {last}" if most else last
