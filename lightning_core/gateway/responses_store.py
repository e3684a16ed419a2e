"""Responses that a later request may name as `previous_response_id`, on disk and bounded; and what a client may ask of them.

A response is kept with the messages that it added, and the one before it: a conversation is a chain. It opens for the
attempt that made it only. An SQLite file, since a gateway that was restarted in the middle of a rollout has to know it;
losing them in a crash of the machine is no harm (the spans are the record), so nothing waits for the disk, and a file that
such a crash left unreadable is begun anew. The oldest are forgotten; a chain that lost its beginning is answered 404,
never continued without it.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import orjson

from lightning_core.gateway.access import Access, Caller
from lightning_core.gateway.http import (
    HttpError,
    Receive,
    Response,
    Scope,
    Send,
    Take,
    invalid,
    json_response,
    unavailable,
    whole_number,
)

log = logging.getLogger(__name__)

_MOST_BYTES = 1_000_000_000
_LONGEST = 10_000  # responses in a chain
_MOST_ITEMS, _ITEMS = 100, 20
_SIZE = "length(messages) + length(response) + length(items)"


@dataclass(frozen=True, slots=True)
class Turn:
    """One response: whose, after which, and what its request added to the conversation, as messages and as it was written."""

    response_id: str
    caller: Caller
    previous: str | None
    messages: list[dict[str, Any]]
    items: list[dict[str, Any]]


class ResponseStore:
    """For one thread. Its methods raise HttpError 503 where the file cannot be read or written."""

    def __init__(self, path: Path, most_bytes: int = _MOST_BYTES) -> None:
        """Open the file, or begin it. Raises OSError."""
        self._most = most_bytes
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._open(path)
        except sqlite3.OperationalError as error:  # locked, say, or no space left
            raise OSError(f"{path}: {error}") from None
        except sqlite3.DatabaseError as error:
            log.warning("%s: %s; the responses in it are forgotten, and it is begun anew", path, error)
            self._db.close()
            for suffix in ("", "-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            self._open(path)

    def _open(self, path: Path) -> None:
        path.touch(mode=0o600)
        self._db = sqlite3.connect(path, isolation_level=None)
        for command in ("PRAGMA journal_mode=WAL", "PRAGMA synchronous=OFF"):
            self._db.execute(command)
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS responses_2 (number INTEGER PRIMARY KEY, id TEXT UNIQUE, rollout TEXT,"
            " attempt TEXT, previous TEXT, messages BLOB, response BLOB, items BLOB)"
        )
        counted = self._db.execute(f"SELECT coalesce(sum({_SIZE}), 0) FROM responses_2")
        self._size: int = counted.fetchone()[0]

    def put(self, turn: Turn, reply: dict[str, Any], response: dict[str, Any]) -> None:
        kept = [orjson.dumps(part) for part in ([*turn.messages, reply], response, turn.items)]
        with _or_unavailable():
            self._put(turn, kept)

    def _put(self, turn: Turn, kept: list[bytes]) -> None:
        self._db.execute(
            "INSERT INTO responses_2 (id, rollout, attempt, previous, messages, response, items)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (turn.response_id, *_owner(turn.caller), turn.previous, *kept),
        )
        self._size += sum(map(len, kept))
        while self._size > self._most:
            oldest = self._db.execute(
                f"DELETE FROM responses_2 WHERE number = (SELECT min(number) FROM responses_2) RETURNING {_SIZE}"
            ).fetchone()
            self._size -= oldest[0] if oldest else self._size

    def history(self, response_id: str, caller: Caller, take: Take) -> bytes | None:
        """Return the messages up to and with this response, as a JSON list of lists.

        None where any of it is not known (any more). `take` gets the size of each part: together they may be many times
        as large as the request that names the response.
        """
        turns: list[bytes] = []
        wanted: str | None = response_id
        while wanted is not None:
            row = self._row(wanted, caller)
            if row is None or len(turns) >= _LONGEST:
                return None
            take(len(row[1]))
            wanted = row[0]
            turns.append(row[1])
        return b"[" + b",".join(reversed(turns)) + b"]"

    def response(self, response_id: str, caller: Caller) -> tuple[bytes, bytes] | None:
        """Return (the response, the items of its request), as JSON."""
        row = self._row(response_id, caller)
        return None if row is None else row[2:]

    def delete(self, response_id: str, caller: Caller) -> None:
        row = self._row(response_id, caller)
        if row is not None:
            with _or_unavailable():
                self._db.execute("DELETE FROM responses_2 WHERE id = ?", (response_id,))
            self._size -= sum(map(len, row[1:]))

    def close(self) -> None:
        self._db.close()

    def _row(self, response_id: str, caller: Caller) -> tuple[str | None, bytes, bytes, bytes] | None:
        with _or_unavailable():
            found: tuple[str | None, bytes, bytes, bytes] | None = self._db.execute(
                "SELECT previous, messages, response, items FROM responses_2 WHERE id = ? AND rollout = ? AND attempt = ?",
                (response_id, *_owner(caller)),
            ).fetchone()
        return found


@dataclass(frozen=True, slots=True)
class StoredResponses:
    """The routes under `/v1/responses/{response_id}`; each knows the responses of the caller's attempt only."""

    access: Access
    store: ResponseStore

    async def get(self, scope: Scope, receive: Receive, send: Send) -> int:
        if _query(scope).get("stream", "").lower() == "true":
            raise HttpError(400, "`stream` is not supported here", code="unsupported_parameter", param="stream")
        return await Response(self._find(scope)[0]).send(send)

    async def input_items(self, scope: Scope, receive: Receive, send: Send) -> int:
        """Answer with the items of that request's `input`, newest first unless `order=asc`.

        The items of the responses before it are left out.
        """
        items, query = orjson.loads(self._find(scope)[1]), _query(scope)
        if query.get("order", "desc") != "asc":
            items.reverse()
        if (after := query.get("after")) is not None:
            places = [place for place, item in enumerate(items, 1) if item["id"] == after]
            if not places:
                raise invalid("after", f"no item {after!r} in this list")
            items = items[places[0] :]
        shown = items[: whole_number(query.get("limit", str(_ITEMS)), "limit", 1, _MOST_ITEMS)]
        ends = {"first_id": shown[0]["id"] if shown else None, "last_id": shown[-1]["id"] if shown else None}
        page = {"object": "list", "data": shown, **ends, "has_more": len(items) > len(shown)}
        return await json_response(page).send(send)

    async def cancel(self, scope: Scope, receive: Receive, send: Send) -> int:
        self._find(scope)
        raise HttpError(400, "Cannot cancel a synchronous response.")

    async def delete(self, scope: Scope, receive: Receive, send: Send) -> int:
        self._find(scope)
        response_id = scope["path_params"]["response_id"]
        self.store.delete(response_id, self.access.identify(scope))
        return await json_response({"id": response_id, "object": "response", "deleted": True}).send(send)

    def _find(self, scope: Scope) -> tuple[bytes, bytes]:
        caller, response_id = self.access.identify(scope), scope["path_params"]["response_id"]
        found = self.store.response(response_id, caller)
        if found is None:
            raise HttpError(404, f"Response with id {response_id!r} not found.", code="response_not_found")
        return found


def _query(scope: Scope) -> dict[str, Any]:
    return {key: values[-1] for key, values in parse_qs(scope["query_string"].decode("latin-1")).items()}


@contextlib.contextmanager
def _or_unavailable() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise unavailable(f"the stored responses cannot be read or written: {error}") from None


def _owner(caller: Caller) -> tuple[str, str]:
    return caller.rollout_id or "", caller.attempt_id or ""
