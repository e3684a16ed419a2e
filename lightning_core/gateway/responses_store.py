"""Responses that a later request may name as `previous_response_id`, on disk and bounded.

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

import orjson

from lightning_core.gateway.access import Caller
from lightning_core.gateway.http import Take, unavailable

log = logging.getLogger(__name__)

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
    """For one thread. Its methods raise HttpError 503 where the file cannot be read or written."""

    def __init__(self, path: Path, most_bytes: int = _MOST_BYTES) -> None:
        """Raises OSError."""
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
        with _told():
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
        """The messages up to and with this response, as a JSON list of lists; None where any of it is not known (any more).

        `take` gets the size of each part: together they may be many times as large as the request that names the response.
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
        """(the response, the items of its request), as JSON."""
        row = self._row(response_id, caller)
        return None if row is None else row[2:]

    def delete(self, response_id: str, caller: Caller) -> None:
        row = self._row(response_id, caller)
        if row is not None:
            with _told():
                self._db.execute("DELETE FROM responses_2 WHERE id = ?", (response_id,))
            self._size -= sum(map(len, row[1:]))

    def close(self) -> None:
        self._db.close()

    def _row(self, response_id: str, caller: Caller) -> tuple[str | None, bytes, bytes, bytes] | None:
        with _told():
            found: tuple[str | None, bytes, bytes, bytes] | None = self._db.execute(
                "SELECT previous, messages, response, items FROM responses_2 WHERE id = ? AND rollout = ? AND attempt = ?",
                (response_id, *_owner(caller)),
            ).fetchone()
        return found


@contextlib.contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise unavailable(f"the stored responses cannot be read or written: {error}") from None


def _owner(caller: Caller) -> tuple[str, str]:
    return caller.rollout_id or "", caller.attempt_id or ""
