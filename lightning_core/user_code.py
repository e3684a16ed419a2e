"""Exceptions of the user's own code, as the user wants to see them: with their frames, without ours.

Imports the standard library alone: an agent's own Python reads this too.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path
from types import ModuleType

_ROOT = Path(__file__).resolve().parents[1]
_OURS = tuple(f"{_ROOT / name}/" for name in ("flows", "lightning_core", "tasks"))
_OURS += ("<frozen importlib", f"{Path(importlib.__file__).parent}/")  # Python's import, through which they are loaded
PACKAGES = ("flows", "sql", "tasks")  # ours, with names that a user's module may have as well
_FRAMES, _CHARS = 8, 4000


def describe(error: BaseException) -> str:
    """The exception and the frames it came through, without those of this project and of Python's import."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not _is_ours(f.filename)]
    said = "".join(traceback.format_exception_only(type(error), error)).strip()
    where = "".join(traceback.format_list(frames[-_FRAMES:])).rstrip()
    return f"{said[:_CHARS]}\n{where[-_CHARS:]}".rstrip() + _clash(error)


def clash(name: str) -> str:
    """What to do where a user's module has the name of a package of ours."""
    return f"`{name}` is a package of lightning-flows, which Python finds before a module of yours; give yours another name"


def _is_ours(filename: str) -> bool:
    return filename.startswith(_OURS)


def _clash(error: BaseException) -> str:
    name = getattr(error, "name", None) if isinstance(error, ImportError) else None
    module = getattr(error, "obj", None) if isinstance(error, AttributeError) else None
    if isinstance(module, ModuleType):
        name = module.__name__
    name = (name or "").partition(".")[0]
    file = getattr(sys.modules.get(name), "__file__", None)
    ours = name in PACKAGES and file is not None and Path(file).is_relative_to(_ROOT / name)
    return f"\n{clash(name)}" if ours else ""
