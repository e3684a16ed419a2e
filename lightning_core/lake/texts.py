"""Columns of text as positions in one buffer: the requests' bytes, and behind them the texts that were made."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
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

    def arrays(self, columns: dict[str, tuple[Ints, Ints]], keep: Sequence[str] = ()) -> dict[str, pa.Array]:
        """Arrow string views of (start, length) columns; none copies a text of more than 12 bytes.

        Columns of NULL alone are left out, but for those to `keep`.
        """
        columns = {name: column for name, column in columns.items() if name in keep or (column[1] >= 0).any()}
        parts = self.data, b"".join((*self._added, bytes(PAD)))
        # All columns at once: numpy takes longer to be called than to read the few spans of a block.
        starts, lengths = (np.concatenate([column[i] for column in columns.values()]) for i in (0, 1))
        words, buffers, end = _views(parts, starts, lengths), [pa.py_buffer(part) for part in parts], 0
        made: dict[str, pa.Array] = {}
        for name, (start, length) in columns.items():
            begin, end = end, end + len(start)
            valid = length >= 0
            made[name] = pa.Array.from_buffers(
                pa.string_view(),
                len(start),
                [None if valid.all() else _bitmap(valid), pa.py_buffer(words[begin:end]), *buffers],
            )
        return made


def invalid(data: bytes, start: Ints, length: Ints) -> list[int]:
    """Which of the texts are no UTF-8."""
    try:
        views = pa.py_buffer(_views((data,), start, length))
        pa.Array.from_buffers(pa.string_view(), len(start), [None, views, pa.py_buffer(data)]).validate(full=True)
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


def _views(parts: tuple[bytes, ...], start: Ints, length: Ints) -> npt.NDArray[np.int32]:
    """The four words of each string view; `parts` lie one behind the other. A length of -1 is an empty view."""
    words = np.zeros((len(start), 4), "<i4")
    words[:, 0] = np.maximum(length, 0)
    begin = 0
    for number, part in enumerate(parts):
        windows = np.lib.stride_tricks.sliding_window_view(np.frombuffer(part, np.uint8), _INLINE)
        here = np.flatnonzero((start >= begin) & (start < begin + len(part)) & (length > 0))
        at, size = start[here] - begin, length[here]
        head = windows[at]
        long = size > _INLINE
        head *= np.arange(_INLINE) < np.where(long, 4, size)[:, None]
        words[here, 1:] = head.view("<i4")
        words[here[long], 2] = number
        words[here[long], 3] = at[long]
        begin += len(part)
    return words


def taken_views(views: pa.Array, rows: npt.NDArray[np.int32]) -> pa.Array:
    """`views.take(rows)`, which Arrow does not have for string views (yet): no text is copied."""
    _, words, *parts = views.buffers()
    places = np.frombuffer(words, "<i4", 4 * len(views), 16 * views.offset).reshape(-1, 4)[rows]
    valid = None
    if views.null_count:
        valid = _bitmap(views.is_valid().to_numpy(zero_copy_only=False)[rows])
    return pa.Array.from_buffers(views.type, len(rows), [valid, pa.py_buffer(places), *parts])


def _bitmap(valid: Bools) -> pa.Buffer:
    return pa.py_buffer(np.packbits(valid, bitorder="little").tobytes())
