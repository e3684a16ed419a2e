"""Whose calls the SQL says they are, beside whose they were: of random runs (agent_runs.py) and of the recorded frameworks."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lightning_core.epoch.patterns import known_prompts
from lightning_core.lake.decode import Decoder
from tests.agent_runs import Faults, Prompts, Run, emit, truth
from tests.frameworks import dump
from tests.frameworks.cases import PLANNER
from tests.lake_maker import Attempt, derived, table

Row = dict[str, Any]
Truth = dict[tuple[str, str], str | None]  # (rollout, response id) → the agent's name; None where nobody emits it
NO_FAULTS = Faults()
Texts = Literal["as sent", "alike", "redacted"]


@dataclass
class Judged:
    """How many calls went to another agent than the one that made them, or to nobody, of how many."""

    wrong: int = 0
    left_out: int = 0
    calls: int = 0
    by_method: dict[str, list[int]] = field(default_factory=dict)  # [right, wrong] of those placed

    @property
    def wrong_share(self) -> float:
        return self.wrong / self.calls

    @property
    def left_out_share(self) -> float:
        return self.left_out / self.calls


def attempts(
    calls: int, prompts: Prompts = "own", faults: Faults = NO_FAULTS, seed: int = 0, style: str | None = None
) -> tuple[list[Row], Truth]:
    """Rows of random attempts with at least so many calls, and who made each."""
    rows: list[Row] = []
    known: Truth = {}
    number = 0
    while len(known) < calls:
        run = Run(seed * 1_000_003 + number)
        attempt = emit(run, number, prompts, faults, style)
        rows += attempt.rows
        for response_id, call in truth(run, number):
            known[attempt.rows[0]["rollout_id"], response_id] = call.agent.name if call.agent.instrumented else None
        number += 1
    return rows, known


def prompts_known(home: Path, rows: list[Row]) -> dict[str, str]:
    """What an epoch derived of the rows lets the next one know."""
    lake, epoch = derived(home, rows)
    return known_prompts(lake, epoch.model_copy(update={"epoch": 1}))


def judged(home: Path, rows: list[Row], known: Truth, **settings: Any) -> Judged:
    """Derive the rows, and compare every call of a policy. One that nobody emits the agent of is right where it is nobody's."""
    lake, epoch = derived(home, rows, **settings)
    found = Judged()
    for call in table(lake, epoch, "policy_calls"):
        if call["policy"] is None:
            continue
        made_by = known[call["rollout_id"], call["response_id"]]
        found.calls += 1
        if call["left_out"] is not None or call["agent"] is None:
            found.left_out += made_by is not None
        else:
            found.wrong += call["agent"] != made_by
            found.by_method.setdefault(call["method"], [0, 0])[call["agent"] != made_by] += 1
    return found


def dumps_without_an_agent(texts: Texts) -> tuple[list[Row], Truth]:
    """Every recorded rollout once for each span of an agent in it, without that span; and who made its calls."""
    rows: list[Row] = []
    known: Truth = {}
    for name in dump.frameworks():
        spans, _ = Decoder().decode([(at, at + 1, record) for at, record in enumerate(dump.load(name))])
        by_rollout: dict[str, list[Row]] = defaultdict(list)
        for row in spans.to_pylist():
            by_rollout[row["rollout_id"]].append(row)
        for rollout, whole in by_rollout.items():
            made_by = dict(_made_by(whole))
            if None in made_by.values():
                continue  # without agents
            rows_of_it = list(_recorded(whole, texts))
            for number, lost in enumerate(row["span_id"] for row in whole if _is_agent(row)):
                again = f"{rollout}.{number}"
                rewarded = Attempt(again, "a1")
                rewarded.reward(1.0, start_ns=max(row["start_ns"] for row in whole))
                kept = [row | {"rollout_id": again} for row in rows_of_it if row["span_id"] != lost]
                rows += [row | {"record_offset": len(rows) + at} for at, row in enumerate(kept + rewarded.rows)]
                known |= {(again, response_id): agent for response_id, agent in made_by.items()}
    return rows, known


def _is_agent(row: Row) -> bool:
    lasts = row["end_ns"] > row["start_ns"] + 1_000_000
    return row["agent_name"] is not None and lasts and row["op"] in ("agent", "chain", "other")


def _made_by(rows: Iterable[Row]) -> Iterator[tuple[str, str | None]]:
    for row in rows:
        if row["policy"] is not None:
            messages = row["input_messages"]
            system = any(message["role"] == "system" for message in json.loads(messages))
            yield row["response_id"], ("planner" if PLANNER in messages else "executor") if system else None


def _recorded(rows: list[Row], texts: Texts) -> Iterator[Row]:
    """The spans with their texts; with one system message for all; or without any text."""
    written: dict[str, str] = {}
    for row in rows:
        for message in json.loads(row["input_messages"]) if row["policy"] else []:
            content = message.get("content")
            if message["role"] == "system" and content:
                for text in [content] if isinstance(content, str) else [part["text"] for part in content]:
                    once = json.dumps(text)[1:-1]
                    written |= {text: "You help.", once: "You help.", json.dumps(once)[1:-1]: "You help."}
    for row in rows:
        if texts == "alike":
            yield {column: _alike(value, written) for column, value in row.items()}
        elif texts == "redacted":
            attributes = [(k, v) for k, v in row["attributes"] if "message" not in k and not k.endswith(".value")]
            yield row | {"input_messages": None, "output_messages": None, "attributes": attributes}
        else:
            yield row


def _alike(value: Any, written: dict[str, str]) -> Any:
    if isinstance(value, list):
        return [(item[0], _alike(item[1], written)) if isinstance(item, tuple) else item for item in value]
    if isinstance(value, str):
        for text in sorted(written, key=len, reverse=True):
            value = value.replace(text, written[text])
    return value
