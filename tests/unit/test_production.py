"""Which rollouts of production agents an epoch learns from."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from lightning_core.config import SettingsError
from lightning_core.epoch.epoch import Epoch
from lightning_core.epoch.production import Choice, Chosen, choose
from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import EpochManifest
from tests.lake_maker import SECOND, Attempt, derived, settings

pytestmark = pytest.mark.slow  # many lakes

EPOCH = EpochManifest(run="learner", epoch=3, opened_offset=0)


def sent(name: str, start: float = 100.0, **columns: Any) -> Attempt:
    """What an agent in production leaves: a call with its tokens and a span of its own, and no root."""
    attempt = Attempt(rollout=name, attempt="1", start=start)
    attempt.call([1, 2], [3], **columns)
    attempt.span("work", attributes=[("user.tier", "paid"), ("ticket", name[0])], resource=[("env", "prod")])
    return attempt


def learning(home: Path) -> Epoch:
    return Epoch(settings(home).model_copy(update={"run": EPOCH.run}), EPOCH)


def chosen(home: Path, attempts: list[Attempt], choice: Choice, now_s: float = 10_000.0) -> Chosen:
    rows = [row for attempt in attempts for row in attempt.rows]
    for place, row in enumerate(rows):
        row["record_offset"] = place
    derived(home, rows)
    return choose(learning(home), choice, int(now_s * SECOND))


def names(found: Chosen) -> list[str]:
    return [row["rollout_id"] for row in found.rollouts]


def test_what_was_sent_is_learned_from_and_what_a_run_rolled_out_is_not_even_counted(tmp_path: Path) -> None:
    ours = Attempt(rollout="run.0000.a.0")
    ours.span("rollout.start", op="rollout.start", run="run", epoch=0, mode="train")
    ours.call([1], [2])
    ours.root()
    found = chosen(tmp_path, [sent("a"), sent("b"), ours], Choice())
    assert names(found) == ["a", "b"]
    assert found.left_out == {}
    assert [row["first_offset"] for row in found.rollouts] == [0, 2]
    assert [row["group_id"] for row in found.rollouts] == ["a", "b"]


@pytest.mark.parametrize(
    ("choice", "taken", "left_out"),
    [
        (Choice(since=datetime.fromtimestamp(200, UTC)), ["late"], {"time": 2}),
        (Choice(until=datetime.fromtimestamp(200, UTC)), ["a1", "a2"], {"time": 1}),
        (Choice(attributes={"user.tier": "paid", "env": "prod"}), ["a1", "a2", "late"], {}),
        (Choice(attributes={"user.tier": "free"}), [], {"attributes": 3}),
        (Choice(attributes={"user.tier": "paid", "env": "test"}), [], {"attributes": 3}),
        (Choice(where="name = 'work' AND attributes['ticket'] = 'a'"), ["a1", "a2"], {"filter": 1}),
        (Choice(silent_s=9_700), ["a1", "a2"], {"not_over": 1}),
    ],
)
def test_a_rollout_is_chosen_by_time_attributes_and_sql_and_what_is_not_is_counted(
    tmp_path: Path, choice: Choice, taken: list[str], left_out: dict[str, int]
) -> None:
    found = chosen(tmp_path, [sent("a1"), sent("a2"), sent("late", start=1_000.0)], choice)
    assert names(found) == taken
    assert found.left_out == left_out


def test_the_value_of_an_attribute_makes_the_groups(tmp_path: Path) -> None:
    found = chosen(tmp_path, [sent("a1"), sent("a2"), sent("b1")], Choice(group_by="ticket"))
    assert [row["group_id"] for row in found.rollouts] == ["a", "a", "b"]


def test_a_rollout_is_learned_from_once_and_a_killed_try_takes_its_own_again(tmp_path: Path) -> None:
    mine, others = sent("mine"), sent("others")
    mine.root(run="learner", epoch=3)
    others.root(run="learner", epoch=2)
    found = chosen(tmp_path, [mine, others, sent("new")], Choice())
    assert [(row["rollout_id"], row["adopted"]) for row in found.rollouts] == [("mine", True), ("new", False)]
    assert found.left_out == {"learned_from": 1}


def test_without_token_ids_there_is_nothing_to_learn(tmp_path: Path) -> None:
    found = chosen(tmp_path, [sent("a", response_ids=None, response_logprobs=None)], Choice())
    assert found.left_out == {"no_sampled_call": 1}


def test_a_condition_that_is_no_sql_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"where: 'reward >' is no condition on spans"):
        chosen(tmp_path, [sent("a")], Choice(where="reward >"))


def test_an_empty_lake_has_nothing_to_learn_from(tmp_path: Path) -> None:
    Lake(tmp_path).root.mkdir()
    assert choose(learning(tmp_path), Choice(), 0) == Chosen([], {})  # type: ignore[arg-type]


def opened(name: str, sampled: bool = True, **columns: Any) -> Attempt:
    """A rollout that its agent opened at the gateway at 100 s."""
    attempt = Attempt(rollout=name, attempt="1", start=100.0)
    attempt.span("rollout.opened", (0, 0), op="rollout.opened", sender="gateway", **columns)
    if sampled:
        attempt.call([1, 2], [3], output_messages="[]")
    return attempt


def ended(attempt: Attempt, at: float, outcome: str = "ok", **columns: Any) -> Attempt:
    attempt.span("rollout.ended", (at, at), op="rollout.ended", sender="gateway", outcome=outcome, **columns)
    return attempt


def test_what_it_was_opened_and_ended_with_is_the_rollouts_and_the_first_end_counts(tmp_path: Path) -> None:
    task: dict[str, Any] = {"group_id": "g", "task_id": "t1", "task": '{"q":1}'}
    twice = ended(opened("twice", **task), 5, outcome="error", error="broke")
    ended(twice, 9, output='"other"')
    twice.reward(1.0, at=60.0)
    found = chosen(tmp_path, [twice, ended(opened("once", group_id="g"), 5, output='"mine"'), opened("left")], Choice())
    keys = ("rollout_id", "group_id", "task_id", "task", "outcome", "error", "output", "reply")
    assert [tuple(row[key] for key in keys) for row in found.rollouts] == [
        ("left", "left", None, None, "ok", None, None, "[]"),
        ("once", "g", None, None, "ok", None, '"mine"', "[]"),
        ("twice", "g", "t1", '{"q":1}', "error", "broke", None, "[]"),
    ]
    times = {row["rollout_id"]: (row["start_ns"] // SECOND, row["end_ns"] // SECOND) for row in found.rollouts}
    assert times == {"left": (100, 100), "once": (100, 105), "twice": (100, 105)}


def test_an_attribute_makes_the_groups_also_of_rollouts_that_were_opened_with_one(tmp_path: Path) -> None:
    found = chosen(tmp_path, [opened("a", group_id="g"), sent("b1")], Choice(group_by="ticket"))
    assert [row["group_id"] for row in found.rollouts] == ["a", "b"]


def test_a_rollout_that_ended_is_over_at_once_and_one_that_is_open_once_it_is_silent(tmp_path: Path) -> None:
    found = chosen(tmp_path, [ended(opened("done"), 5), opened("open")], Choice(), now_s=110.0)
    assert (names(found), found.left_out) == (["done"], {"not_over": 1})


def test_a_failure_before_the_first_call_is_learned_from_and_a_success_without_a_call_is_not(tmp_path: Path) -> None:
    made = [ended(opened(o, sampled=False), 5, outcome=o) for o in ("ok", "error", "timeout")]
    found = chosen(tmp_path, [*made, opened("open", sampled=False)], Choice())
    assert (names(found), found.left_out) == (["error", "timeout"], {"no_sampled_call": 2})
