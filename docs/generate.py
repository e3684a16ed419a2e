"""Writes docs/settings.md, docs/data.md, docs/why.md and the table of docs/gpu.md from the code that declares them: `python -m docs.generate`.

`python -m docs.generate analysis --home var/demo` writes docs/analysis.md from the lake of a run that has ended.
"""

from __future__ import annotations

import inspect
import itertools
import json
import re
import sys
import tempfile
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from bench.shapes import SHAPES
from docs.analysis_page import analysis_page
from lightning_core.config import Settings, TrainingSettings
from lightning_core.lake import ask, catalog, schema, sql, why
from lightning_core.lake.lake import Lake
from lightning_core.training.memory import Shape, need

HERE = Path(__file__).parent


def settings_page() -> str:
    """Every setting, a table a section."""
    lines = [
        "# Settings",
        "",
        "A settings file is YAML with these keys; unknown keys are errors. `lightning-flows settings FILE` checks it and prints every",
        "value, `--set rollout.group_size=4` overrides one. Flow parameters in Prefect have the same keys.",
    ]
    for path, model in _sections("", Settings):
        lines += ["", f"## {path or 'top level'}", ""]
        if model.__doc__ and path:
            lines += [inspect.cleandoc(model.__doc__), ""]
        lines += ["| key | type | default | |", "|---|---|---|---|"]
        for name, field in model.model_fields.items():
            kind = _type(field.annotation).replace("|", "\\|")
            lines.append(f"| `{name}` | {kind} | {_default(field)} | {field.description or ''} |")
    return "\n".join(lines) + "\n"


def data_page() -> str:
    """The columns of every table and view of the catalog, and every table of `sql/` with what its header says."""
    lines = [
        "# Data",
        "",
        "All data comes as spans; every other table is a SELECT in `sql/`. This page has the columns of every table and view in",
        "`catalog.duckdb` (`FROM columns` has them too), then what the SQL between them does. Its other tables exist only while an",
        "epoch is derived. Columns of one name join: `call_id` alone, `rollout_id` with `attempt_id`; `node` and `sequence_id` with `run`",
        "and `epoch`. What the files hold, under their own names and with numbers for ids, is in the schema `stored`.",
        "",
        "## spans",
        "",
        schema.data_dictionary(),
        "## Attribute names that are read",
        "",
        "`sql/ingest/attribute_aliases.sql` lists which attribute of which convention goes into which column.",
        "",
        "## Tables and views of the catalog",
        *_dictionary(),
    ]
    for folder, meaning in (
        ("hierarchy", "Which attempt counts, the repaired tree, the agent of every span"),
        ("triplets", "Rewards, calls, (prompt, response, reward), merging into sequences"),
        ("advantages", "From rewards to the rows that are trained on"),
        ("tokens", "From what an algorithm scored of each token to its advantage"),
        ("plan", "Which tasks an epoch tries again"),
        ("learn", "What production agents sent, and what of it is trained on"),
        ("finetune", "Which recorded rollouts a finetuning reads"),
        ("prompts", "What a search for prompts reads of its rollouts"),
        ("explain", "What `lightning-flows explain` queries"),
        ("page", "What the page (`lightning-flows ui`) queries"),
        ("what_if", "What `lightning-flows what-if` compares"),
        ("tracking", "What MLflow gets as traces"),
        ("outcome", "What a run prints at its end"),
    ):
        lines += ["", f"## sql/{folder}", "", f"{meaning}.", ""]
        for name in sql.names(folder):
            purpose, *more = _header(name)
            lines += [f"- **{name.rsplit('/', 1)[-1]}**: {purpose}", *(f"  - {part}" for part in more)]
    lines += [
        "",
        f"Macros in the catalog ([analysis.md](analysis.md)): {', '.join(f'`{ask.call(q)}`' for q in ask.questions())}.",
    ]
    return "\n".join(lines) + "\n"


_RECORDS = {
    "epoch_manifests": "What each epoch's manifest says. Grain: one row per (run, epoch, mode).",
    "rejections": "Spans that could not be decoded. Grain: one row per record and reason; it may stand for several spans.",
    "span_columns": "What the columns of `spans` mean. Grain: one row per column.",
}


def _dictionary() -> Iterator[str]:
    """A section for each table and view but `spans`: what it is, and its columns."""
    made = {
        name.rsplit("/", 1)[-1]: name for folder in ("advantages", "finetune", "triplets") for name in sql.names(folder)
    }
    made |= {name: f"views/{name}" for name in catalog.VIEWS}
    with tempfile.TemporaryDirectory() as home:
        Lake(Path(home)).rebuild_catalog()
        with catalog.connect(Path(home) / "lake") as con:
            columns = con.execute("SELECT table_name, column_name, type, meaning FROM columns").fetchall()
    for table, rows in itertools.groupby(columns, key=lambda row: row[0]):
        if table == "spans":
            continue
        purpose, *more = [_RECORDS[table]] if table in _RECORDS else _header(made[table])
        yield from ("", f"### {table}", "", purpose, "", *(f"- {part}" for part in more), *([""] if more else []))
        yield from ("| column | type | meaning |", "|---|---|---|")
        yield from (f"| `{name}` | `{kind}` | {meaning} |" for _, name, kind, meaning in rows)


