"""Table `training_rows`: what the trainer writes of each token, and what view `learned_from` makes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_core.training.dataset import read_sequences
from lightning_core.training.job import Job, Progress
from lightning_core.training.token_rows import training_rows
from lightning_core.training.train_job import run_job
from tests import analysis_lake
from tests.analysis_lake import rollout
from tests.lake_maker import derived, trained
from tests.page_rig import open_page, visible
from tests.training_data import one_thread
from tests.unit.test_training_job import base, lines, make_job, sequences
from tests.view_rig import ask

__all__ = ["base", "make_job", "sequences"]  # fixtures

pytestmark = pytest.mark.slow  # it trains


@pytest.fixture(scope="module", autouse=True)
def _trl() -> Iterator[None]:
    with one_thread():
        yield


_LISTS = ("logprobs", "entropies", "ratios", "loss_weights", "clipped")
KINDS: dict[str, dict[str, Any]] = {
    "token": {"trl": {"epsilon": 1e-3}},
    "sequence": {
        "loss_type": "grpo",
        "trl": {"epsilon": 1e-4, "importance_sampling_level": "sequence"},
        "packing": "none",
    },
    "cispo": {"loss_type": "cispo", "trl": {"epsilon_high": 1.0005}},
    "corrected": {"normalization": "rollout", "importance_correction": "token_truncate", "trl": {"epsilon": 1e-3}},
    "uncertain": {"trl": {"top_entropy_quantile": 0.5, "epsilon": 1e-3}},
}


@pytest.mark.parametrize("training", KINDS.values(), ids=KINDS)
def test_each_step_has_a_row_of_each_sequence_whose_means_are_the_steps_own(
    make_job: Callable[..., Job], training: dict[str, Any]
) -> None:
    always = {"learning_rate": 1e-2, "steps_per_epoch": 3, "tokens_per_micro_batch": 64, "max_mismatch": None}
    job = make_job(0, training=always | training)
    run_job(job, Progress(job.progress))
    known = {
        s.sequence_id: s for s in read_sequences(job.sequences, policy="policy", vocabulary=300, max_tokens=512).rows
    }
    made = training_rows(job.state)
    assert made is not None
    rows = made.to_pylist()
    assert sorted(row["sequence_id"] for row in rows) == sorted(known), "each in one step, in one pass"
    steps = {line["step"]: line for line in lines(job) if "step" in line}
    assert {row["step"] for row in rows} == set(steps)
    clipped = 0
    for step, said in steps.items():
        mine = [row for row in rows if row["step"] == step]
        assert all(len(row[name]) == known[row["sequence_id"]].trained_tokens for row in mine for name in _LISTS)

        def whole(name: str, mine: list[dict[str, Any]] = mine) -> np.ndarray:
            return np.concatenate([row[name] for row in mine])

        sampled = np.concatenate([s.logprobs[s.loss_mask] for s in (known[row["sequence_id"]] for row in mine)])
        assert said["entropy"] == pytest.approx(whole("entropies").mean(), rel=1e-4)
        assert said["mismatch"] == pytest.approx(np.abs(whole("logprobs") - sampled).mean(), rel=1e-4)
        weights = whole("loss_weights")
        if training is KINDS["uncertain"]:
            assert 0 < (weights > 0).sum() < len(weights) and weights.sum() < 1
        elif training is not KINDS["corrected"]:
            assert weights.sum() == pytest.approx(1, rel=1e-4), "a mean over the step"
        if training is KINDS["sequence"]:
            assert all(len({*zip(row["ratios"], row["clipped"], strict=True)}) == 1 for row in mine)
        elif training in (KINDS["token"], KINDS["cispo"]):
            assert said["clip_ratio"] == pytest.approx((whole("clipped") * weights).sum(), abs=1e-5)
        clipped += whole("clipped").sum()
    assert (clipped > 0) == (training is not KINDS["sequence"]), "whose means are on the right side"
    if training is KINDS["corrected"]:
        first = [row for row in rows if row["step"] == 1]
        assert all(row["ratios"] == pytest.approx([1.0] * len(row["ratios"])) for row in first)


def test_a_held_out_task_that_flipped_has_what_was_trained_in_between_and_how_sure_that_is(tmp_path: Path) -> None:
    """Of four held-out tasks three are learned and one forgotten; a planner is pushed on two tasks, a coder on one."""
    made = [rollout(n, float(n % 2), 0, "train", n // 2, "ab"[n // 2], task=KIND["ab"[n // 2]]) for n in range(4)]
    right = {"one": (0, 1), "two": (0, 1), "three": (0, 1), "four": (1, 0), "five": (1, 1)}
    for number, (task, results) in enumerate(right.items()):
        for epoch, result in enumerate(results):
            of_task: Any = {"task_id": task, "task": KIND["a" if number < 2 else "b"]}
            made.append(rollout(10 + 2 * number + epoch, float(result), epoch, "evaluate", **of_task))
    lake, _ = derived(tmp_path, [row for attempt in made for row in attempt.rows])
    analysis_lake.derive_epochs(lake, [("run", 0, "train"), ("run", 0, "evaluate"), ("run", 1, "evaluate")])
    assert ask(lake, "FROM learned_from") == [], "before anything was trained"
    trained(lake)
    found = ask(lake, "FROM learned_from")
    assert {(row["task_id"], row["became"]) for row in found} == {
        ("one", "learned"), ("two", "learned"), ("three", "learned"), ("four", "forgotten"),
    }  # fmt: skip
    assert {row["became"]: row["sure"] for row in found} == {"learned": pytest.approx(2 / 3), "forgotten": 0.0}
    of_one = [row for row in found if row["task_id"] == "one"]
    assert [(row["since"], row["epoch"], row["kind_learned"], row["kind_forgotten"]) for row in of_one] == [
        (0, 1, 2, 0)
    ] * len(of_one)
    by = {(row["trained_task_id"], row["agent"]): row for row in of_one}
    assert set(by) == {("a", "planner"), ("b", "planner"), ("b", "coder")}
    assert [by[key]["same_kind"] for key in sorted(by)] == [True, False, False]
    assert sum(row["size_share"] for row in of_one) == pytest.approx(1)
    # Two sampled tokens of each of two rollouts, 0.5 above and below the mean, the deviation is √0.5; the better is clipped.
    assert by["a", "planner"]["tokens"] == 4
    assert by["a", "planner"]["push"] == pytest.approx(2 * -(0.5**0.5) * 1.1 * 0.1, rel=1e-3)
    with open_page(tmp_path) as page:
        said = visible(page.get("/run/run/task/one").text)
    assert "learned between the evaluations before training and after epoch 0 0.0% → 100.0% right" in said
    assert "66.7% are more than chance explains" in said and "Of its kind, +, 2 were learned and 0 forgotten" in said
    assert said.index("+ policy planner") < said.index("Rollouts"), said


KIND = {"a": '{"question": "1 + 1", "kind": "+"}', "b": '{"question": "2 * 2", "kind": "*"}'}
