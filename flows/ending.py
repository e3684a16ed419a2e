"""What a run prints at its end: results, answers before and after, and the next commands."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from rich.table import Table

from lightning_core.config import Settings
from lightning_core.epoch.epoch import Run
from lightning_core.epoch.gain import Gain, Outcome, outcome
from lightning_core.epoch.held_out import percents
from lightning_core.epoch.report import epoch_rows, policy_rows
from lightning_core.events import when
from lightning_core.lake.conversation import json_or_text
from lightning_core.policies.space import taken_line
from lightning_core.policies.store import BASE_VERSION
from lightning_core.tracking.mlflow_backend import tracking_uri
from lightning_flows.flows.demo import table
from lightning_flows.flows.tables import as_table, cell, report_console

_LONGEST = 160  # characters of a task or an answer
_FEW = 10  # held-out tasks: with fewer the interval, a normal one, means nothing

Command = tuple[str, str]  # what it is for, and the command


def print_ending(settings: Settings, file: Path, assignments: tuple[str, ...], took: str = "") -> None:
    """Print the end of a run to stdout, from its table on; `file` and `assignments` are what the command was given."""
    run = Run(settings)
    rows, found, console = epoch_rows(run), outcome(run), report_console()
    console.print(table(rows, f"run {settings.run}", console.width))
    if len(settings.policies) > 1:
        console.print(policy_table(policy_rows(run), f"policies of run {settings.run}"))
    lines = [took] if took else []
    lines += [taken_line(settings.home), ""]
    lines += ["What came of it:", *came_of_it(found, rows)]
    if found is not None and found.answers:
        lines += ["", *answers(found)]
    lines += ["", "What next:"]
    for what, command in next_commands(run, file, assignments):
        lines += [f"  {what}", f"    {command}"]
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


def policy_table(rows: list[dict[str, Any]], title: str) -> Table:
    """Return each policy in each epoch (rows of policy_rows) as a table for the terminal."""
    cells = [
        {
            "epoch": row["epoch"],
            "policy": row["policy"],
            "sampled from": row["version"],
            "trained": row["trained_version"],
            "calls": row["calls"],
            "trained on": row["trained_calls"],
            "sequences": row["sequences"],
            "return": cell(row["mean_return"], ".3f"),
            "lag": row["lag"],
            "why not": row["skipped"],
        }
        for row in rows
    ]
    return as_table(cells, title, "return: mean of what the policy's calls were rewarded with", ("policy", "why not"))


def came_of_it(found: Outcome | None, rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield lines on the held-out share and reward before and after, and on the reward in training.

    They also report whether the change may be chance.
    """
    if found is None:
        yield "  No held-out tasks were tried (tasks.evaluate), so nobody knows whether it helped."
    elif found.since == found.epoch:
        yield f"  Held-out, {when(found.epoch)}: {found.after}. There is no other evaluation to compare it with."
    else:
        before, after = found.before, found.after
        yield (
            f"  Held-out tasks right: {_share(before.right, before.interval)} {when(found.since)} → "
            f"{_share(after.right, after.interval)} {when(found.epoch)}; {after.tasks} tasks."
        )
        if found.gain is not None and before.reward is not None and after.reward is not None:
            yield f"  Held-out reward: {before.reward:.3f} → {after.reward:.3f}. {verdict(found.gain)}"
    for key, name in (("mean_reward", "Reward in training"), ("reward_uniform", "If all tasks were drawn alike")):
        means = [(row["epoch"], row[key]) for row in rows if row.get(key) is not None]
        if len(means) > 1:
            (first, begun), (last, ended) = means[0], means[-1]
            yield f"  {name}: {begun:.3f} in epoch {first} → {ended:.3f} in epoch {last}."


def verdict(gain: Gain) -> str:
    """Return a sentence on whether a change of the held-out reward differs from chance."""
    if gain.tasks < _FEW or gain.low is None or gain.high is None:
        return f"Tasks: {gain.tasks}, too few to tell a change from chance; try more (evaluation.limit)."
    change = f"{gain.gained:+.3f} a task (95%: {gain.low:+.3f} to {gain.high:+.3f})"
    if gain.low > 0:
        return f"It rose by more than chance explains: {change}."
    if gain.high < 0:
        return f"It fell by more than chance explains: {change}."
    return f"That may be chance: {change}; more held-out tasks say more (evaluation.limit)."


