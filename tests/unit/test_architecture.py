"""docs/architecture.md names every package, and each package's `__init__` every file in it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/architecture.md").read_text()
PACKAGES = sorted(
    str(folder.relative_to(ROOT))
    for folder in (ROOT / "flows", ROOT / "tasks", ROOT / "lightning_core", *(ROOT / "lightning_core").iterdir())
    if any(folder.glob("*.py"))
)


def test_the_page_names_every_package_and_none_that_is_not_there() -> None:
    rows = re.findall(r"^\| `([\w/]+)` \|", PAGE, re.MULTILINE)
    assert sorted(rows) == PACKAGES
    for name in re.findall(r"`((?:lightning_core|sql|examples|flows|tasks|tests)/[\w/.]*)`", PAGE):
        assert (ROOT / name).exists(), name


def test_the_picture_has_every_package_of_the_library() -> None:
    (picture,) = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
    missing = [name for name in PACKAGES if name.rpartition("/")[2] not in picture]
    assert missing == []


@pytest.mark.parametrize("package", [name for name in PACKAGES if name.startswith("lightning_core/")])
def test_a_package_names_its_files(package: str) -> None:
    docstring = ast.get_docstring(ast.parse((ROOT / package / "__init__.py").read_text())) or ""
    named = set(re.findall(r"(?<![/\w])(\w+)\.py\b", docstring))
    there = {file.stem for file in (ROOT / package).glob("*.py")} - {"__init__", "__main__"}
    assert named == there, f"{package}/__init__.py: name these, or take them out: {sorted(named ^ there)}"


_NO_VERB = re.compile(
    "A|All|An|As|At|Before|Both|Each|Every|For|From|How|In|It|Its|No|None|Of|One|Only|Some|That|The|These|This|Those|True|False|Two|"
    "Under|Until|What|When|Where|Whether|Which|Who|Why|With|Within|Without"
)


def test_docstrings_of_functions_begin_with_a_verb() -> None:
    found = []
    for file in (
        file for folder in ("lightning_core", "flows", "tasks") for file in sorted((ROOT / folder).rglob("*.py"))
    ):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (text := ast.get_docstring(node)):
                word = text.split()[0].rstrip(".,:;")
                if not word[0].isupper() or not word[1:].islower() or _NO_VERB.fullmatch(word):
                    found.append(f"{file.relative_to(ROOT)}:{node.lineno}: {word}")
    assert found == []
