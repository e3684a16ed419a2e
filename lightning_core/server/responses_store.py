"""Responses that a later request may name as `previous_response_id`, on disk and bounded.

A response is kept with the messages that it added, and the one before it: a conversation is a chain. It opens for the
attempt that made it only. An SQLite file, since a server that was restarted in the middle of a rollout has to know it;
losing the last of them in a crash of the machine is no harm (the spans are the record), so nothing waits for the disk.
The oldest are forgotten; a chain that lost its beginning is answered 404, never continued without it.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from lightning_core.server.access import Caller

_MOST_BYTES = 1_000_000_000
_LONGEST = 10_000  # responses in a chain
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
    """For one thread."""

    def __init__(self, path: Path, most_bytes: int = _MOST_BYTES) -> None:
        self._most = most_bytes
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        self._db = sqlite3.connect(path, isolation_level=None)
        for command in ("PRAGMA journal_mode=WAL", "PRAGMA synchronous=OFF", "PRAGMA auto_vacuum=INCREMENTAL"):
            self._db.execute(command)
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS responses_2 (number INTEGER PRIMARY KEY, id TEXT UNIQUE, rollout TEXT,"
            " attempt TEXT, previous TEXT, messages BLOB, response BLOB, items BLOB)"
        )
        counted = self._db.execute(f"SELECT coalesce(sum({_SIZE}), 0) FROM responses_2")
        self._size: int = counted.fetchone()[0]

    def put(self, turn: Turn, reply: dict[str, Any], response: dict[str, Any]) -> None:
        kept = [orjson.dumps(part) for part in ([*turn.messages, reply], response, turn.items)]
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

    def history(self, response_id: str, caller: Caller) -> list[dict[str, Any]] | None:
        """The conversation up to and with this response; None where any of it is not known (any more)."""
        turns: list[list[dict[str, Any]]] = []
        wanted: str | None = response_id
        while wanted is not None:
            row = self._row(wanted, caller)
            if row is None or len(turns) >= _LONGEST:
                return None
            wanted = row[0]
            turns.append(orjson.loads(row[1]))
        return [message for turn in reversed(turns) for message in turn]

    def response(self, response_id: str, caller: Caller) -> tuple[bytes, bytes] | None:
        """(the response, the items of its request), as JSON."""
        row = self._row(response_id, caller)
        return None if row is None else row[2:]

    def delete(self, response_id: str, caller: Caller) -> None:
        row = self._row(response_id, caller)
        if row is not None:
            self._db.execute("DELETE FROM responses_2 WHERE id = ?", (response_id,))
            self._size -= sum(map(len, row[1:]))

    def close(self) -> None:
        self._db.close()

    def _row(self, response_id: str, caller: Caller) -> tuple[str | None, bytes, bytes, bytes] | None:
        found: tuple[str | None, bytes, bytes, bytes] | None = self._db.execute(
            "SELECT previous, messages, response, items FROM responses_2 WHERE id = ? AND rollout = ? AND attempt = ?",
            (response_id, *_owner(caller)),
        ).fetchone()
        return found


def _owner(caller: Caller) -> tuple[str, str]:
    return caller.rollout_id or "", caller.attempt_id or ""
