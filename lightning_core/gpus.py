"""The NVIDIA cards of this machine, as `nvidia-smi` has them. Without torch, so a flow can ask before anything is loaded."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass

_ASKED = ("index", "uuid", "name", "memory.total", "memory.free", "driver_version")
_TIMEOUT_S = 20.0  # the first question wakes the driver
OLDEST_DRIVER = 580  # of CUDA 13, which the wheels of the lock are built for


@dataclass(frozen=True)
class Card:
    """One card; memory in bytes."""

    index: str
    uuid: str
    name: str
    total: int
    free: int
    driver: str


def cards() -> list[Card]:
    """Return the cards of this machine; none where `nvidia-smi` is missing or fails."""
    command = ["nvidia-smi", f"--query-gpu={','.join(_ASKED)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return parse(done.stdout)


def parse(table: str) -> list[Card]:
    """Parse the table that `cards` asks for; a card that does not report its memory (MiB) is left out."""
    found = []
    for line in table.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) == len(_ASKED) and fields[3].isdigit() and fields[4].isdigit():
            index, uuid, name, total, free, driver = fields
            found.append(Card(index, uuid, name, int(total) << 20, int(free) << 20, driver))
    return found


def seen(here: list[Card], devices: str | None, several: bool = False) -> list[Card]:
    """Return the cards that a value of CUDA_VISIBLE_DEVICES names.

    None: that of this process, of which one process takes the first.
    """
    if devices is None:
        devices = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = [card.index for card in here] if devices is None else devices.split(",")
        names = names if several else names[:1]
    else:
        names = devices.split(",")
    return [card for name in names for card in here if name and (card.index == name or card.uuid.startswith(name))]
