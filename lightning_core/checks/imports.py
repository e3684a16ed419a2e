"""The child process that imports the user's code: `python -m lightning_core.checks.imports FOLDER agent|flow DIRECTORY`.

FOLDER/jobs.json lists the jobs. The begin and the result of each job are lines of FOLDER/events.jsonl, so that the parent
knows in which job this process ended. An agent is imported with the standard library alone, in the agent's own
Python; all else with the import path of the flow.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning_core.user_code import describe


def main(folder: Path) -> None:
    jobs = json.loads((folder / "jobs.json").read_text())
    with (folder / "events.jsonl").open("a") as events:

        def write(event: dict[str, Any]) -> None:
            events.write(json.dumps(event) + "\n")
            events.flush()

        for job in jobs:
            write({"begins": job["name"]})
            try:
                write({"name": job["name"], "found": _KINDS[job["kind"]](job)})
            except SystemExit as error:
                write({"name": job["name"], "problem": f"it ends its process: sys.exit({error.code!r})"})
            except BaseException as error:  # noqa: BLE001 - whatever the user's code raises is the answer
                problem = str(error) if isinstance(error, _Refused) else describe(error)
                write({"name": job["name"], "problem": problem})
    os._exit(0)  # without the exit handlers of what was imported, which may wait


class _Refused(Exception):
    """What is wrong with the user's code, in words."""


def _agent(job: dict[str, Any]) -> str:
    """Import the agent as an attempt does: its modules come before ours."""
    from lightning_core.agents import child, lit_agent

    for module in job["preload"]:
        try:
            importlib.import_module(module)
        except Exception as error:  # noqa: BLE001 - the user's module
            raise _Refused(
                f"agent.preload: {module}: {describe(error)}; install the module, or remove it from the list"
            ) from None
    function = child.load(job["target"])
    if lit_agent.is_one(function):
        return "an agent of Agent Lightning"
    return _called_with(function, ("task",), job["target"])


def _function(job: dict[str, Any]) -> str:
    return _called_with(_load(job), tuple(job["parameters"]), job["reference"])


def _tasks(job: dict[str, Any]) -> str:
    from lightning_core.config import SettingsError
    from lightning_core.epoch.task_file import load_tasks, summary

    _load(job)
    try:
        return summary(load_tasks(job["reference"], job["name"]))
    except SettingsError as error:
        raise _Refused(str(error)) from None


def _load(job: dict[str, Any]) -> Callable[..., Any]:
    from lightning_core.config import SettingsError
    from lightning_core.loading import load_callable

    try:
        return load_callable(job["reference"], job["name"])
    except SettingsError as error:
        raise _Refused(str(error)) from None


def _called_with(function: Callable[..., Any], parameters: tuple[str, ...], reference: str) -> str:
    """Return the function and its parameters; raise _Refused if it cannot be called with these by position."""
    name = reference.rpartition(":")[2]
    wanted = ", ".join(parameters) or "no argument"
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of a builtin
        return f"{name}(…)"
    try:
        signature.bind(*parameters)
    except TypeError as error:
        raise _Refused(f"{name}{signature} is called with ({wanted}), which it does not take: {error}") from None
    names = [p.name for p in signature.parameters.values()][: len(parameters)]
    if names != list(parameters) and sorted(names) == sorted(parameters):
        raise _Refused(
            f"{name}{signature} is called with ({wanted}), in that order; its parameters are ({', '.join(names)})"
        )
    return f"{name}({', '.join(signature.parameters)})"


_KINDS: dict[str, Callable[[dict[str, Any]], str]] = {"agent": _agent, "function": _function, "tasks": _tasks}


if __name__ == "__main__":
    place, side, directory = sys.argv[1:]
    if side == "flow":
        sys.path[:] = json.loads(os.environ.pop("LIGHTNING_CHECK_PATH"))
    os.chdir(directory)
    main(Path(place))
