"""Tasks, from a file or a function of the user's."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_core.config import SettingsError
from lightning_core.loading import load_callable
from lightning_core.user_code import describe

ID = "id"  # the field that names a task
_SHOWN = 100  # characters of a task


@dataclass(frozen=True)
class Task:
    id: str
    content: dict[str, Any]


def load_tasks(reference: str, setting: str) -> list[Task]:
    """Return the tasks from `module:function`, .jsonl, .json or .parquet.

    Raises SettingsError naming the setting, for what cannot be read, is empty, or has two tasks with one id.
    """
    if ":" in reference and not Path(reference).exists():
        rows = _call(reference, setting)
    else:
        rows = _read(Path(reference), setting)
    tasks = []
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise SettingsError(
                f"{setting}: {reference}: task {number} is a {type(row).__name__}; every task is a JSON object"
            )
        try:
            json.dumps(row)
        except (TypeError, ValueError) as error:
            raise SettingsError(f"{setting}: {reference}: task {number} cannot be sent as JSON: {error}") from None
        tasks.append(Task(str(row.get(ID, number)), row))
    if not tasks:
        raise SettingsError(f"{setting}: {reference}: there is no task in it")
    repeated = [name for name, n in Counter(t.id for t in tasks).items() if n > 1]
    if repeated:
        raise SettingsError(
            f"{setting}: {reference}: {len(repeated)} ids occur more than once, the first is {repeated[0]!r} (field `{ID}`)"
        )
    return tasks


def summary(tasks: list[Task]) -> str:
    """Return in words how many tasks there are, and how the first begins."""
    first = json.dumps(tasks[0].content, ensure_ascii=False)
    return f"{len(tasks)}, the first is {first if len(first) <= _SHOWN else first[:_SHOWN] + '…'}"


def _call(reference: str, setting: str) -> list[Any]:
    try:
        return list(load_callable(reference, setting)())
    except SettingsError:
        raise
    except Exception as error:
        raise SettingsError(f"{setting}: {reference} gave no list of tasks: {describe(error)}") from error


def _read(path: Path, setting: str) -> list[Any]:
    if not path.is_file():
        raise SettingsError(
            f"{setting}: {path.absolute()}: no such file; give a .jsonl, .json or .parquet file, or `module:function`"
        )
    try:
        if path.suffix == ".parquet":
            from pyarrow import parquet

            return parquet.ParquetFile(path).read().to_pylist(maps_as_pydicts="strict")
        if path.suffix != ".json":
            return [_parse(line, n) for n, line in enumerate(path.read_text().split("\n"), 1) if line.strip()]
        rows = json.loads(path.read_text())
    except ValueError as error:
        kind = "Parquet" if path.suffix == ".parquet" else "JSON"
        raise SettingsError(f"{setting}: {path}: not valid {kind}: {error}") from None
    if not isinstance(rows, list):
        raise SettingsError(f"{setting}: {path}: it holds a {type(rows).__name__}, not a list of tasks")
    return rows


def _parse(line: str, number: int) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise ValueError(f"line {number}: {error}") from None
