"""The JSON of a request: a large one is looked through before it is read, and beside the event loop."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson

from lightning_core.gateway.http import HttpError
from lightning_core.otlp.json_values import MOST_VALUES, has_too_many_values

AT_ONCE = 65_536  # bytes; they take a few milliseconds at most


async def read_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object that a body is; HttpError 400 where it is none, 413 where it has too many values."""
    found = await read_value(body)
    if not isinstance(found, dict):
        raise HttpError(400, "the body is no JSON object")
    return found


async def read_value(body: bytes) -> Any:
    """Return the value of JSON of any size; HttpError 400 where it is no JSON, 413 where it has too many values."""
    return _value(body) if len(body) <= AT_ONCE else await asyncio.to_thread(_of_many_bytes, body)


def _of_many_bytes(body: bytes) -> Any:
    if has_too_many_values(body):
        message = f"there are more than {MOST_VALUES} texts, lists and objects in it, or sixteen times as many numbers"
        raise HttpError(413, message, code="request_too_large")
    return _value(body)


def _value(body: bytes) -> Any:
    try:
        found = orjson.loads(body)
        orjson.dumps([[found]])  # it reads deeper than it writes, and what goes upstream, or into an event, is written
    except orjson.JSONDecodeError as error:
        raise HttpError(400, f"the body is no JSON: {error}") from None
    except orjson.JSONEncodeError:
        raise HttpError(400, "the body is nested too deeply") from None
    return found
