"""Every block of README.md and docs/ runs, or is marked as not run (tests/docs_blocks.py says how)."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click
import duckdb
import pytest
import yaml
from click.testing import CliRunner

from lightning_core.config import SettingsError
from lightning_core.lake import catalog
from lightning_core.lake.manifest import EpochManifest
from lightning_core.policies.store import Lineage
from lightning_core.prompts.store import PromptStore
from lightning_core.settings_file import load_settings
from lightning_flows.flows.cli import main
from tests.docs_blocks import ALL, PAGES, ROOT, Block, outside, write_readme
from tests.frameworks import dump
from tests.lake_maker import Attempt, derived
from tests.policy_files import store_with_base, write_model

HOW = "where it cannot run in this test, write behind the language: ```LANGUAGE not-run: REASON, best with the test that runs it"
NOTHING = ("export", ".", "cd")  # they change a shell alone
# Words of the docs that stand for something of the reader's.
STANDS_FOR = {"ROLLOUT": "autogen.parallel", "FILE": "settings.yaml", "NAME": "epoch_report"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands of the docs find: the files of the README, `var` with rollouts and versions, `var/demo` likewise."""
    folder = tmp_path_factory.mktemp("reader")
    write_readme(folder)
    settings = yaml.safe_load((folder / "my_settings.yaml").read_text()) | {"lake": {"keep_days": 30}}
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings))
    (folder / "examples").symlink_to(ROOT / "examples")
    lake, _ = derived(folder / "home", autogen(), advantages="reinforce")
    for run in ("first-try", "second"):
        lake.manifests.put_epoch(EpochManifest(run=run, epoch=0, mode="train", opened_offset=0, sealed_offset=0))
    lake.rebuild_catalog()
    store = store_with_base(folder / "home")
    for number in (1, 2, 3):
        lineage = Lineage(run="demo", epoch=number - 1, base_model="base", parent=f"v{number - 1:04d}")
        store.publish(write_model(folder / f"out{number}", float(number)), lineage)
    store.set_current("v0003")
    prompts = PromptStore(folder / "home", "writer")
    for text in ("You write for {customer}. Be brief.\n", "Write two lines for {customer}.\n"):
        prompts.read_file(text, Path("prompts/writer.md"))
    (folder / "better.md").write_text("Write one line for {customer}.\n")
    shutil.copytree(folder / "home", folder / "var")
    (folder / "home").rename(folder / "var/demo")
    return folder


def autogen() -> list[dict[str, Any]]:
    """The spans of AutoGen's rollouts, each rewarded under its root."""
    from lightning_core.lake.decode import Decoder

    decoded, _ = Decoder().decode([(place, place + 1, record) for place, record in enumerate(dump.load("autogen"))])
    rows: list[dict[str, Any]] = decoded.to_pylist()
    for root in [row for row in rows if row["op"] == "rollout"]:
        given = Attempt(root["rollout_id"], root["attempt_id"])
        given.reward(1.0, parent=root["span_id"], start_ns=root["end_ns"], end_ns=root["end_ns"])
        rows += given.rows
    return rows


