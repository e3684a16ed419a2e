"""lightning_core/files.py: locks."""

from __future__ import annotations

import fcntl
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lightning_core.files import locked
from tests.nobody import nobody


@pytest.fixture
def lock() -> Iterator[Path]:
    """A lock in a folder that others may read alone; they may not even that in pytest's."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "lock"
        file.touch()
        file.chmod(0o444)
        file.parent.chmod(0o555)
        yield file
        file.parent.chmod(0o755)


def test_who_may_only_read_sees_whether_somebody_holds_a_lock(lock: Path) -> None:
    with nobody(), locked(lock, wait=False, shared=True) as free:
        assert free
    holder = lock.open()
    try:
        fcntl.flock(holder, fcntl.LOCK_EX)
        with nobody(), locked(lock, wait=False, shared=True) as free:
            assert not free
    finally:
        holder.close()
