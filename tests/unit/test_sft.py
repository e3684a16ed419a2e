"""Supervised fine-tuning: which rollouts are examples, and that TRL trains on exactly their sampled tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from lightning_core.config import PolicySettings
from lightning_core.epoch.derive_inputs import make_advantages
from lightning_core.training.job import Job, Progress
from lightning_core.training.train_job import run_job
from tests import sql_rig
from tests.lake_maker import settings
from tests.tiny_model import make_tiny_llama
from tests.training_data import one_thread, random_group, write_parquet

pytestmark = pytest.mark.slow  # it trains


@pytest.fixture(autouse=True, scope="module")
def threads() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("model"))


def make_job(folder: Path, base: Path, rows: list[Any], epoch: int = 0, **policy: Any) -> Job:
    return Job.model_validate(
        {
            "run": "r",
            "epoch": epoch,
            "made_in": epoch - 1 if epoch else None,
            "policy": "policy",
            "policy_settings": {"algorithm": "sft"} | policy,
            "base_model": base,
            "sequences": write_parquet(rows, folder / f"sequences-{epoch}.parquet"),
            "output": folder / f"v{epoch}",
            "state": folder / "state",
            "progress": folder / "progress.jsonl",
        }
    )


def chosen(tmp_path: Path, rewards: dict[str, list[float]], **sft: Any) -> dict[str, str | None]:
    """Rollout → why it is no example, by the SQL."""
    changes = {"algorithm": "sft", "sft": sft}
    con = sql_rig.connection(tmp_path, **changes)
    calls = [
        {"policy": "policy", "group_id": group, "rollout_id": f"{group}.{n}", "attempt_id": "a", "agent": "", "step": 0}
        | {"call_id": 100 * ord(group) + n, "reward": reward, "return": reward}
        for group, of_group in rewards.items()
        for n, reward in enumerate(of_group)
    ]
    sql_rig.put(con, "call_returns", sql_rig.RETURNS, calls)
    make_advantages(con, settings(tmp_path, **changes).policies)
    rows = sql_rig.rows(con, "FROM advantages")
    assert {row["advantage"] for row in rows} <= {1.0, None}
    assert all((row["advantage"] is None) == (row["left_out"] is not None) for row in rows)
    return {row["rollout_id"]: row["left_out"] for row in rows}


def test_the_best_of_each_group_are_examples_and_of_equals_the_first(tmp_path: Path) -> None:
    rewards = {"g": [0.2, 0.9, 0.9], "h": [0.0, 0.0]}
    assert chosen(tmp_path, rewards) == {
        "g.0": "not_best_of_group",
        "g.1": None,
        "g.2": "not_best_of_group",
        "h.0": None,
        "h.1": "not_best_of_group",
    }
    assert [r for r, why in chosen(tmp_path, rewards, best=2).items() if why is None] == ["g.1", "g.2", "h.0", "h.1"]


def test_below_the_threshold_nothing_is_an_example_and_without_a_limit_all_above_are(tmp_path: Path) -> None:
    rewards = {"g": [0.2, 0.9, 0.8, 0.5], "h": [0.1, 0.0]}
    found = chosen(tmp_path, rewards, best=None, min_reward=0.5)
    assert [r for r, why in found.items() if why is None] == ["g.1", "g.2", "g.3"]
    assert {found[r] for r in ("g.0", "h.0", "h.1")} == {"below_min_reward"}
    assert chosen(tmp_path, rewards, best=1, min_reward=0.5)["g.2"] == "not_best_of_group"


def test_a_group_without_spread_gives_an_example_too(tmp_path: Path) -> None:
    assert chosen(tmp_path, {"g": [1.0, 1.0]}) == {"g.0": None, "g.1": "not_best_of_group"}


@pytest.mark.parametrize(
    ("policy", "what"),
    [
        ({"algorithm": "sft", "advantages": "rloo"}, "advantages"),
        ({"algorithm": "sft", "min_spread": 0.5}, "min_spread"),
        ({"algorithm": "sft", "training": {"beta": 0.1}}, "training.beta"),
        (
            {"algorithm": "sft", "training": {"loss_type": "grpo", "trl": {"epsilon": 0.1}, "steps_per_epoch": 2}},
            "training.loss_type, training.trl.epsilon",
        ),
        ({"sft": {}}, "only `algorithm: sft` reads `sft:`"),
    ],
)
def test_settings_that_the_algorithm_ignores_are_an_error(policy: dict[str, Any], what: str) -> None:
    with pytest.raises(ValidationError, match=what):
        PolicySettings.model_validate(policy)


def test_settings_of_sft_survive_a_journey_as_json() -> None:
    policy = PolicySettings.model_validate(
        {"algorithm": "sft", "sft": {"best": 2}, "training": {"learning_rate": 1e-3}}
    )
    assert PolicySettings.model_validate_json(policy.model_dump_json()) == policy


def test_every_sampled_token_is_trained_once_a_pass(tmp_path: Path, base: Path) -> None:
    rows = [s for name in "abcde" for s in random_group(name, 3, np.random.default_rng(ord(name)))]
    training = {"steps_per_epoch": 2, "tokens_per_micro_batch": 64}
    result = run_job(
        job := make_job(tmp_path, base, rows, sft={"passes": 2}, training=training), Progress(job.progress)
    )
    lines = [json.loads(line) for line in job.progress.read_text().splitlines()]
    steps = [line for line in lines if "step" in line]
    assert len(steps) == result["steps"] == 4
    assert sum(line["trained_tokens"] for line in steps) == 2 * sum(s.trained_tokens for s in rows)


def test_the_loss_is_the_mean_negative_log_likelihood_of_the_sampled_tokens(tmp_path: Path, base: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    rows = [s for name in "abc" for s in random_group(name, 3, np.random.default_rng(ord(name)))]
    job = make_job(tmp_path, base, rows, training={"tokens_per_micro_batch": 64, "learning_rate": 1e-3})
    result = run_job(job, Progress(job.progress))

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    total, tokens = 0.0, 0
    with torch.no_grad():
        for s in rows:
            ids = torch.from_numpy(s.token_ids.astype(np.int64))[None]
            logps = model(ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
            mask = torch.from_numpy(s.loss_mask[1:])
            total, tokens = total - float(logps[mask].sum()), tokens + int(mask.sum())
    assert result["loss"] == pytest.approx(total / tokens, abs=1e-5)
    assert (result["steps"], result["sequences"], result["trained_tokens"]) == (1, 9, tokens)
    assert result["tokens_per_s"] > 0
    lines = [json.loads(line) for line in job.progress.read_text().splitlines()]
    assert [line["step"] for line in lines if "step" in line] == [1]


@pytest.mark.parametrize("policy", [{}, {"lora": {"rank": 4, "alpha": 8}}], ids=["full", "lora"])
def test_training_makes_the_examples_likelier_and_goes_on_with_its_optimizer(
    tmp_path: Path, base: Path, policy: dict[str, Any]
) -> None:
    rows = random_group("a", 3, np.random.default_rng(1))
    settings: dict[str, Any] = {"training": {"learning_rate": 1e-2 if policy else 1e-3}, "sft": {"passes": 4}} | policy
    first = make_job(tmp_path, base, rows, **settings)
    before = run_job(first, Progress(first.progress))
    assert before["steps"] == before["step"] == 4
    second = make_job(tmp_path, base, rows, epoch=1, **settings).model_copy(update={"weights": first.output})
    after = run_job(second, Progress(second.progress))
    assert after["loss"] < before["loss"]
    assert after["step"] == 8, "the count of steps, and AdamW's state, go on"


def test_a_setting_of_today_wins_over_the_one_that_was_saved_with_the_moments(tmp_path: Path, base: Path) -> None:
    rows = random_group("a", 3, np.random.default_rng(1))
    first = make_job(tmp_path, base, rows, training={"learning_rate": 1e-3})
    run_job(first, Progress(first.progress))
    made = []
    for decay in (0.0, 10.0):
        training = {"learning_rate": 1e-3, "trl": {"weight_decay": decay}}
        job = make_job(tmp_path, base, rows, epoch=1, training=training)
        run_job(job, Progress(job.progress))
        made.append((job.output / "model.safetensors").read_bytes())
    assert made[0] != made[1]
