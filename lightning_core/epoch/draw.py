"""The draw of an epoch's tasks by a sampler: SQL over the outcomes of its earlier epochs."""

from __future__ import annotations

import itertools
import json
import math

import duckdb
import pyarrow as pa

from lightning_core.config import Settings, SettingsError
from lightning_core.config.agents import LAPS
from lightning_core.epoch.epoch import Run
from lightning_core.epoch.task_file import Task
from lightning_core.lake import sql, user_sql
from lightning_core.lake.catalog import file_list
from lightning_core.lake.derived_tables import EMPTY
from lightning_core.lake.manifest import Draw, stage_key

_CONTRACT = (
    "it reads the tables `tasks` (task_id, task, kind, place), `tried` (epoch, task_id, kind, rollout_id, success, reward) and `draw` "
    "(seed, epoch), and returns the columns task_id and weight, in the order of the draw"
)


def draw(run: Run, tasks: list[Task], epoch: int) -> Draw | None:
    """Draw the tasks of a training epoch, the first of what the sampler returns: `rollout.tasks_per_epoch`, and `rollout.replaced_groups`.

    What an epoch has drawn stands, whatever the rewards become by another grader, until the tasks, the sampler, the seed or the
    rollouts of an earlier epoch are others. Returns None where tasks come in laps. Raises SettingsError for a sampler that fails.
    """
    settings, sampler = run.settings, run.settings.tasks.sampler
    if sampler in LAPS:
        return None
    earlier = [m for m in run.lake.manifests.epochs(run.run, "train") if m.epoch < epoch]
    wanted, text = settings.rollout.tasks_per_epoch + settings.rollout.replaced_groups, _text(sampler)
    contents = {task.id: json.dumps(task.content) for task in tasks}
    key = stage_key(text, settings.seed, wanted, contents, [(m.epoch, m.opened_offset) for m in earlier])
    own = run.known(epoch)
    if own is not None and own.draw is not None and own.draw.key == key:
        return own.draw
    rewards = [str(run.lake.path(m.tables["rollout_rewards"])) for m in earlier if "rollout_rewards" in m.tables]
    with run.lake.engine() as con:
        found = _ask(con, sampler, text, (settings.seed, epoch), contents, rewards)
    return Draw(key=key, weights=dict(itertools.islice(_checked(sampler, found, contents), wanted)))


def check_sampler(settings: Settings) -> None:
    """Raise SettingsError where the sampler cannot be read, does not run, or lacks a column; no task is given to it."""
    if settings.tasks.sampler not in LAPS:
        with duckdb.connect() as con:
            sql.create_shared(con)
            _ask(con, settings.tasks.sampler, _text(settings.tasks.sampler), (settings.seed, 0), {}, [])


def _ask(
    con: duckdb.DuckDBPyConnection,
    sampler: str,
    text: str,
    seeds: tuple[int, int],
    tasks: dict[str, str],
    rewards: list[str],
) -> pa.Table:
    """Run a sampler on `tasks` (id → JSON) and the files of rewards of earlier epochs. seeds: of the run, and the epoch's number."""
    strings = pa.array(list(tasks), pa.string()), pa.array(list(tasks.values()), pa.string())
    con.register("given", pa.table({"task_id": strings[0], "task": strings[1], "place": range(len(tasks))}))
    con.execute("CREATE TABLE tasks AS SELECT *, coalesce(task_kind(task), task_id) AS kind FROM given")
    con.execute("CREATE TABLE draw AS SELECT ?::BIGINT AS seed, ?::BIGINT AS epoch", seeds)
    of_all = f"read_parquet({file_list(rewards)})" if rewards else f"(SELECT {EMPTY['rollout_rewards']} LIMIT 0)"
    con.execute(
        "CREATE TABLE tried AS SELECT r.epoch, task_id, tasks.kind, r.rollout_id, r.success, r.reward "
        f"FROM {of_all} AS r JOIN tasks USING (task_id) WHERE r.left_out IS NULL AND r.mode = 'train'"
    )
    try:
        with user_sql.alone(con, ["tasks", "tried", "draw"]) as own, user_sql.asked(own, text) as answer:
            found = answer.table()
    except user_sql.QueryError as error:
        raise _wrong(sampler, str(error)) from None
    if missing := {"task_id", "weight"} - set(found.column_names):
        raise _wrong(sampler, f"no column {', '.join(sorted(missing))}")
    return found


def _checked(sampler: str, found: pa.Table, tasks: dict[str, str]) -> list[tuple[str, float]]:
    """Return tasks and weights in the order of the draw. Raises SettingsError for what no epoch can be made of."""
    rows = list(zip(found["task_id"].to_pylist(), found["weight"].to_pylist(), strict=True))
    if not rows:
        raise _wrong(sampler, "it draws no task")
    seen: set[str] = set()
    for name, weight in rows:
        if name not in tasks:
            raise _wrong(sampler, f"there is no task {name!r}")
        if name in seen:
            raise _wrong(sampler, f"two rows for task {name!r}")
        if not isinstance(weight, int | float) or not math.isfinite(weight) or weight <= 0:
            raise _wrong(sampler, f"the weight of task {name!r} is {weight}; give a number above 0")
        seen.add(name)
    return rows


def _text(sampler: str) -> str:
    if not sampler.endswith(".sql"):
        return sql.text(f"plan/{sampler}")
    return user_sql.read(sampler, "tasks.sampler")


def _wrong(sampler: str, what: str) -> SettingsError:
    return SettingsError(f"tasks.sampler: {sampler}: {what}; {_CONTRACT}")
