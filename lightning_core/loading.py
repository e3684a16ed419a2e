"""Python objects named in settings: `package.module:function` or `path/to/file.py:function`."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning_core.config import SettingsError
from lightning_core.user_code import describe


def load_callable(reference: str, setting: str) -> Callable[..., Any]:
    """Return the function that a setting names. Raises SettingsError naming the setting and what was not found."""
    place, _, name = reference.partition(":")
    if not name:
        raise SettingsError(f"{setting}: {reference!r}: write it as `module:function` or `path/to/file.py:function`")
    file = Path(place).resolve() if place.endswith(".py") else None
    if file is not None and not file.is_file():
        raise SettingsError(f"{setting}: {file}: no such file")
    try:
        module = importlib.import_module(place) if file is None else _from_file(file)
    except Exception as error:
        raise SettingsError(f"{setting}: {place!r} cannot be imported: {describe(error)}") from error
    found = getattr(module, name, None)
    if not callable(found):
        functions = [
            n for n, v in vars(module).items() if callable(v) and getattr(v, "__module__", None) == module.__name__
        ]
        raise SettingsError(f"{setting}: {place!r} has no function {name!r}; it has: {', '.join(functions) or 'none'}")
    return found


def _from_file(path: Path) -> Any:
    name = f"_lightning_{path.stem}_{abs(hash(path))}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.parent))  # a file's neighbours are importable, as when it is run
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.path.remove(str(path.parent))
    return module


def code_digest(reference: str | None) -> str:
    """Return a digest of a grader or an algorithm: its name, and the file that it is in where that can be found without importing it."""
    if reference is None:
        return ""
    place = reference.rpartition(":")[0] or reference
    if not place.endswith((".py", ".sql")):
        with contextlib.suppress(ImportError, ValueError):
            spec = importlib.util.find_spec(place)
            place = spec.origin if spec is not None and spec.origin else place
    content = Path(place).read_bytes() if Path(place).is_file() else b""
    return hashlib.sha256(reference.encode() + b"\0" + content).hexdigest()[:16]