def answers(found: Outcome) -> Iterator[str]:
    """Yield lines on some held-out tasks, each with what the agent answered in the first evaluation and in the last."""
    yield f"Held-out tasks, answered {when(found.since)} and {when(found.epoch)}:"
    for answer in found.answers:
        yield f"  {answer.task_id}: {_short(answer.task)}"
        yield f"    before, reward {answer.reward_before:.2f}: {_answer(answer.output_before, answer.error_before)}"
        yield f"    after,  reward {answer.reward_after:.2f}: {_answer(answer.output_after, answer.error_after)}"


def next_commands(run: Run, file: Path, assignments: tuple[str, ...]) -> Iterator[Command]:
    """Yield commands to export the model, serve it and look at it.

    Each works as it is printed, in the folder that the run was started in.
    """
    settings = run.settings
    home, tools = shlex.quote(str(settings.home)), Path(sys.executable).parent
    if tools.is_relative_to(Path.cwd()):
        tools = tools.relative_to(Path.cwd())
    if file.is_relative_to(Path.cwd()):
        file = file.relative_to(Path.cwd())
    flows, mlflow, prefect = (shlex.quote(str(tools / name)) for name in ("lightning-flows", "mlflow", "prefect"))
    for name, version, best in _versions(run):
        into = shlex.quote(str(settings.home / "exported" / f"{name}-{version}"))
        which = "best by held-out tasks" if best else "newest"
        yield (
            f"The weights of {name}, {version} ({which}), as a folder for transformers or vLLM:",
            f"{flows} policies export {name} {version} --into {into} --home {home}",
        )
    given = " ".join(["", *(f"--set {shlex.quote(assignment)}" for assignment in assignments)])
    yield "The newest versions behind the gateway, until Ctrl-C:", f"{flows} serve {shlex.quote(str(file))}{given}"
    yield "The page of the run: tasks, rollouts, tokens:", f"{flows} ui --home {home}"
    yield "What may be wrong with it, and what to do:", f"{flows} why {run.run} --home {home}"
    yield "The tables in SQL, and what can be asked:", f"{flows} sql --home {home}"
    if rollout := _trained_rollout(run):
        where = f"--run {run.run} --home {home}"
        yield "One rollout: its tree, its reward, what was trained of it:", f"{flows} explain {rollout} {where}"
    if settings.tracking.mlflow_uri is None and "mlflow" in settings.tracking.backends:
        uri = shlex.quote(tracking_uri(settings.tracking, run.home))
        yield "Metrics and versions in MLflow's UI:", f"{mlflow} ui --backend-store-uri {uri}"
    if "PREFECT_API_URL" not in os.environ:  # else its record is where the user keeps it
        started = f"PREFECT_HOME={_prefect_home(settings.home)} {prefect} server start"
        yield "Flow runs and the run's report in Prefect's UI:", started


def _prefect_home(home: Path) -> str:
    own = Path(os.environ.get("PREFECT_HOME", home / "prefect"))
    if own.resolve() != (home / "prefect").resolve():
        return shlex.quote(str(own))
    return shlex.quote(f"{home}/prefect") if home.is_absolute() else f"$PWD/{shlex.quote(f'{home}/prefect')}"


def _versions(run: Run) -> Iterator[tuple[str, str, bool]]:
    """Yield each policy that was trained, its best version of this run, else its newest, and whether it is the best."""
    for name, store in run.policies.items():
        best, newest = store.best_of(run.run), store.latest()
        if best not in (None, BASE_VERSION):
            yield name, str(best), True
        elif newest not in (None, BASE_VERSION):
            yield name, str(newest), False


def _trained_rollout(run: Run) -> str | None:
    made = [epoch.tables.get("sequences") for epoch in run.lake.manifests.epochs(run.run, "train")]
    for sequences in reversed(made):
        if sequences is None:
            continue
        if (found := pq.read_table(run.lake.path(sequences), columns=["rollout_id"])).num_rows:
            return shlex.quote(str(found["rollout_id"][0]))
    return None


def _share(share: float, interval: tuple[float, float]) -> str:
    return f"{share:.1%} {percents(interval)}"


def _answer(output: str | None, error: str | None) -> str:
    return f"failed: {_short(error)}" if error else _short(json_or_text(output))


def _short(value: Any) -> str:
    if isinstance(value, dict):
        value = ", ".join(f"{key} {_short(part)}" for key, part in value.items() if part is not None)
    elif value is None:
        value = "no answer"
    elif not isinstance(value, str):
        value = json.dumps(value, ensure_ascii=False)
    text = " ".join(value.split())
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
