"""How large the house is, as one JSON line: lines and statements a package, settings, circles and upward imports.

    .venv/bin/python -m bench.house

`circles`: modules that import each other, directly or around, when they are loaded (imports within functions and for type
checkers do not count). `upward`: imports against the layers of tests/unit/test_layers.py.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Collection, Iterator
from pathlib import Path

from docs.generate import settings_page
from tests.unit.test_layers import FORBIDDEN, ROOT, imported

FOLDERS = ("lightning_core", "tasks", "flows")


def house() -> dict[str, object]:
    """Return what the line says."""
    files = {file: file.read_text() for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.py"))}
    trees = {file: ast.parse(text) for file, text in files.items()}
    packages: dict[str, dict[str, int]] = {}
    for file, text in files.items():
        counted = packages.setdefault(str(file.parent.relative_to(ROOT)), {"files": 0, "lines": 0, "statements": 0})
        counted["files"] += 1
        counted["lines"] += text.count("\n")
        counted["statements"] += sum(isinstance(node, ast.stmt) for node in ast.walk(trees[file]))
    longest = max(files, key=lambda file: files[file].count("\n"))
    return {
        "packages": packages,
        **{key: sum(counted[key] for counted in packages.values()) for key in ("files", "lines", "statements")},
        "settings": sum(
            line.startswith("| `") and "| see below |" not in line for line in settings_page().splitlines()
        ),
        "longest": {str(longest.relative_to(ROOT)): files[longest].count("\n")},
        "circles": circles({_module(file): tree for file, tree in trees.items()}),
        "upward": [
            f"{file.relative_to(ROOT)}: {', '.join(sorted(wrong))}"
            for folder, above in FORBIDDEN.items()
            for file in sorted((ROOT / folder).rglob("*.py"))
            if (wrong := imported(file) & above)
        ],
    }


def circles(trees: dict[str, ast.Module]) -> list[list[str]]:
    """Return groups of modules of which each imports each, over others or not, when it is loaded."""
    imports = {name: set(_loaded(tree, trees)) - {name} for name, tree in trees.items()}
    reached = {name: _reached(name, imports) for name in imports}
    groups = {
        tuple(sorted(a for a in reached[name] if name in reached[a])) for name in imports if name in reached[name]
    }
    return [list(group) for group in sorted(groups)]


def _reached(start: str, imports: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    waiting = [start]
    while waiting:
        new = imports[waiting.pop()] - found
        found |= new
        waiting += new
    return found


def _loaded(node: ast.AST, modules: Collection[str]) -> Iterator[str]:
    """The modules, of those given, that a module imports when it is loaded."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (name for alias in child.names if (name := _plain(alias.name)) in modules)
        elif isinstance(child, ast.ImportFrom) and child.module and not child.level:
            for alias in child.names:
                package, module = _plain(child.module), f"{_plain(child.module)}.{alias.name}"
                yield from [name for name in (module, package) if name in modules][:1]
        elif not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) and not (
            isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        ):
            yield from _loaded(child, modules)


def _module(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def _plain(name: str) -> str:
    """A module by its folder at the top, by which it may be known under another name too."""
    return name.removeprefix("lightning_flows.")


if __name__ == "__main__":
    print(json.dumps(house()))
