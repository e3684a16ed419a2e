"""Tell what a user can mend from what is a bug: the first is shown as one line, the second with its traceback.

The standard library alone: every package imports this.
"""

from __future__ import annotations

import contextlib
import logging

from lightning_core.files import is_full_disk

_EXTRAS = ("pipeline", "train", "scale", "cpu")  # in this order: `cpu` has all of the first two


class LightningError(RuntimeError):
    """What a user can mend: the message names the place and the remedy. Any other error is a bug."""


class Missing(LightningError, FileNotFoundError):
    """A file or folder that is not there (yet)."""


def in_words(error: BaseException) -> str | None:
    """Return what is wrong and what to do; None for a bug, which then carries a note on where to report it."""
    if is_full_disk(error):
        remedy = "make room, and give the same command again: it goes on from there"
        return f"{error.filename or 'a file'}: the disk is full; {remedy}"
    if isinstance(error, LightningError):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and (extra := _extra_with(error.name or "")):
        return f"{error.name} is not installed; this needs pip install 'lightning-flows[{extra}]'"
    note = _please_report()
    if note not in getattr(error, "__notes__", ()):
        error.add_note(note)
    return None


def without_traceback(record: logging.LogRecord) -> bool:
    """Put the words of a LightningError in a log record's place, marked as `mendable`. A filter that drops nothing."""
    error = record.exc_info[1] if record.exc_info else None
    message = None if error is None else in_words(error)
    if message is not None:
        record.msg, record.args, record.exc_info, record.exc_text = message, None, None, None
        record.mendable = True
    return True


def _extra_with(module: str) -> str | None:
    """Return the extra of lightning-flows that brings a module, by the name of its package."""
    from importlib.metadata import PackageNotFoundError, requires  # slow to import, and seldom needed

    package = module.partition(".")[0].replace("_", "-")
    with contextlib.suppress(PackageNotFoundError):
        for extra in _EXTRAS:
            if any(
                line.startswith(package) and line.endswith(f"extra == '{extra}'")
                for line in requires("lightning-flows") or ()
            ):
                return extra
    return None


def _please_report() -> str:
    """Return what to do about a bug, with the address where the package's metadata name one."""
    from importlib.metadata import PackageNotFoundError, metadata

    name, where = "lightning-flows", ""
    with contextlib.suppress(PackageNotFoundError):  # run from its sources
        about = metadata("lightning-flows")
        urls = dict(url.split(", ", 1) for url in about.get_all("Project-URL") or [])
        name, where = f"{name} {about['Version']}", f" at {urls['Issues']}" if "Issues" in urls else ""
    return (
        f"{name} did not expect this error. Unless it comes from code of yours, it is a bug: please report it{where}, with "
        "the lines above and the run's log (logs/ in its home)"
    )
