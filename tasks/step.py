"""Declare a step of a recipe: a Prefect task that runs whenever it is called, and whose result stays in memory.

Which stage is done, and with which output, is in the epoch's manifest; a second memory of it, Prefect's, could only differ.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from prefect import Task, task
from prefect.cache_policies import NO_CACHE

P = ParamSpec("P")
R = TypeVar("R")


def step(name: str) -> Callable[[Callable[P, R]], Task[P, R]]:
    """Return the decorator. `name`: of its runs, with the function's arguments in braces."""
    return task(task_run_name=name, cache_policy=NO_CACHE, persist_result=False)
