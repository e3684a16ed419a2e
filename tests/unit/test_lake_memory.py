"""Decoding keeps its memory while it goes on, and leaves the process as it was."""

from __future__ import annotations

import pyarrow as pa
import pytest

from lightning_core.lake import memory


def test_arrows_pool_is_put_back_also_after_an_error() -> None:
    before = pa.default_memory_pool().backend_name
    with pytest.raises(RuntimeError), memory.kept():
        raise RuntimeError
    assert pa.default_memory_pool().backend_name == before


def test_what_was_made_meanwhile_lives_on() -> None:
    with memory.kept():
        made = pa.array(range(100_000))
    assert made[99_999].as_py() == 99_999
