"""The number of a home's format: spool, lake, policies, all that a version of lightning-flows leaves for the next.

    home/format     {"format": 1, "lightning_flows": "0.1.0"}: the number, and the version that wrote it first, so reads it

It changes where an older version would misread what a newer one wrote. Whoever opens a home asks here first, and touches nothing
of a newer one. A home without the file is from before there were numbers: format 0. Imports the standard library only.
"""

from __future__ import annotations

import json
from pathlib import Path

from lightning_core.errors import LightningError
from lightning_core.files import write_atomic

FORMAT = 1  # lake/migrate.py takes an older home to it


class HomeError(LightningError):
    """A home that this version cannot read; the message names the version that does."""


def require_readable(home: Path) -> int:
    """Return the format of a home, 0 where it has none. Raises HomeError for a newer one than FORMAT."""
    file = home / "format"
    try:
        content = json.loads(file.read_bytes())
        number, written_by = int(content["format"]), str(content["lightning_flows"])
    except (FileNotFoundError, NotADirectoryError):
        return 0
    except (ValueError, KeyError, TypeError) as error:
        raise HomeError(
            f"{file}: not the format of a home ({error}); put the file back from a copy, or remove it if no newer version of "
            f"lightning-flows than {_version()} has worked in this home"
        ) from None
    if number > FORMAT:
        raise HomeError(
            f"{home} is of format {number}, which lightning-flows {written_by} reads and {_version()} does not (up to {FORMAT}); "
            f"install lightning-flows>={written_by}, or give another `home`"
        )
    return number


def begin(home: Path) -> None:
    """Give a home its number where it has none and nothing in it is older."""
    if require_readable(home) == 0 and not (home / "lake" / "manifests").exists():
        write_number(home)


def write_number(home: Path) -> None:
    write_atomic(home / "format", json.dumps({"format": FORMAT, "lightning_flows": _version()}).encode() + b"\n")


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version  # slow to import, and seldom needed

    try:
        return version("lightning-flows")
    except PackageNotFoundError:  # run from its sources
        return "of these sources"
