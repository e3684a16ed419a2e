"""SQLite databases for Spider: the real ones where there are any, else one made from the schema.

Made ones have few, invented rows, the same on every machine. The literals of the gold queries are among their values: or
every question about France would have the same, empty answer, right or wrong.
"""

import random
import re
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROWS = 24
LITERAL = re.compile(r"'([^']*)'|\"([^\"]*)\"|(?<![\w.])(-?\d+(?:\.\d+)?)(?![\w.])")
COMPARED = re.compile(r"(\w+)\s*(?:=|!=|<>|<=|>=|<|>|like|between|not in|in)\s*\(?\s*$", re.IGNORECASE)
WORDS = ("Amber", "Birch", "Cedar", "Delta", "Ember", "Fern", "Grove", "Haven", "Iris", "Maple")


def make(folder: Path, schema: dict[str, Any], queries: Iterable[str]) -> Path:
    """Path of the schema's database in `folder`, made where there is none."""
    file = folder / f"{schema['db_id']}.sqlite"
    if file.is_file():
        return file
    folder.mkdir(parents=True, exist_ok=True)
    beside = file.with_suffix(f".{random.SystemRandom().getrandbits(32):08x}")
    con = sqlite3.connect(beside)
    con.executescript(ddl(schema))
    fill(con, schema, literals(queries))
    con.commit()
    con.close()
    beside.replace(file)
    return file


def ddl(schema: dict[str, Any]) -> str:
    """CREATE TABLE statements."""
    tables = []
    for number, table in tables_of(schema):
        columns = [
            f'  "{name}" {"NUMERIC" if schema["column_types"][place] == "number" else "TEXT"}'
            for place, (of, name) in enumerate(schema["column_names_original"])
            if of == number
        ]
        tables.append(f'CREATE TABLE "{table}" (\n' + ",\n".join(columns) + "\n);")
    return "\n".join(tables)


def outline(schema: dict[str, Any]) -> str:
    """The tables as the agent is shown them, one a line: `name(column, column)`."""
    lines = []
    for number, table in tables_of(schema):
        columns = ", ".join(name for of, name in schema["column_names_original"] if of == number)
        lines.append(f"{table}({columns})")
    return "\n".join(lines)


def tables_of(schema: dict[str, Any]) -> list[tuple[int, str]]:
    """(number, name), without those that SQLite keeps for itself."""
    return [pair for pair in enumerate(schema["table_names_original"]) if not pair[1].startswith("sqlite_")]


def literals(queries: Iterable[str]) -> dict[str, list[str]]:
    """Column name, in lower case → what the queries compare it with."""
    found: dict[str, list[str]] = {}
    for query in queries:
        for match in LITERAL.finditer(query):
            column = COMPARED.search(query[: match.start()])
            if column:
                value = next(group for group in match.groups() if group is not None).strip("%")
                found.setdefault(column[1].lower(), []).append(value)
    return {column: sorted(set(values)) for column, values in found.items()}


def fill(con: sqlite3.Connection, schema: dict[str, Any], asked: dict[str, list[str]]) -> None:
    order = random.Random(schema["db_id"])
    names = schema["column_names_original"]
    foreign = dict(schema["foreign_keys"])
    keys = {place for part in schema["primary_keys"] for place in (part if isinstance(part, list) else [part])}
    for number, table in tables_of(schema):
        places = [place for place, (of, _) in enumerate(names) if of == number]
        for row in range(ROWS):
            values = [_value(schema, place, row, foreign, keys, asked, order) for place in places]
            con.execute(f'INSERT INTO "{table}" VALUES ({", ".join("?" * len(values))})', values)


def _value(
    schema: dict[str, Any],
    place: int,
    row: int,
    foreign: dict[int, int],
    keys: set[int],
    asked: dict[str, list[str]],
    order: random.Random,
) -> Any:
    numeric = schema["column_types"][place] == "number"
    target = place
    for _ in range(8):  # a key that refers to a key that refers …
        target = foreign.get(target, target)
    if target != place or place in keys:
        key = order.randrange(ROWS) if target != place else row
        known = asked.get(schema["column_names_original"][target][1].lower(), [])
        return known[key] if key < len(known) else (key + 1 if numeric else f"{WORDS[key % len(WORDS)]}{key}")
    known = asked.get(schema["column_names_original"][place][1].lower(), [])
    if known and order.random() < 0.5:
        return order.choice(known)
    return order.randrange(1, 100) if numeric else f"{order.choice(WORDS)} {order.choice(WORDS)}"
