"""The files of `sql/`: one SELECT a file, the table named after the file."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Collection
from functools import cache
from graphlib import CycleError, TopologicalSorter
from importlib.resources import files
from pathlib import Path
from typing import Any

import duckdb

ROOT = Path(str(files("lightning_flows") / "sql")).resolve()
# Folders whose files run in the order of their inputs.
_OF_AN_EPOCH = ("hierarchy", "triplets", "advantages", "ingest")
PARAMETER = re.compile(r"\bp_[a-z_]+\b")
_parsed: dict[str, duckdb.Statement] = {}


@cache
def text(name: str) -> str:
    """Return the SQL of `hierarchy/span_tree` or the like. Raises FileNotFoundError that names the folder looked in."""
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


def create_shared(con: duckdb.DuckDBPyConnection) -> None:
    """Create the macros of `sql/macros.sql`: numbers that several files share."""
    con.execute(text("macros"))


def rows(relation: duckdb.DuckDBPyRelation) -> list[dict[str, Any]]:
    """Return the rows of a relation, each as column → value."""
    return [dict(zip(relation.columns, row, strict=True)) for row in relation.fetchall()]


def macro(name: str) -> str:
    """Return what follows CREATE to make a table macro of a file; a parameter that is not given is NULL."""
    signature = ", ".join(f"{parameter} := NULL" for parameter in parameters(name))
    return f"MACRO {name.rsplit('/', 1)[-1]}({signature}) AS TABLE\n{text(name)}"


def _run(con: duckdb.DuckDBPyConnection, ddl: str) -> None:
    # Parsed once a process: parsing is a seventh of what a small epoch, or a bucket more, costs.
    if ddl not in _parsed:
        (_parsed[ddl],) = con.extract_statements(ddl)
    con.execute(_parsed[ddl])


@cache
def parameters(name: str) -> tuple[str, ...]:
    """Return a file's parameters in the order of its header: every word that begins with `p_`, as no column does."""
    return tuple(dict.fromkeys(PARAMETER.findall(text(name))))


@cache
def inputs(name: str) -> tuple[str, ...]:
    """Return the tables that a file reads, from its header: `Inputs: nodes, bucket (attempt, first_node).`

    Raises ValueError for a header without that line.
    """
    headed = re.sub(r"\([^()]*\)|\bstored\.", "", " ".join(header(name)))
    found = re.search(r"Inputs: ([\w\s,]+)[.;]", headed)
    if found is None:
        raise ValueError(
            f"sql/{name}.sql: the header has no `Inputs: table, table.`; for a file without any write `none`"
        )
    return tuple(table for table in re.findall(r"\w+", found[1]) if table != "none")


def views() -> tuple[str, ...]:
    """Return the names of the files of sql/views, each after those that it reads.

    Where one has the name of a stored table, it reads that.
    """
    known = {name.removeprefix("views/"): name for name in names("views")}
    graph = {
        view: [table for table in inputs(name) if table in known and table != view] for view, name in known.items()
    }
    return tuple(TopologicalSorter(graph).static_order())


def steps(*tables: str, there: Collection[str]) -> tuple[str, ...]:
    """Return the files to run for these tables, those of their inputs first.

    there: tables that need no file. Raises ValueError naming the file for an input that is neither there nor a file's,
    and for inputs in a circle.
    """
    by_table = {name.rsplit("/", 1)[-1]: name for folder in _OF_AN_EPOCH for name in names(folder)}
    graph: dict[str, list[str]] = {}
    waiting = list(tables)
    while waiting:
        table = waiting.pop()
        if table in graph:
            continue
        graph[table] = [each for each in inputs(by_table[table]) if each not in there]
        for each in graph[table]:
            if each not in by_table:
                raise ValueError(
                    f"sql/{by_table[table]}.sql: its header names the input {each!r}, which no file of "
                    f"{', '.join(_OF_AN_EPOCH)} makes and which is not there ({', '.join(sorted(there))} are)"
                )
        waiting += graph[table]
    try:
        return tuple(by_table[table] for table in TopologicalSorter(dict(sorted(graph.items()))).static_order())
    except CycleError as error:
        raise ValueError(f"sql/: the headers' `Inputs:` are a circle: {' → '.join(error.args[1])}") from None


def names(folder: str = "") -> list[str]:
    """Return all names under a folder of `sql/`, sorted."""
    return sorted(str(p.relative_to(ROOT).with_suffix("")) for p in (ROOT / folder).rglob("*.sql"))


def digest(*tables: str) -> str:
    """Return the digest of the text of some SQL files: part of the key of the stage that runs them."""
    return hashlib.sha256("\0".join(text(t) for t in tables).encode()).hexdigest()[:16]


def header(name: str) -> list[str]:
    """Return the comment lines that a file begins with."""
    comments = itertools.takewhile(lambda line: line.startswith("--"), text(name).splitlines())
    return [line.removeprefix("--").strip() for line in comments]


def title(name: str) -> str:
    """Return the first comment line of a file: what it answers."""
    return header(name)[0]
