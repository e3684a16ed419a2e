"""Which errors a user can mend. Everything else is a bug, and its traceback is wanted."""

from __future__ import annotations

from lightning_core.config import SettingsError
from lightning_core.files import is_full_disk

_OURS = ("lightning_core", "lightning_flows")


def in_words(error: BaseException) -> str | None:
    """What is wrong and what to do, for an error that the user can mend; None for a bug.

    The errors that this project defines say both themselves.
    """
    if is_full_disk(error):
        remedy = "make room, and give the same command again: it goes on from there"
        return f"{error.filename or 'a file'}: the disk is full; {remedy}"
    if isinstance(error, (SettingsError, FileNotFoundError)):
        return str(error)
    return str(error) if type(error).__module__.partition(".")[0] in _OURS else None
