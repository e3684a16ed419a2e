"""Columns of text as positions in one buffer: the requests' bytes, and behind them the texts that were made."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from lightning_core.lake.wire import PAD, Bools, Ints

_INLINE = 12  # bytes that a string view holds itself


class Texts:
    """Texts at `start`, `length` bytes long, of `data` and of what `add` put behind it."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self._added: list[bytes] = []
        self._end = len(data)

    def add(self, texts: Sequence[bytes | None]) -> tuple[Ints, Ints]:
        """(start, length) of new texts; length -1 stands for NULL."""
        blob = b"".join([t or b"" for t in texts])
        length = np.array([-1 if t is None else len(t) for t in texts], np.int64)
        start = self._end + np.cumsum(np.maximum(length, 0)) - np.maximum(length, 0)
        self._added.append(blob)
        self._end += len(blob)
        return start, length

    def arrays(self, columns: dict[str, tuple[Ints, Ints]]) -> dict[str, pa.Array]:
        """Arrow string views of (start, length) columns; none copies a text of more than 12 bytes."""
        parts = self.data, b"".join((*self._added, bytes(PAD)))
        return {name: _string_view(parts, start, length) for name, (start, length) in columns.items()}


def invalid(data: bytes, start: Ints, length: Ints) -> list[int]:
    """Which of the texts are no UTF-8."""
    try:
        _string_view((data,), start, length).validate(full=True)
        return []
    except pa.ArrowInvalid:
        return [
            i
            for i, (b, n) in enumerate(zip(start.tolist(), length.tolist(), strict=True))
            if not _is_utf8(data[b : b + max(n, 0)])
        ]


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
        return True
    except UnicodeDecodeError:
        return False


def _string_view(parts: tuple[bytes, ...], start: Ints, length: Ints) -> pa.Array:
    null = length < 0
    words = np.zeros((len(start), 4), "<i4")
    words[:, 0] = length = np.maximum(length, 0)
    begin = 0
    for number, part in enumerate(parts):
        windows = np.lib.stride_tricks.sliding_window_view(np.frombuffer(part, np.uint8), _INLINE)
        here = np.flatnonzero((start >= begin) & (start < begin + len(part)) & ~null)
        head = windows[start[here] - begin]
        long = length[here] > _INLINE
        head *= np.arange(_INLINE) < np.where(long, 4, length[here])[:, None]
        words[here, 1:] = head.view("<i4")
        words[here[long], 2] = number
        words[here[long], 3] = start[here[long]] - begin
        begin += len(part)
    buffers = [_bitmap(~null) if null.any() else None, pa.py_buffer(words), *(pa.py_buffer(part) for part in parts)]
    return pa.Array.from_buffers(pa.string_view(), len(start), buffers)


def _bitmap(valid: Bools) -> pa.Buffer:
    return pa.py_buffer(np.packbits(valid, bitorder="little").tobytes())
