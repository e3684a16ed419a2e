"""What a check is, and how all of them are run: one JSON line each, flushed as it comes."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from bench.report import say

Found = dict[str, Any]


@dataclass(frozen=True)
class Check:
    """`look(small)` returns figures, with `ok` and what was `asked`; an exception is a failure. small: shapes for a machine without a GPU."""

    name: str
    look: Callable[[bool], Found]
    vllm: bool = False  # needs a vLLM


def run(checks: Iterable[Check], small: bool) -> int:
    """Run the checks in their order; returns how many failed."""
    failed = 0
    for check in checks:
        began = time.monotonic()
        say(f"{check.name} …")
        try:
            found = check.look(small)
        except Exception as error:  # noqa: BLE001 - whatever a card does, the next check is still worth its time
            say(traceback.format_exc())
            found = {"ok": False, "error": f"{type(error).__name__}: {error}"[:500]}
        failed += not found["ok"]
        line = {"check": check.name, "ok": found.pop("ok")} | found | {"took_s": round(time.monotonic() - began, 1)}
        print(json.dumps(_short(line)), flush=True)
        _forget()
    return failed


def _forget() -> None:
    from lightning_core.training.weights import free_memory

    free_memory()


def _short(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _short(inner) for name, inner in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value
