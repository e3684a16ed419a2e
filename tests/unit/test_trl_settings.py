"""`training.trl`: what is passed through to TRL's own config is checked against it, without importing it."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from pydantic import ValidationError

from lightning_core.config import PolicySettings, TrainingSettings, training, trl


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        ({"trl": {"epsilom": 0.3}}, "`epsilom` is no setting of TRL's GRPOConfig; is `epsilon` meant"),
        ({"trl": {"epsilon": "wide"}}, "`epsilon` is 'wide', and TRL takes `float`"),
        ({"trl": {"use_adaptive_entropy": "perhaps"}}, "`use_adaptive_entropy` is 'perhaps', and TRL takes `bool`"),
        ({"trl": {"epsilon": -0.1}}, "`epsilon` is -0.1; it cannot be below 0"),
        ({"trl": {"top_entropy_quantile": 2}}, "`top_entropy_quantile` is 2.0; a share, 0 to 1"),
        ({"trl": {"learning_rate": 0.1}}, "`training.learning_rate` sets `learning_rate`; set that"),
        ({"trl": {"beta": 0.1}}, "`training.beta` sets `beta`"),
        ({"trl": {"num_generations": 8}}, "`rollout.group_size` sets `num_generations`"),
        ({"trl": {"scale_rewards": "group"}}, "`policies.advantages` sets `scale_rewards`"),
        ({"trl": {"vllm_mode": "server"}}, "`vllm_mode` would be ignored: nothing here reads it"),
        ({"trl": {"dataloader_num_workers": 2}}, "`dataloader_num_workers` would be ignored: nothing here reads it"),
        ({"trl": {"importance_sampling_level": "row"}}, "`importance_sampling_level` is 'row'; TRL knows `token` and"),
        ({"epsilon": 0.3}, "`epsilon` is TRL's own: write it under `training.trl`"),
        ({"weight_decay": 0.1}, "`weight_decay` is TRL's own: write it under `training.trl`"),
    ],
    ids=lambda value: "-".join(map(str, value.get("trl", value))) if isinstance(value, dict) else "",
)
def test_what_is_not_passed_to_trl_is_refused_with_the_remedy(given: dict[str, Any], remedy: str) -> None:
    with pytest.raises(ValidationError, match=remedy):
        TrainingSettings.model_validate({"steps_per_epoch": 2, **given})


def test_a_value_is_taken_as_the_type_that_trl_declares() -> None:
    written = {"epsilon": "2e-1", "delta": 3, "epsilon_high": None, "use_adaptive_entropy": True}
    settings = TrainingSettings.model_validate({"steps_per_epoch": 2, "trl": written})
    assert settings.trl == {"epsilon": 0.2, "delta": 3.0, "epsilon_high": None, "use_adaptive_entropy": True}
    assert type(settings.trl["delta"]) is float
    assert TrainingSettings.model_validate_json(settings.model_dump_json()) == settings


def test_what_is_left_out_is_as_trl_declares_it() -> None:
    settings = TrainingSettings.model_validate({"trl": {"entropy_coef": 0.1}})
    assert [settings.of_trl(name) for name in ("entropy_coef", "entropy_coef_max", "max_grad_norm", "delta")] == [
        *(0.1, 1.0, 1.0, None)
    ]


def test_of_the_optimizer_every_algorithm_reads_the_settings_and_of_the_loss_policy_gradients_alone() -> None:
    PolicySettings.model_validate({"algorithm": "sft", "training": {"trl": {"weight_decay": 0.1, "adam_beta2": 0.99}}})
    with pytest.raises(ValidationError, match=r"`algorithm: sft` ignores training\.trl\.entropy_coef"):
        PolicySettings.model_validate({"algorithm": "sft", "training": {"trl": {"entropy_coef": 0.1}}})


def test_where_trl_is_not_installed_names_are_checked_and_its_types_left_to_where_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trl, "declared", dict)
    monkeypatch.setattr(training, "declared", dict)
    given = {"delta": 0.5, "use_adaptive_entropy": True, "epsilon": ["wide"]}
    assert TrainingSettings.model_validate({"steps_per_epoch": 2, "trl": given}).trl == given
    with pytest.raises(ValidationError, match="`epsilom` is no setting of TRL's GRPOConfig"):
        TrainingSettings.model_validate({"trl": {"epsilom": 0.3}})


def test_the_settings_are_checked_without_importing_trl() -> None:
    before = "trl" in sys.modules
    TrainingSettings.model_validate({"trl": {"entropy_coef": 0.1}})
    assert ("trl" in sys.modules) == before
