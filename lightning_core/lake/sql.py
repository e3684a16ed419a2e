"""The files of `sql/`: one SELECT a file, the table named after the file."""

from __future__ import annotations

import hashlib
import re
from functools import cache
from importlib.resources import files
from pathlib import Path

import duckdb

ROOT = Path(str(files("lightning_flows") / "sql")).resolve()
_parsed: dict[str, duckdb.Statement] = {}


@cache
def text(name: str) -> str:
    """The SQL of `hierarchy/span_tree` or the like. Raises FileNotFoundError that names the folder looked in."""
    path = ROOT / f"{name}.sql"
    if not path.is_file():
        raise FileNotFoundError(f"no {name}.sql under {ROOT}; known: {', '.join(names())}")
    return path.read_text().rstrip().removesuffix(";")


def create(con: duckdb.DuckDBPyConnection, name: str, kind: str = "TABLE") -> str:
    """Create the table (or view) of a file; returns its name."""
    table = name.rsplit("/", 1)[-1]
    _run(con, f"CREATE {kind} {table} AS {text(name)}")
    return table


def create_macro(con: duckdb.DuckDBPyConnection, name: str) -> None:
    """Create the table macro of a file with parameters; what it reads has to be there."""
    _run(con, f"CREATE {macro(name)}")


def macro(name: str) -> str:
    """What follows CREATE to make a table macro of a file; a parameter that is not given is NULL."""
    signature = ", ".join(f"{parameter} := NULL" for parameter in parameters(name))
    return f"MACRO {name.rsplit('/', 1)[-1]}({signature}) AS TABLE\n{text(name)}"


def _run(con: duckdb.DuckDBPyConnection, ddl: str) -> None:
    # Parsed once a process: parsing is a seventh of what a small epoch, or a bucket more, costs.
    if ddl not in _parsed:
        (_parsed[ddl],) = con.extract_statements(ddl)
    con.execute(_parsed[ddl])


@cache
def parameters(name: str) -> tuple[str, ...]:
    """What a file leaves open, in the order of its header: every word that begins with `p_`, as no column does."""
    return tuple(dict.fromkeys(re.findall(r"\bp_[a-z_]+\b", text(name))))


def names(folder: str = "") -> list[str]:
    """All names under a folder of `sql/`, sorted."""
    return sorted(str(p.relative_to(ROOT).with_suffix("")) for p in (ROOT / folder).rglob("*.sql"))


def digest(*tables: str) -> str:
    """Digest of the text of some SQL files: part of the key of the stage that runs them."""
    return hashlib.sha256("\0".join(text(t) for t in tables).encode()).hexdigest()[:16]


def title(name: str) -> str:
    """The first comment line of a file: what it answers."""
    first = text(name).split("\n", 1)[0]
    return first.removeprefix("--").strip()
