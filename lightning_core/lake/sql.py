"""The files of `sql/`: one SELECT a file, the table named after the file."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2] / "sql"


@cache
def text(name: str) -> str:
    """The SQL of `hierarchy/span_tree` or the like. Raises FileNotFoundError that names the folder looked in."""
    path = ROOT / f"{name}.sql"
    if not path.is_file():
        raise FileNotFoundError(f"no {name}.sql under {ROOT}; known: {', '.join(names())}")
    return path.read_text().rstrip().removesuffix(";")


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
