"""The files of `sql/`: one SELECT a file, the table named after the file."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import duckdb

ROOT = Path(__file__).resolve().parents[2] / "sql"
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
    ddl = f"CREATE {kind} {table} AS {text(name)}"
    # Parsed once a process: parsing is a seventh of what a small epoch, or a bucket more, costs.
    if ddl not in _parsed:
        (_parsed[ddl],) = con.extract_statements(ddl)
    con.execute(_parsed[ddl])
    return table


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
