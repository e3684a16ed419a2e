"""Which tests are gone and which are new between two commits, by name; a test that only moved to another file is neither.

.venv/bin/python -m tests.names main HEAD
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator


def names(commit: str) -> dict[str, list[str]]:
    """Return the files of every test of the commit, by the test's name; nothing is imported or run."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in _git("ls-tree", "-r", "--name-only", commit, "tests").splitlines():
        if path.rpartition("/")[2].startswith("test_") and path.endswith(".py"):
            for name in named_in(_git("show", f"{commit}:{path}")):
                found[name].append(path)
    return found


def named_in(source: str) -> Iterator[str]:
    """Yield the names of the tests that pytest finds in a module, those of its classes with the class before them."""
    for node in ast.parse(source).body:
        inner = node.body if isinstance(node, ast.ClassDef) and node.name.startswith("Test") else [node]
        prefix = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
        for each in inner:
            if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef) and each.name.startswith("test"):
                yield prefix + each.name


def compared(before: dict[str, list[str]], after: dict[str, list[str]]) -> list[str]:
    """Return a line for every test that one side has and the other has not, or has fewer times."""
    lines = []
    for sign, one, other in (("-", before, after), ("+", after, before)):
        surplus = Counter({name: len(paths) for name, paths in one.items()})
        surplus.subtract({name: len(paths) for name, paths in other.items()})
        lines += sorted(
            f"{sign} {name}  ({', '.join(sorted((Counter(one[name]) - Counter(other.get(name, []))).elements()))})"
            for name in (+surplus)
        )
    return lines


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], check=True, capture_output=True, text=True).stdout


def main(before: str, after: str = "HEAD") -> None:
    """Print the comparison, and the counts last."""
    one, other = names(before), names(after)
    for line in compared(one, other):
        print(line)
    print(f"{sum(map(len, one.values()))} tests in {before}, {sum(map(len, other.values()))} in {after}")


if __name__ == "__main__":
    main(*sys.argv[1:])
