"""Does a version fit the one it came from: config, tokenizer, tensors? Reads small files and headers, no weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning_core.policies.model import safetensors_problem
from lightning_core.policies.tensor_files import OPTIONAL_TENSORS, shape_mismatch, tensors

# What makes token ids mean the same text. Chat templates belong to it: prompts are rendered with them.
_TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "vocab.txt", "tokenizer_config.json")
_TEMPLATES = ("chat_template.jinja", "special_tokens_map.json", "added_tokens.json")
# Keys of config.json that may differ without the model being another one.
_INCIDENTAL = {"_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache"}
_ADAPTER = ("r", "lora_alpha", "target_modules", "bias", "use_rslora", "use_dora")


def misfit(folder: Path, like: Path | None) -> str | None:
    """Return why the version in `folder` cannot follow the one in `like`, in words that name the file, or None.

    `like` is a folder of the same kind, or None for the first adapter: then only the files themselves are looked at.
    Tensors keep their dtype, or are float32, which training writes whatever it began with.
    """
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        return f"{folder} holds no *.safetensors"
    for file in weights:
        if problem := safetensors_problem(file):
            return f"{file} {problem}"
    if (folder / "adapter_config.json").is_file():
        return _adapter(folder, like)
    if not (folder / "config.json").is_file():
        return f"{folder / 'config.json'} is missing"
    return (
        None
        if like is None
        else _differs("config.json", folder, like) or _tokenizer(folder, like) or _tensors(folder, like)
    )


def _adapter(folder: Path, like: Path | None) -> str | None:
    if like is None:
        return _json(folder / "adapter_config.json")[1]
    return _differs("adapter_config.json", folder, like, set(_ADAPTER)) or _tensors(folder, like)


def _differs(name: str, folder: Path, like: Path, keys: set[str] | None = None) -> str | None:
    """Return in words which of these keys (None: all that matter) of a JSON file has another value than the parent's.

    None where none has. A file that cannot be read is reported too. With `keys`, the order in a list does not matter.
    """
    (have, problem), (want, other) = _json(folder / name), _json(like / name)
    for key in sorted(keys if keys is not None else (have.keys() | want.keys()) - _INCIDENTAL):
        mine, theirs = (sorted(v) if keys and isinstance(v, list) else v for v in (have.get(key), want.get(key)))
        if mine != theirs and not (problem or other):
            return f"{folder / name}: `{key}` is {mine}, its parent's {theirs}"
    return problem or other


def _tokenizer(folder: Path, like: Path) -> str | None:
    for name in (*_TOKENIZER, *_TEMPLATES):
        mine, theirs = folder / name, like / name
        if mine.is_file() != theirs.is_file():
            return (
                f"{mine}: {'its parent has no such file' if mine.is_file() else 'missing'}, so the tokenizer is another"
            )
        if mine.is_file() and mine.read_bytes() != theirs.read_bytes():
            return f"{mine}: another tokenizer or chat template than its parent's"
    return None


def _tensors(folder: Path, like: Path) -> str | None:
    if problem := shape_mismatch(folder, like):
        return f"{folder}: {problem}"
    had = tensors(like)
    for name, entry in tensors(folder).items():
        dtype, before = entry["dtype"], had.get(name, {}).get("dtype")
        if dtype not in ("F32", before) and name not in OPTIONAL_TENSORS:
            return f"{folder}: tensor {name} is {dtype}, its parent's {before}"
    return None


def _json(file: Path) -> tuple[dict[str, Any], str | None]:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        return {}, f"{file}: cannot be read as JSON ({error})"
    return (content, None) if isinstance(content, dict) else ({}, f"{file}: no JSON object")
