"""How a reply of vLLM's chat or completions looks to the client: as it is, or as another API's.

An `ApiFormat` is made for one call. It gets what `reply.py` has cleaned, and gives the body, or the events, that are sent.
"""

from __future__ import annotations

from typing import Any

import orjson

from lightning_core.gateway.http import HttpError
from lightning_core.gateway.reply import Collected
from lightning_core.gateway.sse import DONE, event


class ApiFormat:
    """Chat completions and completions, as vLLM answers them; another API says what is different."""

    def __init__(self, api: str, response_id: str | None = None) -> None:
        self.api = api
        self.response_id = response_id  # where it is not the upstream's

    def reply(self, reply: dict[str, Any], collected: Collected) -> Any:
        """Return the body of a whole reply."""
        return reply

    def begin(self) -> bytes:
        """Return the events that come before the first chunk."""
        return b""

    def chunk(self, chunk: dict[str, Any]) -> bytes:
        """Return the events of a chunk."""
        return event(orjson.dumps(chunk))

    def end(self, collected: Collected) -> bytes:
        """Return the events that complete the stream; they are sent once the span is durable."""
        return event(DONE)

    def broken(self, error: HttpError) -> bytes:
        """Return the event that tells the client that the stream is not complete: it is too late for a status."""
        # No [DONE]: OpenAI's clients raise an APIError.
        return event(orjson.dumps(error.body))

    def kept(self, collected: Collected) -> None:
        """Do what is left once the span is durable: called after `reply` or `end`, before what they return is sent."""
