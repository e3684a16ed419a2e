"""`training.trl`: settings that only TRL reads, under its own names.

Their types and defaults are those that the source of TRL's GRPOConfig declares. It is read, not imported: that takes ten
seconds, and settings are checked by every process of a run. A name that would change nothing is an error.
"""

from __future__ import annotations

import ast
import difflib
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import FiniteFloat, TypeAdapter, ValidationError

_CLIPPED = ("grpo", "dr_grpo", "dapo", "bnpo", "luspo")
# Read by transformers' Trainer, whatever the loss: every algorithm takes them.
OF_THE_OPTIMIZER = ("weight_decay", "max_grad_norm", "adam_beta1", "adam_beta2", "adam_epsilon")
ADAPTIVE_ENTROPY = ("entropy_coef_min", "entropy_coef_max", "entropy_coef_delta", "entropy_target")
# What is passed on → the losses that take a ratio by it; None: any loss, and it bends no ratio.
PASSED: dict[str, tuple[str, ...] | None] = {
    "epsilon": _CLIPPED,
    "epsilon_high": (*_CLIPPED, "cispo"),
    "delta": _CLIPPED,
    **dict.fromkeys(("sapo_temperature_pos", "sapo_temperature_neg"), ("sapo",)),
    **dict.fromkeys(("vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg"), ("vespo",)),
    **dict.fromkeys(("importance_sampling_level", "off_policy_mask_threshold", "use_bias_correction_kl")),
    **dict.fromkeys(("entropy_coef", "top_entropy_quantile", "use_adaptive_entropy", *ADAPTIVE_ENTROPY)),
    **dict.fromkeys(OF_THE_OPTIMIZER),
}
# What of TRL's config another setting decides.
_OURS = {
    **{name: f"training.{name}" for name in ("learning_rate", "loss_type", "beta", "bf16", "gradient_checkpointing")},
    **dict.fromkeys(("lr_scheduler_type", "lr_scheduler_kwargs"), "training.lr_schedule"),
    "warmup_steps": "training.warmup_steps",
    **dict.fromkeys(("max_steps", "num_train_epochs", "gradient_accumulation_steps"), "training.steps_per_epoch"),
    **dict.fromkeys(("per_device_train_batch_size", "auto_find_batch_size"), "training.tokens_per_micro_batch"),
    **dict.fromkeys(("num_iterations", "steps_per_generation"), "training.max_passes"),
    **dict.fromkeys(("vllm_importance_sampling_correction", "vllm_importance_sampling_mode"), "training.importance_correction"),
    "vllm_importance_sampling_clip_max": "training.importance_clip_max",
    "vllm_importance_sampling_clip_min": "training.importance_clip_min",
    **dict.fromkeys(("save_steps", "save_strategy"), "training.checkpoint_seconds"),
    **dict.fromkeys(("deepspeed", "fsdp", "fsdp_config"), "training.accelerate_config"),
    "fp16": "training.bf16",
    "temperature": "policies.sampling.temperature",
    "top_p": "policies.sampling.top_p",
    "max_completion_length": "policies.sampling.max_tokens",
    "num_generations": "rollout.group_size",
    "scale_rewards": "policies.advantages",
    "reward_weights": "policies.rewards",
    "seed": "seed",
    "output_dir": "home",
    "report_to": "tracking.backends",
}  # fmt: skip
# Annotations of those that are passed on.
_TYPES: dict[str, Any] = {"float": FiniteFloat, "float | None": FiniteFloat | None, "bool": bool, "str": str}
_SHARES = ("top_entropy_quantile", "adam_beta1", "adam_beta2")


@cache
def declared() -> dict[str, tuple[str, Any]]:
    """Return annotation and default of all settings of TRL's GRPOConfig, as its source and transformers' have them.

    Empty where TRL is not installed.
    """
    files = ("transformers", "training_args.py"), ("trl", "trainer/base_config.py"), ("trl", "trainer/grpo_config.py")
    found: dict[str, tuple[str, Any]] = {}
    for package, file in files:
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            return {}
        module = ast.parse((Path(spec.origin).parent / file).read_text())
        for line in [line for part in module.body if isinstance(part, ast.ClassDef) for line in part.body]:
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
                found[line.target.id] = ast.unparse(line.annotation), _default(line.value)
    return found


def _default(value: ast.expr | None) -> Any:
    """Return the value of `field(default=…)` or the value itself, where it is a literal; else None."""
    if isinstance(value, ast.Call):
        value = next((keyword.value for keyword in value.keywords if keyword.arg == "default"), None)
    try:
        return None if value is None else ast.literal_eval(value)
    except ValueError:
        return None


def checked(name: str, value: Any) -> Any:
    """Return the value of a setting in `trl`, of the type that TRL declares. Raises ValueError with the remedy."""
    if name in _OURS:
        raise ValueError(f"`{_OURS[name]}` sets `{name}`; set that, and leave `{name}` out")
    if name not in PASSED:
        if name in declared():
            raise ValueError(f"`{name}` would be ignored: nothing here reads it from TRL's config; leave it out")
        close = difflib.get_close_matches(name, PASSED, 1)
        meant = f"is `{close[0]}` meant?" if close else f"known are: {', '.join(PASSED)}"
        raise ValueError(f"`{name}` is no setting of TRL's GRPOConfig; {meant}")
    if name in declared():
        annotation, _ = declared()[name]
        try:
            value = TypeAdapter(_TYPES[annotation]).validate_python(value)
        except ValidationError:
            raise ValueError(f"`{name}` is {value!r}, and TRL takes `{annotation}`") from None
    if isinstance(value, int | float) and not 0 <= value <= (1 if name in _SHARES else value):
        raise ValueError(f"`{name}` is {value}; " + ("a share, 0 to 1" if name in _SHARES else "it cannot be below 0"))
    if name == "importance_sampling_level" and value not in ("token", "sequence"):
        raise ValueError(f"`{name}` is {value!r}; TRL knows `token` and `sequence`")
    return value
