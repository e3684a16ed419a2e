"""Settings of training: what a loss would ignore is refused with the remedy; what the schedule makes of them."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from lightning_core.config import Settings, TrainingSettings
from lightning_core.training.schedule import EntropyBonus, learning_rate


@pytest.mark.parametrize(
    ("training", "remedy"),
    [
        (
            {"loss_type": "sapo", "trl": {"epsilon": 0.3}},
            "`epsilon` has no effect with loss_type `sapo`; leave it out, or use",
        ),
        ({"loss_type": "cispo", "trl": {"epsilon": 0.3}}, "`epsilon` has no effect with loss_type `cispo`"),
        ({"loss_type": "vespo", "trl": {"epsilon_high": 0.3}}, "`epsilon_high` has no effect with loss_type `vespo`"),
        ({"loss_type": "cispo", "trl": {"delta": 4.0}}, "`delta` has no effect"),
        (
            {"trl": {"sapo_temperature_pos": 2.0}},
            "`sapo_temperature_pos` has no effect with loss_type `dapo`.* use `sapo`",
        ),
        ({"trl": {"vespo_k_neg": 2.0}}, "`vespo_k_neg` has no effect with loss_type `dapo`.* use `vespo`"),
        (
            {"trl": {"importance_sampling_level": "sequence"}},
            "which weighs tokens; use `grpo` .that is GSPO. or `luspo`",
        ),
        ({"loss_type": "sapo", "trl": {"importance_sampling_level": "sequence"}}, "use `grpo`"),
        (
            {"loss_type": "luspo", "trl": {"importance_sampling_level": "token"}},
            "leave `importance_sampling_level` out",
        ),
        ({"loss_type": "luspo", "normalization": "token"}, "loss_type `luspo` fixes the `normalization`"),
        ({"loss_type": "dr_grpo", "normalization": "rollout"}, "loss_type `dr_grpo` fixes the `normalization`"),
        ({"trl": {"delta": 1.1}}, "`delta` has to be above 1 . `epsilon_high`"),
        ({"kl_reference": "previous"}, "`kl_reference` has no effect while `beta` is 0; set `beta`"),
        ({"trl": {"use_bias_correction_kl": False}}, "`use_bias_correction_kl` has no effect while `beta` is 0"),
        ({"kl_reference": "previous", "beta": 0.1}, "no effect with one step an epoch.* raise `steps_per_epoch`"),
        ({"trl": {"entropy_target": 1.0}}, "`entropy_target` has no effect without `use_adaptive_entropy: true`"),
        ({"trl": {"use_adaptive_entropy": True, "entropy_coef_min": 2.0}}, "`entropy_coef_min` is above"),
        ({"importance_clip_max": 2.0}, "`importance_clip_max` has no effect without `importance_correction`"),
        ({"importance_correction": "token_mask", "importance_clip_max": None}, "needs a bound"),
        ({"importance_correction": "token_mask", "importance_clip_min": 3.0}, "has to be below"),
        ({"importance_correction": "token_mask", "importance_clip_min": 0.0}, "greater than 0"),
        ({"importance_correction": "rollout_mask", "loss_type": "vespo"}, "use `token_truncate` or `token_mask`"),
        (
            {"min_groups_per_step": 4},
            "`min_groups_per_step` has no effect with one step an epoch; raise `steps_per_epoch`",
        ),
        ({"max_passes": 2}, "`max_passes` has no effect with one step an epoch; raise `steps_per_epoch`"),
        ({"trl": {"epsilon": 0.05}}, "`epsilon` has no effect with one step an epoch.* raise `steps_per_epoch`"),
        ({"loss_type": "cispo", "trl": {"epsilon_high": 3.0}}, "`epsilon_high` has no effect with one step an epoch"),
        ({"loss_type": "vespo", "trl": {"vespo_k_neg": 2.0}}, "`vespo_k_neg` has no effect with one step an epoch"),
    ],
    ids=lambda value: (
        "-".join(name for key in value for name in (value[key] if key == "trl" else [key]))
        if isinstance(value, dict)
        else ""
    ),
)
def test_a_setting_that_would_do_nothing_is_refused_with_the_remedy(training: dict[str, Any], remedy: str) -> None:
    with pytest.raises(ValidationError, match=remedy):
        TrainingSettings.model_validate(training)


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        (
            {
                "epochs": 4,
                "policies": [{"training": {"lr_schedule": "linear", "warmup_steps": 8, "steps_per_epoch": 2}}],
            },
            "'policy' warms up for 8 of the run's 8 optimizer steps.* lower `warmup_steps`, or use `constant`",
        ),
        (
            {"training_devices": ["0", "1,2"]},
            "'1,2', and policy 'policy' is trained by 1 processes.* give it that many devices",
        ),
        (
            {"training_devices": ["0"], "policies": [{"training": {"processes": 2}}]},
            "'0', and policy 'policy' is trained by 2 processes.* change `training.processes`",
        ),
        ({"evaluation": {"patience": 2}}, "set `tasks.evaluate`"),
    ],
    ids=["warm-up", "too many devices", "too few devices", "patience"],
)
def test_a_run_whose_settings_contradict_each_other_is_refused(changes: dict[str, Any], remedy: str) -> None:
    fine: dict[str, Any] = {"agent": {"command": "true"}, "tasks": {"train": "tasks.jsonl"}}
    Settings.model_validate(fine)
    with pytest.raises(ValidationError, match=remedy):
        Settings.model_validate(fine | changes)


def test_what_bends_a_ratio_of_one_too_is_taken_with_one_step_an_epoch() -> None:
    TrainingSettings.model_validate({"loss_type": "cispo", "trl": {"epsilon_high": 0.5}})
    corrected = {"importance_correction": "token_truncate", "trl": {"vespo_k_neg": 2.0}}
    TrainingSettings.model_validate({"loss_type": "vespo", **corrected})


def test_settings_survive_being_written_out_with_all_defaults() -> None:
    """A job travels to its process that way."""
    for training in ({"loss_type": "vespo"}, {"loss_type": "luspo"}, {"loss_type": "grpo", "beta": 0.1}):
        settings = TrainingSettings.model_validate(training)
        assert TrainingSettings.model_validate_json(settings.model_dump_json()) == settings
    assert TrainingSettings.model_validate({"loss_type": "luspo"}).ratio_level == "sequence"


def rates(epochs: int = 3, **training: Any) -> list[float]:
    settings = TrainingSettings.model_validate({"learning_rate": 1.0, "steps_per_epoch": 2, **training})
    return [learning_rate(settings, at, 2 * epochs, taken=at) for at in range(2 * epochs)]


def test_the_learning_rate_is_constant_unless_it_is_scheduled_over_the_run() -> None:
    assert rates() == [1.0] * 6
    assert rates(warmup_steps=4) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert rates(lr_schedule="linear") == pytest.approx([1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    assert rates(lr_schedule="linear", warmup_steps=2) == pytest.approx([0.5, 1, 1, 0.75, 0.5, 0.25])
    assert rates(lr_schedule="wsd") == pytest.approx([1, 1, 1, 1, 1, 0.5])
    assert rates(lr_schedule="wsd", warmup_steps=3) == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1])
    cosine = rates(lr_schedule="cosine")
    assert cosine[0] == 1.0 and cosine[3] == pytest.approx(0.5) and 0 < cosine[5] < 0.1


def test_a_run_that_is_made_longer_later_keeps_a_rate_above_nothing_and_past_its_end_none() -> None:
    settings = TrainingSettings.model_validate({"learning_rate": 1.0, "lr_schedule": "linear"})
    assert learning_rate(settings, 3, 4, 3) == 0.25
    assert learning_rate(settings, 3, 8, 3) == 0.625
    assert learning_rate(settings, 9, 4, 9) == 0.0


def test_the_warm_up_counts_steps_that_were_taken_and_the_schedule_the_place_in_the_run() -> None:
    settings = TrainingSettings.model_validate({"learning_rate": 1.0, "warmup_steps": 4, "lr_schedule": "linear"})
    assert [learning_rate(settings, at, 8, taken=at - 2) for at in (2, 3, 4, 5, 6, 7)] == pytest.approx(
        [0.25, 0.5, 0.75, 0.75, 0.5, 0.25]
    )


def test_the_weight_of_the_entropy_follows_its_target() -> None:
    settings = TrainingSettings.model_validate(
        {
            "trl": {
                **{"use_adaptive_entropy": True, "entropy_target": 1.0},
                **{"entropy_coef_delta": 0.1, "entropy_coef_max": 0.15},
            }
        }
    )
    bonus = EntropyBonus(settings, 0.0)
    assert bonus.weight == 0.0
    seen = []
    for entropy in (0.5, 0.5, 0.5, 2.0, 0.5):
        bonus.update(entropy)
        seen.append((round(bonus.coef, 6), round(bonus.weight, 6)))
    assert seen == [(0.1, 0.1), (0.15, 0.15), (0.15, 0.15), (0.05, 0.0), (0.15, 0.15)]
    constant = EntropyBonus(TrainingSettings.model_validate({"trl": {"entropy_coef": 0.3}}), 0.3)
    constant.update(9.0)
    assert constant.weight == 0.3
