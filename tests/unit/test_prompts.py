"""Versions of prompts: the store, the settings that name their files, and the commands."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lightning_core.checks.check import check
from lightning_core.config import Settings, SettingsError
from lightning_core.config.prompt_search import PromptSearchSettings
from lightning_core.epoch.epoch import Run
from lightning_core.epoch.gain import Gain
from lightning_core.epoch.prompt_search import Champion, Search, put_in_use, search_of
from lightning_core.prompts.seeds import read_seeds
from lightning_core.prompts.store import PromptError, PromptStore, digest
from lightning_core.settings_file import load_settings
from lightning_flows.flows import cli

FILE = Path("prompts/writer.md")


def store_of(home: Path, text: str = "Write well.\n") -> PromptStore:
    store = PromptStore(home, "writer")
    store.read_file(text, FILE)
    return store


def test_the_first_version_is_the_files_text_and_is_used(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    seed = store.version("p0000")
    assert (store.versions(), store.marked("current"), store.marked("best")) == (["p0000"], "p0000", None)
    assert (seed.text, seed.digest, seed.parent) == ("Write well.\n", digest("Write well.\n"), None)
    assert seed.made_by == "prompts/writer.md"
    assert store.read_file("Write well.\n", FILE) == "p0000"
    assert store.versions() == ["p0000"]


def test_an_edited_file_is_a_new_version_named_as_an_edit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = store_of(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert store.read_file("Write better.", FILE) == "p0001"
    assert "prompts/writer.md was edited, which is p0001 (parent p0000)" in caplog.text
    edit = store.version("p0001")
    assert (edit.parent, edit.made_by, store.version("p0000").text) == (
        "p0000", "edit of prompts/writer.md", "Write well.\n",
    )  # fmt: skip
    # Undone, it is the version that it was; and what an agent may have in it are all the file's texts.
    assert store.read_file("Write well.\n", FILE) == "p0000"
    assert store.versions() == ["p0000", "p0001"]
    assert store.seeds() == ["Write better.", "Write well.\n"]


def test_a_file_that_is_not_edited_leaves_alone_what_was_found_since(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    found = store.add("Write best.", "an optimizer", "p0000")
    assert store.marked("current") == "p0000"
    store.put("current", found)
    assert store.read_file("Write well.\n", FILE) == found
    assert store.seeds() == ["Write well.\n"]


def test_what_is_pinned_stays_in_use_whatever_is_edited(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = store_of(tmp_path)
    store.put("pinned", "p0000")
    assert store.read_file("Write better.", FILE) == "p0000"
    assert "p0000 is pinned and stays in use" in caplog.text
    store.put("pinned", None)
    assert (store.marked("pinned"), store.read_file("Write better.", FILE)) == (None, "p0000")


def test_a_version_that_was_changed_on_disk_is_refused(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    file = store.folder / "p0000.json"
    file.write_text(file.read_text().replace("well", "ill"))
    with pytest.raises(PromptError, match=r"p0000\.json: it is not what was written"):
        store.version("p0000")
    for version in ("p0007", "../writer/p0000", "current"):
        with pytest.raises(PromptError, match="no version"):
            store.version(version)
    with pytest.raises(PromptError, match="cannot be empty"):
        store.add(" \n", "an optimizer", None)


def settings_of(folder: Path, prompts: Any) -> Settings:
    (folder / "settings.yaml").write_text(
        json.dumps(
            {"agent": {"command": "true"}, "tasks": {"train": "t"}, "home": str(folder / "home"), "prompts": prompts}
        )
    )
    return load_settings(folder / "settings.yaml")


def test_a_prompts_file_is_found_beside_the_settings(tmp_path: Path) -> None:
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts/writer.md").write_text("Write.")
    settings = settings_of(tmp_path, {"writer": {"file": "prompts/writer.md"}})
    assert read_seeds(settings.prompts) == {"writer": "Write."}
    assert [(one.level, one.found) for one in check(settings, parts=["prompts"])] == [("ok", "writer")]
    assert check(settings_of(tmp_path, {}), parts=["prompts"]) == []


@pytest.mark.parametrize(
    ("texts", "problem"),
    [
        ({}, r"prompts\.writer\.file: .*writer\.md: No such file"),
        ({"writer": " \n"}, r"prompts\.writer\.file: .*writer\.md is empty"),
        ({"writer": b"\xff\xfe"}, r"prompts\.writer\.file: .*writer\.md is no text"),
        ({"writer": "One.", "critic": "One.\n"}, r"prompts\.critic\.file: .* has the text of prompt 'writer'"),
    ],
)
def test_a_file_that_cannot_be_used_is_an_error_that_names_its_key(
    tmp_path: Path, texts: dict[str, str | bytes], problem: str
) -> None:
    for name, text in texts.items():
        (tmp_path / f"{name}.md").write_bytes(text if isinstance(text, bytes) else text.encode())
    settings = settings_of(tmp_path, {name: {"file": str(tmp_path / f"{name}.md")} for name in texts or ["writer"]})
    with pytest.raises(SettingsError, match=problem):
        read_seeds(settings.prompts)
    (found,) = check(settings, parts=["prompts"])
    assert found.level == "error"


@pytest.mark.parametrize(("pattern", "problem"), [("(", "is no regex"), (".*", "matches an empty text")])
def test_a_pattern_that_cannot_be_used_is_an_error_that_names_its_key(
    tmp_path: Path, pattern: str, problem: str
) -> None:
    with pytest.raises(SettingsError, match=rf"`prompts\.writer\.match`.*{problem}"):
        settings_of(tmp_path, {"writer": {"file": "w.md", "match": pattern}})


def run(home: Path, *arguments: str) -> str:
    done = CliRunner().invoke(cli.main, ["prompts", *arguments, "--home", str(home)])
    assert done.exit_code == 0, done.output
    return done.output


def refused(home: Path, *arguments: str) -> str:
    done = CliRunner().invoke(cli.main, ["prompts", *arguments, "--home", str(home)])
    assert done.exit_code == 1
    return done.output


def test_the_commands_list_show_set_and_pin(tmp_path: Path) -> None:
    store_of(tmp_path)
    better = tmp_path / "better.md"
    better.write_text("Write better.\n")
    assert "writer: p0001 is what new epochs use" in run(tmp_path, "set", "writer", str(better))
    assert run(tmp_path, "show", "writer") == "Write better.\n"
    assert run(tmp_path, "show", "writer", "p0000") == "Write well.\n"
    diff = run(tmp_path, "show", "writer", "--diff").splitlines()
    assert (diff[0], diff[-2:]) == ("--- writer p0000", ["-Write well.", "+Write better."])
    run(tmp_path, "pin", "writer", "p0000")
    rows = json.loads(run(tmp_path, "list", "--format", "json"))
    assert [(row["version"], row["parent"], row["is"], row["made by"]) for row in rows] == [
        ("p0000", None, ["current", "pinned"], "prompts/writer.md"),
        ("p0001", "p0000", [], f"by hand, from {better}"),
    ]
    assert "p0000 is pinned; `lightning-flows prompts unpin writer` first" in refused(
        tmp_path, "set", "writer", "p0001"
    )
    run(tmp_path, "unpin", "writer")
    run(tmp_path, "set", "writer", "p0001")
    assert "p0001" in run(tmp_path)
    assert PromptStore(tmp_path, "writer").marked("current") == "p0001"


def test_the_commands_say_what_there_is(tmp_path: Path) -> None:
    assert "no prompt 'writer'" in refused(tmp_path, "show", "writer")
    store_of(tmp_path)
    assert "nowhere.md: neither a file of text" in refused(tmp_path, "set", "writer", "nowhere.md")


SEARCH = {"reflection_model": "policy", "train_every": 2}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"prompt_search": SEARCH | {"train_offset": 2}},
            r"train_offset 2 is not below train_every 2, so `train` would never",
        ),
        ({"prompts": {}}, r"prompt_search\.train_every needs `prompts`"),
        ({"tasks": {"train": "t"}}, r"prompt_search\.train_every needs `tasks\.evaluate`"),
        (
            {"async_level": 1, "policies": [{"training": {"steps_per_epoch": 2}}]},
            r"`async_level: 1` rolls out an epoch while .* `prompt_search\.train_every: 0`",
        ),
    ],
)
def test_a_search_between_epochs_that_could_not_be_made_is_refused(changes: dict[str, Any], message: str) -> None:
    given = {"agent": {"command": "true"}, "tasks": {"train": "t", "evaluate": "e"}, "prompt_search": SEARCH}
    with pytest.raises(ValueError, match=message):
        Settings.model_validate(given | {"prompts": {"writer": {"file": str(FILE)}}} | changes)


def test_prompts_are_searched_before_every_nth_epoch_and_by_default_never(tmp_path: Path) -> None:
    def due(**search: Any) -> list[int]:
        settings = settings_of(tmp_path, {"writer": {"file": str(FILE)}})
        found = PromptSearchSettings.model_validate({"reflection_model": "policy"} | search)
        settings = settings.model_copy(update={"prompt_search": found})
        return [epoch for epoch in range(6) if settings.searches_before(epoch)]

    assert (due(), due(train_every=1), due(train_every=3, train_offset=1)) == ([], [0, 1, 2, 3, 4, 5], [1, 4])


def searching(folder: Path) -> Run:
    """A run with a prompt whose search is made before every epoch."""
    (folder / "prompts").mkdir(exist_ok=True)
    file = folder / FILE
    if not file.exists():
        file.write_text("Write.\n")
    given = {"agent": {"command": "true"}, "tasks": {"train": "t", "evaluate": "e"}, "home": str(folder / "home")}
    search = {"prompt_search": SEARCH | {"train_every": 1}, "prompts": {"writer": {"file": str(file)}}}
    return Run(Settings.model_validate(given | search))


def test_a_search_that_was_killed_when_its_version_was_in_use_is_the_same_search(tmp_path: Path) -> None:
    run = searching(tmp_path)

    def search(number: int) -> Search:
        return search_of(run, lambda epoch, planned: None, print, run.open(number, "train", run.versions(number)))

    began = search(1)
    better = began.stores["writer"].add("Write well.\n", "search", "p0000")
    began.stores["writer"].put("current", better)
    again = search(1)
    assert (again.own.run, again.before) == (began.own.run, {"writer": "p0000"})
    following = search(2)
    assert following.before == {"writer": better} and following.own.run != began.own.run
    alone = search_of(run, lambda epoch, planned: None, print)
    assert alone.before == {"writer": better} and alone.own.run != following.own.run


def test_a_version_that_was_found_is_not_put_in_place_of_one_that_is_pinned(tmp_path: Path) -> None:
    at = search_of(searching(tmp_path), lambda epoch, planned: None, print)
    store = at.stores["writer"]
    better = store.add("Write well.\n", "search", "p0000")
    found = Champion("r", {"writer": "p0000"}, {"writer": better}, 8, 2, Gain(tasks=12, gained=1.0, low=0.5, high=1.5))
    store.put("pinned", "p0000")
    assert not put_in_use(at, found)
    assert (store.marked("best"), store.marked("current")) == (better, "p0000")
    store.put("pinned", None)
    assert put_in_use(at, found) and store.marked("current") == better
