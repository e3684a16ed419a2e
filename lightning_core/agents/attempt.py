"""What an attempt is asked to do and what came of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lightning_core import names

OUTPUT_LIMIT = 1_000_000  # characters of JSON
_DEEPEST = 100  # lists in lists: who reads it later may be further from the limit of recursion, or nearer


@dataclass(frozen=True)
class AttemptSpec:
    """One execution of a rollout. `base_url` is the attempt's own prefix on the gateway; `token` opens that alone.

    `secret` is the gateway's, by which the runner's own spans are known to be the runner's. It is not given to the agent.
    """

    run: str
    epoch: int
    mode: str  # "train" | "evaluate"
    rollout_id: str
    attempt_id: str
    group_id: str
    task_id: str
    task: Mapping[str, Any]
    base_url: str
    token: str = field(repr=False)
    secret: str = field(repr=False)
    proof: str = field(default="", repr=False)  # for exporters that send no token: lightning_core/otlp/proof.py
    attributes: Mapping[str, Any] = field(default_factory=dict)  # further ones for the two durable spans
    prompts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # name → `version` and `text`

    def resource(self) -> dict[str, str]:
        """Return the resource attributes that give a span its scope."""
        return {names.ROLLOUT_ID: self.rollout_id, names.ATTEMPT_ID: self.attempt_id}

    def labels(self) -> dict[str, Any]:
        """Return the attributes that both durable spans carry."""
        versions = {name: prompt["version"] for name, prompt in self.prompts.items()}
        return {
            **self.attributes,
            **({names.PROMPTS: json.dumps(versions, sort_keys=True)} if versions else {}),
            names.RUN: self.run,
            names.EPOCH: self.epoch,
            names.MODE: self.mode,
            names.GROUP_ID: self.group_id,
            names.TASK_ID: self.task_id,
            names.ROLLOUT_ID: self.rollout_id,
            names.ATTEMPT_ID: self.attempt_id,
        }


@dataclass(frozen=True)
class AttemptResult:
    """How an attempt ended. `status` is one of `names.STATUSES`; times are ns since the epoch.

    `output` can be written as JSON; where the agent gave something else it is that thing's `repr`, or cut short, and
    `output_note` says so. `exit_code` is negative for a signal and None where nothing was run.
    """

    rollout_id: str
    attempt_id: str
    status: str
    output: Any
    error: str | None
    start_ns: int
    end_ns: int
    exit_code: int | None
    output_note: str | None = None
    lost_with_server: bool = False  # and whose doing that was is seen when each that was lost is run alone


def jsonable(value: Any) -> tuple[Any, str | None]:
    """Return `value` as it can be written to JSON, and a note where that is not the value itself."""
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        try:
            shown = repr(value)
        except Exception as broken:  # noqa: BLE001 - a broken __repr__ is the agent's business
            shown = f"<{type(value).__name__} whose repr raises {type(broken).__name__}>"
        return shown[:OUTPUT_LIMIT], f"output is no JSON ({error}); its repr is kept"
    if len(text) > OUTPUT_LIMIT:
        return text[:OUTPUT_LIMIT], f"output of {len(text)} characters was cut to {OUTPUT_LIMIT}"
    value = json.loads(text)
    if _is_deep(value):
        return text, f"output is nested more than {_DEEPEST} levels deep; its text is kept"
    return value, None


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(_DEEPEST + 1):
        inside = [node.values() if isinstance(node, dict) else node for node in level if isinstance(node, dict | list)]
        level = [child for children in inside for child in children]
    return bool(level)