@pytest.fixture
def reader(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `made`, the working directory."""
    folder = tmp_path / "reader"
    shutil.copytree(made, folder, symlinks=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)  # as activated
    return folder


@pytest.mark.parametrize("block", ALL, ids=str)
def test_a_block_runs_or_says_why_not(block: Block, reader: Path) -> None:
    check = KINDS.get(block.language)
    if check is None and not block.reason:
        wrong(block, f"nothing runs {block.language or 'a block without a language'}; {HOW}; what nobody runs is text")
    if block.words and not block.reason:
        wrong(block, f"{block.words!r} says nothing; {HOW}")
    for named in re.findall(r"tests/[\w/.]+\w", block.reason or ""):
        if not (ROOT / named).exists():
            wrong(block, f"there is no {named}")
    if check is not None:
        check(block, reader)


def wrong(block: Block | Path, message: str) -> NoReturn:
    pytest.fail(f"{block if isinstance(block, Block) else block.relative_to(ROOT)}: {message}", pytrace=False)


def python(block: Block, folder: Path) -> None:
    # A block that is imported waits for nothing; one that is not may be of a notebook.
    compile(block.text, str(block), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT if block.left_out else 0)
    if not block.left_out:
        (folder / "block.py").write_text(block.text)  # imported: what it does as a command is another test's
        done = subprocess.run([sys.executable, "-c", "import block"], capture_output=True, text=True)
        if done.returncode != 0:
            wrong(block, f"{done.stderr}\n{HOW}")


def settings(block: Block, folder: Path) -> None:
    """Sections of settings, in a file with what has to be there; a key that is there twice stands for one or the other."""
    given: dict[str, list[Any]] = {}
    node = yaml.compose(block.text)
    assert isinstance(node, yaml.MappingNode)
    for key, value in node.value:
        given.setdefault(key.value, []).append(yaml.safe_load(yaml.serialize(value)))
    part_of = re.match(r"# (\S+\.yaml), in part\n", block.text)
    whole = yaml.safe_load((ROOT / part_of[1]).read_text()) if part_of else {}
    for nth in range(0 if block.left_out else max(map(len, given.values()))):
        raw = {key: values[min(nth, len(values) - 1)] for key, values in given.items()}
        if part_of and not raw.items() <= whole.items():
            wrong(block, f"{part_of[1]} has other values")
        raw = {"tasks": {"train": "tasks.jsonl", "evaluate": "held_out.jsonl"}} | raw
        agent = raw.setdefault("agent", {})
        if not {"callable", "command"} & set(agent):
            agent["command"] = "true"
        (folder / "block.yaml").write_text(yaml.safe_dump(raw))
        try:
            load_settings(folder / "block.yaml")
        except SettingsError as error:
            wrong(block, f"{str(error).removeprefix(f'{folder}/')}\nIf these are no settings: {HOW}")


def shell(block: Block, folder: Path) -> None:
    for command in block.commands():
        program, line = command[0], " ".join(command)
        words = [STANDS_FOR.get(word, word) for word in command[1:]]
        problem = unknown(program, words)
        if problem:
            wrong(block, f"`{line}`: {problem}")
        if program in NOTHING or any(line.startswith(begins) for begins in block.left_out):
            continue
        if program != "lightning-flows":
            wrong(block, f"`{line}` is neither run nor marked; {HOW}")
        done = CliRunner().invoke(main, words)
        if done.exit_code != 0:
            wrong(block, f"`{line}`: {done.output}{done.exception!r}\n{HOW}")
    for begins in block.left_out:
        if not any(" ".join(command).startswith(begins) for command in block.commands()):
            wrong(block, f"it says {begins!r} is not run, and no command begins so")


def unknown(program: str, words: list[str], whole: bool = True) -> str | None:
    """What of a command does not exist: its name, an option, a target of make. `whole`: also an argument that is missing."""
    if program == "make":
        known = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return ", ".join(f"no target {word}" for word in words if "=" not in word and word not in known) or None
    if program != "lightning-flows":
        return None
    command: click.Command | None = main
    try:
        while command is not None:
            with command.make_context("", list(words)) as context:
                words = command.make_parser(context).parse_args(list(words))[1]
                command = (
                    command.resolve_command(context, words)[1] if isinstance(command, click.Group) and words else None
                )
                words = words[1:]
    except click.MissingParameter as error:
        return error.format_message() if whole else None
    except click.ClickException as error:
        return error.format_message()
    return None


def sql(block: Block, folder: Path) -> None:
    """The catalog answers each statement, and as the comment behind it says: columns by a space, rows by a bar."""
    if block.left_out:
        return
    with catalog.connect(folder / "var/lake") as con:
        for statement, answer in re.findall(r"(.+?)(?:;|\Z)(?:\n-- ([^\n]*))?", block.text.strip(), re.DOTALL):
            try:
                rows = con.sql(statement).fetchall()
            except duckdb.Error as error:
                wrong(block, f"{error}\n{HOW}")
            found = " | ".join(" ".join("NULL" if value is None else str(value) for value in row) for row in rows)
            if answer and found != answer:
                wrong(block, f"{statement.strip()}\nanswers {found}\nand not  {answer}")


def text(block: Block, folder: Path) -> None:
    """Drawings and printed tables; after `$ lightning-flows …` the lines that it prints, in their order, `…` for others."""
    first, *shown = block.text.splitlines()
    if not first.startswith("$ "):
        return
    done = CliRunner().invoke(main, shlex.split(first)[2:])
    printed, place = [line.rstrip() for line in done.output.splitlines()], 0
    for line in shown:
        if line != "…":
            if line not in printed[place:]:
                wrong(block, f"`{first[2:]}` does not print\n{line}\nbut\n{done.output}")
            place = printed.index(line, place) + 1


def as_json(block: Block, folder: Path) -> None:
    try:
        json.loads(block.text)
    except ValueError:  # one object a line
        for line in block.text.splitlines():
            json.loads(line)


KINDS: dict[str, Callable[[Block, Path], None]] = {
    "json": as_json,
    "python": python,
    "sh": shell,
    "sql": sql,
    "text": text,
    "yaml": settings,
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_within_a_line_exist_and_code_is_fenced(page: Path) -> None:
    prose = outside(page)
    for program, words in re.findall(r"`(lightning-flows|make) ([^`]+)`", prose):
        problem = unknown(program, shlex.split(words), whole=False)
        if problem:
            wrong(page, f"`{program} {words}`: {problem}")
    indented = re.search(r"^\n {4}\S.*", prose, re.MULTILINE)
    if indented:
        wrong(
            page,
            f"{indented[0].strip()}: code that is indented; write a fence with its language, so that it is checked",
        )
