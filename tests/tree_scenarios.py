"""Scenarios of the hierarchy: each a rollout of its own, all of a module derived as one epoch, once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.lake_maker import Attempt, derived, table

Tree = dict[str, dict[str, Any]]  # span id → row of span_tree
Build = Callable[[Attempt], None]
ONE_ID = "a" * 16  # spans that bear it go by their names


class Scenarios:
    """A decorator of functions that fill an attempt which has its root span; `trees` derives them."""

    def __init__(self) -> None:
        self.builds: dict[str, Build] = {}

    def __call__(self, build: Build) -> Build:
        """The spans that its test asks for have ids of their own."""
        self.builds[build.__name__] = build
        return build

    def trees(self, home: Path, **settings: Any) -> dict[str, Tree]:
        """Name of the scenario → its repaired tree."""
        rows = []
        for name, build in self.builds.items():
            attempt = Attempt(name, f"a-{name}")
            attempt.root(mode="evaluate", span_id="root", at=(0.0, 10.0))
            build(attempt)
            rows += attempt.rows
        lake, epoch = derived(home, rows, mode="evaluate", **settings)
        found: dict[str, Tree] = {name: {} for name in self.builds}
        for row in table(lake, epoch, "span_tree"):
            found[row["rollout_id"]][row["span_id"] if row["span_id"] != ONE_ID else row["name"]] = row
        return found


def place(tree: Tree, span_id: str) -> tuple[Any, ...]:
    """(parent, method, agent) of a span."""
    row = tree[span_id]
    return row["parent_id"], row["method"], row["agent"]


def gateway(attempt: Attempt, span_id: str, at: tuple[float, float], **columns: Any) -> str:
    """A call as the gateway records it, in a trace of its own."""
    return attempt.call([1], [2], at, span_id=span_id, **columns)


def ask(tool_call: str, name: str | None = None, **arguments: Any) -> str:
    """Messages that ask for a tool."""
    function = {"function": {"name": name, "arguments": json.dumps(arguments)}} if name else {}
    return json.dumps(
        [
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": tool_call, "type": "function"} | function],
            }
        ]
    )
