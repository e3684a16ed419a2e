"""How much there is to read in JSON, found without reading it.

Reading JSON holds the interpreter's lock, in whichever thread it is done, and everything else waits. Text is read by the gigabyte a
second; what takes time, and memory by twenty times its length, is many values. They are counted in small steps, between which
other threads go on.
"""

from __future__ import annotations

import re

MOST_VALUES = 500_000  # texts, lists and objects of a body; sixteen numbers count as one of them

_NUMBERS = 16
_STEP = 65_536  # bytes
_QUOTE = 0x22
_IN_TEXT = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
_TEXT = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_WHOLE_TEXTS = re.compile(rb'(?:[^"]++|"(?:[^"\\]++|\\.)*+")*+', re.DOTALL)  # and what is between them


def has_too_many_values(body: bytes) -> bool:
    """Return whether JSON has more than `MOST_VALUES` values."""
    found, at = 0, 0
    while at < len(body):
        end = _end(_WHOLE_TEXTS, body, at)
        between, texts = _TEXT.subn(b"", body[at:end])
        found += between.count(b",") + _NUMBERS * (texts + between.count(b"[") + between.count(b"{"))
        if end < len(body) and body[end] == _QUOTE:
            end = _behind_text(body, end + 1)
            found += _NUMBERS
        if found > MOST_VALUES * _NUMBERS:
            return True
        at = end
    return False


def _behind_text(body: bytes, at: int) -> int:
    """Return the position behind the text that began before `at`; the body's end where the text has no end."""
    while at < len(body):
        end = _end(_IN_TEXT, body, at)
        if end < len(body) and body[end] == _QUOTE:
            return end + 1
        if end == at:  # a backslash is all that is left
            break
        at = end
    return len(body)


def _end(pattern: re.Pattern[bytes], body: bytes, at: int) -> int:
    found = pattern.match(body, at, at + _STEP)
    assert found is not None  # each matches nothing at all, too
    return found.end()
