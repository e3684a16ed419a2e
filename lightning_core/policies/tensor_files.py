"""A look into safetensors files without torch: do two folders hold the same tensors, and are all numbers finite?"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

from lightning_core.digests import FileKey, settled_key

# dtype in the header → (unsigned integer of that width, the bits of its exponent: all set means inf or NaN)
_EXPONENTS = {
    "F64": ("uint64", 0x7FF0_0000_0000_0000),
    "F32": ("uint32", 0x7F80_0000),
    "F16": ("uint16", 0x7C00),
    "BF16": ("uint16", 0x7F80),
}
_CHUNK = 1 << 18  # numbers looked at together: what a core's cache holds
_finite: set[FileKey] = set()  # files that this process has looked through

# A tied output layer is written by some and left out by others.
OPTIONAL_TENSORS = {"lm_head.weight"}


def read_header(file: Path) -> tuple[dict[str, Any], int]:
    """Return a safetensors file's tensors, by name, and where their bytes begin. Raises struct.error or ValueError."""
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        if length > file.stat().st_size:
            raise ValueError(f"{file} ends inside its header")
        header = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    return header, 8 + length


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that are loaded from a folder: others may lie beside those that its index names, as
    Mistral's `consolidated.safetensors` does."""
    files, index = sorted(folder.glob("*.safetensors")), folder / "model.safetensors.index.json"
    names = {*json.loads(index.read_bytes())["weight_map"].values()} if index.is_file() else {"model.safetensors"}
    return [file for file in files if file.name in names] or files


def tensors(folder: Path) -> dict[str, dict[str, Any]]:
    """Return name → entry in the header (`shape`, `dtype`) of all tensors of a folder."""
    return {name: entry for file in weight_files(folder) for name, entry in read_header(file)[0].items()}


def tensor_shapes(folder: Path) -> dict[str, list[int]]:
    """Return name → shape of all tensors of a folder."""
    return {name: entry["shape"] for name, entry in tensors(folder).items()}


def parameters(folder: Path) -> int:
    """Return how many numbers all tensors of a folder hold."""
    return sum(math.prod(shape) for shape in tensor_shapes(folder).values())


def shape_mismatch(folder: Path, like: Path) -> str | None:
    """Return the first tensor by which `folder` differs from `like` in name or shape, in words, or None."""
    have, want = tensor_shapes(folder), tensor_shapes(like)
    for name in sorted(have.keys() | want.keys()):
        if name in OPTIONAL_TENSORS and (name not in have or name not in want):
            continue
        if name not in have:
            return f"tensor {name} is missing"
        if name not in want:
            return f"tensor {name} is unknown to the model"
        if have[name] != want[name]:
            return f"tensor {name} has shape {have[name]} where the model has {want[name]}"
    return None


def nonfinite_tensor(folder: Path) -> str | None:
    """Return `file: tensor` of the first tensor with an inf or NaN in it, or None."""
    for file in weight_files(folder):
        key = settled_key(file)
        if key in _finite:
            continue
        if found := _nonfinite_in(file):
            return f"{file.name}: {found}"
        if key is not None:
            _finite.add(key)
    return None


def _nonfinite_in(file: Path) -> str | None:
    import numpy as np  # a tenth of the time that `lightning-flows --help` takes

    header, start = read_header(file)
    for name, entry in header.items():
        if entry["dtype"] not in _EXPONENTS:
            continue
        unsigned, exponent = _EXPONENTS[entry["dtype"]]
        integer = np.dtype(unsigned).type
        begin, end = entry["data_offsets"]
        count = (end - begin) // np.dtype(integer).itemsize
        if not count:
            continue
        numbers = np.memmap(file, dtype=integer, mode="r", offset=start + begin, shape=(count,))
        for at in range(0, count, _CHUNK):
            bits = numbers[at : at + _CHUNK]
            if entry["dtype"] == "F32":
                with np.errstate(over="ignore", invalid="ignore"):
                    # An inf or NaN among them makes the sum one; a sum that merely overflowed is looked into.
                    if np.isfinite(np.add.reduce(bits.view(np.float32))):
                        continue
            if np.any((bits & integer(exponent)) == integer(exponent)):
                return name
    return None
