"""Server-sent events, as far as the OpenAI API uses them: `data:` lines, an empty line after each event."""

from __future__ import annotations

from collections.abc import Iterator

DONE = b"[DONE]"


class SseParser:
    """Bytes in, whole events' data out, however the bytes were cut."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The data of the events that `data` completes; comments and other fields are skipped."""
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line and self._data:
                event, self._data = b"\n".join(self._data), []
                yield event


def event(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"
