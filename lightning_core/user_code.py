"""Exceptions of the user's own code, as the user wants to see them: with their frames, without ours.

Imports the standard library alone: an agent's own Python reads this too.
"""

from __future__ import annotations

import importlib
import traceback
from pathlib import Path

_ROOT = Path(__file__).parents[1]  # as it was imported, for frames have their files as they were imported
_OURS = tuple(f"{_ROOT / name}/" for name in ("lightning_core", "lightning_flows"))
_OURS += ("<frozen importlib", f"{Path(importlib.__file__).parent}/")  # Python's import, through which they are loaded
_FRAMES, _CHARS = 8, 4000


def describe(error: BaseException) -> str:
    """Return the exception and the frames it passed through, without those of this project and of Python's import."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not _is_ours(f.filename)]
    message = "".join(traceback.format_exception_only(type(error), error)).strip()
    where = "".join(traceback.format_list(frames[-_FRAMES:])).rstrip()
    return f"{message[:_CHARS]}\n{where[-_CHARS:]}".rstrip()


def _is_ours(filename: str) -> bool:
    return filename.startswith(_OURS)
