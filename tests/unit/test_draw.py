"""Which tasks an epoch draws by a sampler: SQL over what earlier epochs came to."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import pytest

from lightning_core.config import Settings, SettingsError
from lightning_core.epoch.draw import check_sampler
from lightning_core.epoch.epoch import Run
from lightning_core.epoch.plan import PlannedRollout, plan_training
from lightning_core.epoch.task_file import Task
from lightning_core.lake import sql
from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import Draw
from tests.lake_maker import Attempt, derived

KINDS = [Task(f"{kind}{n}", {"kind": kind}) for n in range(20) for kind in "abc"]
ALONE = [Task(str(n), {}) for n in range(6)]


def tried(home: Path, solved: dict[str, int], tries: int = 4, **changes: Any) -> Lake:
    """Epoch 0: `tries` rollouts of each task, so many of which `solved` it."""
    rows = []
    for name, right in solved.items():
        for number in range(tries):
            attempt = Attempt(rollout=f"{name}.{number}", group=name)
            attempt.reward(float(number < right))
            attempt.root(task_id=name)
            rows += attempt.rows
    lake, _ = derived(home, [row | {"record_offset": place} for place, row in enumerate(rows)], **changes)
    return lake


def plan(
    home: Path, tasks: list[Task], wanted: int, epoch: int = 1, sampler: str = "unsolved", seed: int = 0
) -> list[PlannedRollout]:
    """A rollout of each group."""
    settings = {
        "agent": {"callable": "a:b"},
        "run": "run",
        "home": home,
        "seed": seed,
        "tasks": {"train": "t.jsonl", "sampler": sampler},
        "rollout": {"tasks_per_epoch": wanted, "group_size": 2},
    }
    return plan_training(Run(Settings.model_validate(settings)), tasks, epoch)[::2]


def drawn(*args: Any, **kwargs: Any) -> list[str]:
    return [rollout.task.id for rollout in plan(*args, **kwargs)]


def test_kinds_take_turns_by_the_share_of_their_tries_that_failed(tmp_path: Path) -> None:
    tried(tmp_path, {"a0": 4, "a1": 4, "b0": 2, "b1": 2, "c0": 0, "c1": 0})
    rollouts = plan(tmp_path, KINDS, 30)
    counts = Counter(rollout.task.id[0] for rollout in rollouts)
    assert 17 <= counts["c"] <= 19 and 9 <= counts["b"] <= 11 and 1 <= counts["a"] <= 3, "weights of 1, 5/9 and 1/9"
    assert rollouts[0].draw is not None
    weights = {name[0]: weight for name, weight in rollouts[0].draw.weights.items()}
    assert weights == pytest.approx({"a": 1 / 9, "b": 5 / 9, "c": 1.0})
    assert drawn(tmp_path, KINDS, 30) == [rollout.task.id for rollout in rollouts], "seeded"
    assert drawn(tmp_path, KINDS, 30, seed=1) != [rollout.task.id for rollout in rollouts]


def test_before_anything_was_tried_kinds_are_drawn_alike(tmp_path: Path) -> None:
    assert set(Counter(name[0] for name in drawn(tmp_path, KINDS, 30, epoch=0)).values()) <= {9, 10, 11}


def test_within_a_kind_tasks_that_were_tried_come_last(tmp_path: Path) -> None:
    names = [f"a{n}" for n in range(5)]
    tried(tmp_path, dict.fromkeys(names, 2))
    of_a = [name for name in drawn(tmp_path, KINDS, 60) if name.startswith("a")]
    assert set(of_a[-5:]) == set(names)


def test_a_try_counts_half_with_every_later_epoch_that_tried_its_kind() -> None:
    with duckdb.connect() as con:
        con.execute(
            "CREATE TABLE tasks AS SELECT kind AS task_id, kind, 0 AS place FROM range(1), unnest(['a', 'b']) AS t(kind)"
        )
        con.execute("CREATE TABLE draw AS SELECT 0 AS seed, 9 AS epoch")
        con.execute(
            "CREATE TABLE tried AS SELECT * FROM (VALUES ('a', 0, true), ('b', 0, true), ('b', 1, false), ('b', 8, false)) AS t(kind, epoch, success)"
        )
        con.execute("ALTER TABLE tried ADD COLUMN task_id VARCHAR DEFAULT 'a'")
        weights = {name: weight for name, weight in con.execute(sql.text("plan/unsolved")).fetchall()}
    assert weights == pytest.approx({"a": 1 - 1 / 2, "b": 1 - 0.25 / 2.75}), "eight epochs without a try change nothing"


def test_a_task_without_a_kind_is_a_kind_of_its_own(tmp_path: Path) -> None:
    tried(tmp_path, {"1": 4, "2": 0, "gone": 0})
    draw = plan(tmp_path, ALONE, 6)[0].draw
    assert draw is not None and draw.weights == pytest.approx(dict.fromkeys("02345", 1.0) | {"1": 0.2})
    first = [drawn(tmp_path, ALONE, 1, seed=seed)[0] for seed in range(25)]
    assert len(set(first)) > 3 and first.count("1") <= 3


def test_a_rollout_without_a_reward_says_nothing_of_its_task(tmp_path: Path) -> None:
    failed = Attempt(rollout="1.0", group="1")
    failed.root(task_id="1", outcome="error")
    derived(tmp_path, [row | {"record_offset": place} for place, row in enumerate(failed.rows)], failure_reward=None)
    draw = plan(tmp_path, ALONE, 6)[0].draw
    assert draw is not None and set(draw.weights.values()) == {1.0}


def test_what_an_epoch_has_drawn_stands_until_one_before_it_has_other_rollouts(tmp_path: Path) -> None:
    lake = tried(tmp_path, {"1": 2, "2": 0})
    rollouts = plan(tmp_path, ALONE, 3)
    own, before = lake.open_epoch("run", 1, "train", {}), lake.manifests.epoch("run", 0)
    assert before is not None and rollouts[0].draw is not None
    other = Draw(key=rollouts[0].draw.key, weights={"5": 1.0, "4": 0.5, "1": 0.25})
    own.draw = other
    lake.manifests.put_epoch(own)
    assert drawn(tmp_path, ALONE, 3) == ["5", "4", "1"], "whatever the rewards have become"
    assert drawn(tmp_path, ALONE[:5], 2) != ["5", "4"]
    before.opened_offset = 1  # as where it begins anew
    lake.manifests.put_epoch(before)
    assert drawn(tmp_path, ALONE, 3) == [rollout.task.id for rollout in rollouts]


def test_an_epoch_of_more_tasks_than_there_are_begins_again_with_the_first(tmp_path: Path) -> None:
    rollouts = plan(tmp_path, ALONE[:2], 5, epoch=0)
    names = [rollout.task.id for rollout in rollouts]
    assert names == [*names[:2], *names[:2], names[0]] and len({rollout.rollout_id for rollout in rollouts}) == 5


def test_a_sampler_of_ones_own_reads_tasks_and_tries(tmp_path: Path) -> None:
    tried(tmp_path, {"1": 4, "2": 0, "3": 2})
    file = tmp_path / "least.sql"
    file.write_text(
        "SELECT task_id, 1 + avg(success::INT) AS weight FROM tasks JOIN tried USING (task_id) GROUP BY ALL ORDER BY avg(reward) DESC;"
    )
    rollouts = plan(tmp_path, ALONE, 2, sampler=str(file))
    assert rollouts[0].draw is not None and list(rollouts[0].draw.weights.items()) == [("1", 2.0), ("3", 1.5)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SELECT task_id FROM tasks", "no column weight"),
        ("SELECT task_id, 1 AS weight FROM tasks WHERE false", "it draws no task"),
        ("SELECT task_id, 0 AS weight FROM tasks", "the weight of task '0' is 0; give a number above 0"),
        ("SELECT task_id, 'much' AS weight FROM tasks", "the weight of task '0' is much"),
        ("SELECT 'x' AS task_id, 1 AS weight", "there is no task 'x'"),
        ("SELECT '1' AS task_id, 1 AS weight FROM tasks", "two rows for task '1'"),
        ("SELECT task_id, 1 AS weight FROM task", "Table with name task does not exist"),
        ("DROP TABLE tasks", "one SELECT is run"),
    ],
)
def test_a_sampler_that_draws_no_tasks_is_named_with_what_is_asked_of_it(
    tmp_path: Path, text: str, message: str
) -> None:
    file = tmp_path / "own.sql"
    file.write_text(text)
    with pytest.raises(SettingsError) as error:
        plan(tmp_path, ALONE, 2, sampler=str(file))
    assert message in str(error.value) and "tasks.sampler: " in str(error.value)
    assert "the columns task_id and weight, in the order of the draw" in str(error.value)


def test_a_sampler_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"tasks\.sampler: .*none\.sql: cannot be read \(No such file"):
        plan(tmp_path, ALONE, 2, sampler=str(tmp_path / "none.sql"))
    with pytest.raises(ValueError, match=r"neither one of shuffled, in_order, unsolved nor a \.sql file"):
        plan(tmp_path, ALONE, 2, sampler="best")


def test_a_manifest_with_tasks_that_an_older_version_tried_again_is_read(tmp_path: Path) -> None:
    lake = tried(tmp_path, {"1": 2})
    epoch = lake.manifests.epoch("run", 0)
    assert epoch is not None
    older = epoch.model_dump() | {"again": {"after": 0, "tasks": ["1"]}, "repeated": ["run.0000.1"]}
    assert type(epoch).model_validate(older) == epoch


def test_a_sampler_is_looked_at_before_a_run_without_its_tasks(tmp_path: Path) -> None:
    def look(sampler: str) -> None:
        check_sampler(
            Settings.model_validate({"agent": {"callable": "a:b"}, "tasks": {"train": "t", "sampler": sampler}})
        )

    file = tmp_path / "own.sql"
    file.write_text("SELECT task_id, 1 AS weight FROM tasks JOIN tried USING (task_id)")
    look(str(file))
    look("unsolved")
    file.write_text("SELECT task_id FROM tasks")
    with pytest.raises(SettingsError, match="no column weight"):
        look(str(file))
