"""Which errors a user can mend. Everything else is a bug, and its traceback is wanted."""

from __future__ import annotations

import contextlib
from importlib.metadata import PackageNotFoundError, requires

from lightning_core.config import SettingsError
from lightning_core.files import is_full_disk

_OURS = ("lightning_core", "lightning_flows")
_EXTRAS = ("pipeline", "train", "scale", "cpu")  # in this order: `cpu` has all of the first two


def in_words(error: BaseException) -> str | None:
    """What is wrong and what to do, for an error that the user can mend; None for a bug.

    The errors that this project defines say both themselves.
    """
    if is_full_disk(error):
        remedy = "make room, and give the same command again: it goes on from there"
        return f"{error.filename or 'a file'}: the disk is full; {remedy}"
    if isinstance(error, (SettingsError, FileNotFoundError)):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and (extra := _extra_with(error.name or "")):
        return f"{error.name} is not installed; this needs pip install 'lightning-flows[{extra}]'"
    return str(error) if type(error).__module__.partition(".")[0] in _OURS else None


def _extra_with(module: str) -> str | None:
    """The extra of lightning-flows that brings a module, by the name of its package."""
    package = module.partition(".")[0].replace("_", "-")
    with contextlib.suppress(PackageNotFoundError):
        for extra in _EXTRAS:
            if any(
                line.startswith(package) and line.endswith(f"extra == '{extra}'")
                for line in requires("lightning-flows") or ()
            ):
                return extra
    return None