def _header(name: str) -> list[str]:
    """Return the parts of a file's header, each on one line: what it is for, its grain, inputs and rule."""
    return re.split(r" (?=(?:Grain|Inputs|Parameters?|Rule|Evidence): )", " ".join(sql.header(name)))


def _default(field: FieldInfo) -> str:
    """As it is written in YAML."""
    if field.default is PydanticUndefined and field.default_factory is None:
        return "see below" if _model_in(field.annotation) else "required"
    value = field.get_default(call_default_factory=True)
    if _model_in(field.annotation) and value and not isinstance(value, str):
        return "see below"
    return f"`{json.dumps(value) if value is None or isinstance(value, bool) else value}`"


def _sections(path: str, model: type[BaseModel]) -> list[tuple[str, type[BaseModel]]]:
    found = [(path, model)]
    for name, field in model.model_fields.items():
        inner = _model_in(field.annotation)
        if inner is not None:
            kinds = (field.annotation, *typing.get_args(field.annotation))
            listed = "[]" if any(typing.get_origin(kind) is list for kind in kinds) else ""
            found += _sections(f"{path}.{name}".strip(".") + listed, inner)
    return found


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The section that stands there, in a list or as one of several types."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for inner in typing.get_args(annotation) if (model := _model_in(inner))), None)


def _type(annotation: Any) -> str:
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _type(typing.get_args(annotation)[0])
    if origin is typing.Literal:
        return " | ".join(f"`{a}`" for a in typing.get_args(annotation))
    if origin in (typing.Union, types.UnionType):
        return " | ".join("null" if a is type(None) else _type(a) for a in typing.get_args(annotation))
    if origin is list:
        return f"list of {_type(typing.get_args(annotation)[0])}"
    if origin is dict:
        return "mapping"
    return {
        "str": "text",
        "float": "number",
        "int": "integer",
        "bool": "true or false",
        "Path": "path",
        "AwareDatetime": "time with its zone",
    }.get(annotation.__name__, annotation.__name__)


def why_page() -> str:
    """Every rule of `sql/why`: what it finds, its remedy, and the SELECT that shows the rows."""
    lines = [
        "# Why",
        "",
        "`lightning-flows why RUN --home HOME` diagnoses a run, the newest by default; `--format json` prints it for programs. The same",
        "findings stand on top of the run's page (`lightning-flows ui`), in the log after each epoch (warnings and errors), and in Prefect as",
        "artifact `why-RUN`. An `error`: what is trained is wrong, or nothing is. A `warning`: it learns less than it could, or something else.",
        "A `note`: worth knowing.",
        "",
        "A rule is a file of `sql/why`: one SELECT over the [views of the catalog](data.md) with the parameter `$run`, which gives",
        "`epoch, mode, policy, severity, what`. Its limits are columns of its first CTE, `limits`. To add one, add a file; its header has `Grain:`,",
        "`Parameters:`, `Inputs:`, `Remedy:` and `Evidence:`, and `tests/unit/test_why.py` wants a fault that it finds.",
    ]
    for rule in why.rules():
        lines += [
            "",
            f"## {rule.name}",
            "",
            rule.finds,
            "",
            f"Remedy: {rule.remedy}",
            "",
            "```text",
            rule.evidence,
            "```",
        ]
    return "\n".join(lines) + "\n"


def gpu_page() -> str:
    """docs/gpu.md with its table worked out anew."""
    before, mark, rest = (HERE / "gpu.md").read_text().partition("<!-- table -->\n")
    _, end, after = rest.partition("<!-- end of the table -->\n")
    return before + mark + "\n".join(_fits()) + "\n" + end + after


_CARDS = (24, 48, 80, 141)  # GB
_KINDS = {
    "full": TrainingSettings(),
    "full 8-bit": TrainingSettings(optimizer="adamw_8bit"),
    "adapter": TrainingSettings(),
}


def _fits() -> Iterator[str]:
    yield "| model | trained | " + " | ".join(f"{card} GB" for card in _CARDS) + " |"
    yield "|---|---|" + "---|" * len(_CARDS)
    for name in list(SHAPES)[1:]:  # the first is too small to ask
        shape = Shape.of_config(SHAPES[name])
        for kind, settings in _KINDS.items():
            wanted = need(shape, 32 * shape.adapted if kind == "adapter" else None, settings)
            tokens = [wanted.fits(0.94 * card * 2**30) for card in _CARDS]
            yield f"| {name} | {kind} | " + " | ".join(f"{n:,}" if n >= 2048 else "–" for n in tokens) + " |"


PAGES = {"settings.md": settings_page, "data.md": data_page, "why.md": why_page, "gpu.md": gpu_page}

if __name__ == "__main__":
    if sys.argv[1:2] == ["analysis"]:
        home = Path(sys.argv[3] if sys.argv[2:3] == ["--home"] else "var/demo")
        (HERE / "analysis.md").write_text(analysis_page(home))
    else:
        for file, page in PAGES.items():
            (HERE / file).write_text(page())
