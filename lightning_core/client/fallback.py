"""Where spans wait while the server is away: one small file an attempt, shared by all of its processes.

Each line is one encoded export request without its credentials. The file is only touched under a lock, and emptied
only after the server has acknowledged every line; a crash in between sends a span twice, which the lake reads as one
(same ids, same content). It stands beside `$LIGHTNING_TASK` where there is one, so that the runner that started the
attempt can deliver what the agent's processes could not. An agent that runs by itself has one in the temporary folder,
for each endpoint: its next process sends what the last left, or `python -m lightning_core.client` does.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

from lightning_core import names
from lightning_core.client.wire import DeliveryError, post_request

FILE_NAME = "undelivered-spans.jsonl"
LIMIT_BYTES = 64 * 1024 * 1024


def fallback_path(endpoint: str) -> Path:
    """The file of this attempt; without an attempt, one of this user and endpoint in the temporary folder."""
    task = os.environ.get(names.ENV_TASK)
    if task and Path(task).parent.is_dir():
        return Path(task).parent / FILE_NAME
    digest = hashlib.sha256(endpoint.encode()).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"lightning-{os.getuid()}-{digest}-{FILE_NAME}"


def keep(path: Path, body: bytes) -> bool:
    """Add one request to the file. False where that would go past 64 MB: then the caller says so."""
    with _locked(path) as file:
        size = file.seek(0, os.SEEK_END)
        if size + len(body) > LIMIT_BYTES:
            return False
        file.write(body + b"\n")
    return True


def deliver(path: Path, endpoint: str, headers: Mapping[str, str], *, retries: int = 0) -> int:
    """Send what waits in the file and empty it: the number of requests sent.

    Raises DeliveryError at the first request the server does not take for now; that one and those after it stay.
    Requests the server refuses for good are dropped and named in the error, after the rest was sent.
    """
    if not path.exists() or path.stat().st_size == 0:
        return 0
    refused: list[str] = []
    sent = 0
    with _locked(path) as file:
        file.seek(0)
        lines = [line for line in file.read().split(b"\n") if line]
        try:
            for line in list(lines):
                try:
                    post_request(endpoint, headers, line, retries=retries)
                    sent += 1
                except DeliveryError as error:
                    if not error.permanent:
                        raise
                    refused.append(str(error))
                lines.pop(0)
        finally:
            file.seek(0)
            file.truncate()
            file.writelines(line + b"\n" for line in lines)
    if refused:
        raise DeliveryError(f"{len(refused)} kept requests were dropped: {refused[0]}", permanent=True)
    return sent


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[IO[bytes]]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "r+b") as file:
        if os.fstat(descriptor).st_uid != os.getuid():  # the temporary folder is everybody's
            raise PermissionError(f"{path} belongs to another user; remove it")
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file  # closing it gives the lock back
