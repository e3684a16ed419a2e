"""Server-sent events, as far as the OpenAI API uses them: `data:` lines, an empty line after each event."""

from __future__ import annotations

from collections.abc import Iterator

DONE = b"[DONE]"
_LARGEST = 1 << 24  # bytes of an event: the ids of a prompt of a million tokens are seven million


class SseParser:
    """Bytes in, whole events' data out, however the bytes were cut."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._data: list[bytes] = []
        self._size = 0  # of `_data`

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the data of the events that `data` completes, without comments and other fields. Raises ValueError."""
        *lines, rest = data.split(b"\n")
        for line in lines:
            if self._rest:
                line, self._rest = bytes(self._rest + line), bytearray()
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
                self._size += len(line)
            elif not line and self._data:
                event, self._data, self._size = b"\n".join(self._data), [], 0
                yield event
        self._rest += rest
        if self._size + len(self._rest) > _LARGEST:
            raise ValueError(f"an event of the stream has more than {_LARGEST} bytes")


def event(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"
