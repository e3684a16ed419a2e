"""Diagnose a run: every rule of `sql/why` over its catalog, the worst findings first.

A rule is one SELECT with the parameter $run. It gives `epoch, mode, policy, severity, what`, a row for each epoch in which it finds
something; its header has what it finds, the remedy, and a SELECT that shows the rows behind it.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from itertools import groupby
from typing import Any

import duckdb

from lightning_core.errors import Missing
from lightning_core.events import when
from lightning_core.lake import sql
from lightning_core.lake.held import held, hold

SEVERITIES = ("error", "warning", "note")
_HEADER = re.compile(r"(?P<finds>.+?) Grain: .+? Remedy: (?P<remedy>.+?) Evidence: (?P<evidence>.+)")
# Views that several rules read, in the order they build on one another: each is computed once, without its largest columns.
_SHARED = {
    "attempts": "",
    "rollouts": "task, task_text",
    "calls": "input_messages, output_messages, prompt_ids, response_ids, response_logprobs, sampling, requested_sampling",
    "policy_calls": "started, ended",
    "epochs": "started",
    "staleness": "share",
    "policy_epochs": "mean_return",
    "signals": "",
}


@dataclass(frozen=True)
class Rule:
    """A file of `sql/why`, as its header says."""

    name: str
    finds: str
    remedy: str
    evidence: str


@dataclass(frozen=True)
class Finding:
    """What a rule finds of a policy (None: of no single one) in some epochs; `severity` and `what` are those of the newest."""

    rule: str
    severity: str
    mode: str
    policy: str | None
    epochs: list[int]
    what: str
    finds: str
    remedy: str
    evidence: str  # SQL

    @property
    def where(self) -> str:
        """Return its rule, policy and epochs in one line."""
        return " · ".join([self.rule, *([self.policy] if self.policy else []), self._epochs])

    @property
    def when(self) -> str:
        """Return its epochs, and which of them `what` is about."""
        return self._epochs + (", in the last of them" if len(self.epochs) > 1 else "")

    @property
    def _epochs(self) -> str:
        trained = self.epochs if self.mode == "train" else [epoch - 1 for epoch in self.epochs if epoch]
        parts = [f"epoch{'s' * (len(trained) > 1)} {_ranges(trained)}"] if trained else []
        if self.mode == "train":
            return parts[0]
        parts = [when(0)] * (0 in self.epochs) + [f"after {one}" for one in parts]
        return f"evaluation{'s' * (len(self.epochs) > 1)} {', '.join(parts)}"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@cache
def rules() -> list[Rule]:
    """Return every rule. Raises ValueError for a file whose header lacks a part."""
    found = []
    for name in sql.names("why"):
        header = " ".join(sql.header(name))
        parts = _HEADER.fullmatch(header)
        if parts is None:
            raise ValueError(f"sql/{name}.sql: the header says what it finds, then `Grain:`, `Remedy:` and `Evidence:`")
        found.append(Rule(name.removeprefix("why/"), **parts.groupdict()))
    return found


def newest_run(con: duckdb.DuckDBPyConnection) -> str:
    """Return the run whose epoch was opened last. Raises Missing where there is none."""
    row = con.execute("SELECT run FROM epoch_manifests ORDER BY opened_offset DESC, epoch DESC LIMIT 1").fetchone()
    if row is None:
        raise Missing("no epoch of any run is in the catalog yet; there is nothing to diagnose")
    return str(row[0])


def diagnose(con: duckdb.DuckDBPyConnection, run: str) -> list[Finding]:
    """Ask every rule about a run of a catalog; worst first, then the newest. Raises Missing for an unknown run."""
    runs = [row[0] for row in con.execute("SELECT DISTINCT run FROM epoch_manifests ORDER BY run").fetchall()]
    if run not in runs:
        raise Missing(f"no run is called {run!r}; there are: {', '.join(runs) or 'none'}")
    found = []
    with _computed(con, run):
        for rule in rules():
            rows = con.execute(
                f"SELECT mode, policy, epoch, severity, what FROM ({sql.text(f'why/{rule.name}')}) ORDER BY ALL",
                {"run": run},
            ).fetchall()
            found += [_finding(rule, run, list(of)) for _, of in groupby(rows, key=lambda row: row[:2])]
    return sorted(found, key=lambda f: (SEVERITIES.index(f.severity), -f.epochs[-1], f.rule, f.policy or ""))


@contextlib.contextmanager
def _computed(con: duckdb.DuckDBPyConnection, run: str) -> Iterator[None]:
    """Hold what several rules read, but for what is held already."""
    own = [view for view in _SHARED if view not in held(con)]
    try:
        for view in own:
            hold(con, view, _SHARED[view], run)
        yield
    finally:
        for view in own:
            con.execute(f"DROP TABLE IF EXISTS temp.{view}")


def _finding(rule: Rule, run: str, rows: list[tuple[Any, ...]]) -> Finding:
    mode, policy, newest = rows[-1][:3]
    last = [row for row in rows if row[2] == newest]
    return Finding(
        rule.name,
        min((row[3] for row in last), key=SEVERITIES.index),
        mode,
        policy,
        sorted({row[2] for row in rows}),
        "; ".join(row[4] for row in last),
        rule.finds,
        rule.remedy,
        rule.evidence.replace("$run", "'" + run.replace("'", "''") + "'"),
    )


def _ranges(numbers: list[int]) -> str:
    """Return `0, 2 to 4` for 0, 2, 3, 4."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][-1] == number - 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{part[0]} to {part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)
