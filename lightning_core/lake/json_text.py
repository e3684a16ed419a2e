"""JSON within texts, read so that nothing it says stays unseen: repeated keys, NaN, lone surrogates, JSON Lines.

`read` gives dicts, lists, texts and numbers; what it gives can be changed and written again with `write`.
"""

from __future__ import annotations

import json
import re
from typing import Any

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_MOST_DIGITS = 4000  # that Python reads as a number


class Repeated(dict[str, Any]):
    """An object in which a key comes twice: `items` has every pair, the rest knows the last."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self._pairs = pairs

    def items(self) -> Any:  # which json.dumps asks, too
        return self._pairs

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Repeated) and self._pairs == other._pairs

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None


class Lines(list[Any]):
    """JSON Lines: a value a line."""


def read(text: str) -> Any:
    """The object, list or text that a text holds as JSON, or its `Lines`; None where it is no JSON, or a number."""
    if not text or text[0] not in '{[" \n\t\r':
        return None
    value = _value(text)
    if value is None and "\n" in text:
        return _lines(text)
    return value if isinstance(value, dict | list | str) else None


def write(value: Any) -> str:
    """A value as JSON, or as lines of it."""
    if isinstance(value, Lines):
        return "\n".join(write(item) for item in value)
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def as_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of these members; none is lost where a key comes again."""
    found = dict(pairs)
    return found if len(found) == len(pairs) else Repeated(pairs)


def _value(text: str) -> Any:
    """The JSON value of a text, None where it has none (or is null).

    Half a surrogate pair becomes a question mark, as it has no UTF-8 form.
    """
    try:
        value = _loads(text)
        if _SURROGATE.search(text):
            value = _loads(write(value).encode("utf-8", "replace").decode())
    except (ValueError, RecursionError):
        return None
    return value


def _loads(text: str) -> Any:
    """With all that orjson refuses or leaves out: NaN, whole numbers beyond 64 bits, repeated keys, bare line ends."""
    try:
        return json.loads(text, object_pairs_hook=as_object, strict=False)
    except json.JSONDecodeError:
        raise
    except ValueError:  # more digits than Python reads
        return json.loads(text, object_pairs_hook=as_object, strict=False, parse_int=_whole)


def _whole(digits: str) -> int | str:
    return int(digits) if len(digits) < _MOST_DIGITS else digits


def _lines(text: str) -> Lines | None:
    found = Lines()
    for line in text.split("\n"):
        if line.strip():
            value = _value(line)
            if value is None and line.strip() != "null":
                return None
            found.append(value)
    return found if any(isinstance(value, dict | list | str) for value in found) else None
