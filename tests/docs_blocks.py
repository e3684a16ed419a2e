"""The fenced blocks of README.md and docs/, and what their marks say.

    ```sh not-run: REASON                      nothing of the block is run
    ```sh not-run mlflow, make demo: REASON    commands that begin so are not run, all others are

The words after the language do not show. A reason that names a file of tests/ says which test runs it instead.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_MARK = "not-run"


@dataclass(frozen=True)
class Block:
    """`words` is what stands behind the language; `line` is the fence's, from 1."""

    page: Path
    line: int
    language: str
    words: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def reason(self) -> str | None:
        """Why it, or a part of it, is not run; None without a mark."""
        return self.words.partition(":")[2].strip() if self.words.startswith(_MARK) else None

    @property
    def left_out(self) -> list[str]:
        """How the commands begin that the mark names; [""], with which each begins, where it names none."""
        if self.reason is None:
            return []
        named = self.words.removeprefix(_MARK).partition(":")[0]
        return [" ".join(command.split()) for command in named.split(",")]

    def commands(self) -> list[list[str]]:
        """The words of every command of a shell block, without comments and assignments before it."""
        found: list[list[str]] = []
        for line in self.text.replace("\\\n", " ").splitlines():
            rest = shlex.split(line, comments=True)
            while rest:
                end = rest.index("&&") if "&&" in rest else len(rest)
                command, rest = rest[:end], rest[end + 1 :]
                while command and re.match(r"\w+=", command[0]):
                    command.pop(0)
                found += [command] if command else []
        return found


def blocks(page: Path) -> list[Block]:
    """Every fenced block of a page. Raises ValueError where one is not closed."""
    found, lines = [], page.read_text().splitlines()
    place = 0
    while place < len(lines):
        fence = re.match(r"( *)(`{3,}|~{3,})\s*(\S*)\s*(.*)", lines[place])
        if fence:
            indent, mark, language, words = fence.groups()
            ends = [n for n in range(place + 1, len(lines)) if lines[n].strip() == mark]
            if not ends:
                raise ValueError(f"{page.name}:{place + 1}: the block is not closed")
            inside = [line.removeprefix(indent) for line in lines[place + 1 : ends[0]]]
            found.append(Block(page, place + 1, language, words.strip(), "\n".join(inside) + "\n"))
            place = ends[0]
        place += 1
    return found


def outside(page: Path) -> str:
    """A page's text with its blocks blanked, line by line."""
    lines = page.read_text().splitlines()
    for block in blocks(page):
        for number in range(block.line - 1, block.line + block.text.count("\n") + 1):
            lines[number] = ""
    return "\n".join(lines)


def write_readme(folder: Path) -> None:
    """The files that the README shows, each with its name in the first line."""
    for block in blocks(ROOT / "README.md"):
        named = re.match(r"# (my_\w+\.(py|yaml))\n", block.text)
        if named:
            (folder / named[1]).write_text(block.text)


ALL = [block for page in PAGES for block in blocks(page)]
