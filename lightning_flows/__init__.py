"""The flows, their tasks and the SQL, under names that no module of a user's has (the folders are links to those at the top), and
`Run`, for notebooks and scripts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_flows.run import Run

__all__ = ["Run"]


def __getattr__(name: str) -> Any:
    if name != "Run":
        raise AttributeError(name)
    from lightning_flows.run import Run  # it brings DuckDB, which a command's --help does without

    return Run
