"""Where spans wait while the gateway is away: one small file an attempt, shared by all of its processes.

Each line is one encoded export request without its credentials, in base64. The file is only touched under a lock. What the gateway
has acknowledged leaves it at once or, after a crash, by being sent again, which the lake reads as one span (same ids,
same content). It stands beside `$LIGHTNING_TASK` where there is one, so that the runner that started the
attempt can deliver what the agent's processes could not. An agent that runs by itself has one in the temporary folder,
for each endpoint: its next process sends what the last left, or `python -m lightning_core.client` does.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

from lightning_core import names
from lightning_core.client.delivery import DeliveryError, post_request

FILE_NAME = "undelivered-spans"
LIMIT_BYTES = 16 * 1024 * 1024
LIMIT_REQUESTS = 10_000  # that are sent for an attempt


def fallback_path(endpoint: str) -> Path:
    """Return the file of this attempt; without an attempt, one of this user and endpoint in the temporary folder."""
    task = os.environ.get(names.ENV_TASK)
    if task and os.path.isdir(os.path.dirname(task)):  # False, too, where this process may not look
        return Path(task).parent / FILE_NAME
    return own_path(endpoint)


def own_path(endpoint: str) -> Path:
    """Return the file of this user and endpoint in the temporary folder, whatever attempt this process is."""
    digest = hashlib.sha256(endpoint.encode()).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"lightning-{os.getuid()}-{digest}-{FILE_NAME}"


def waits(path: Path) -> bool:
    """Return whether something waits in the file; not where this process may not look."""
    try:
        return path.stat().st_size > 0
    except OSError:
        return False


def keep(path: Path, body: bytes) -> bool:
    """Add one request to the file. Returns False where that would go past 16 MB: then the caller reports it."""
    line = base64.b64encode(body) + b"\n"
    with _locked(path) as file:
        size = file.seek(0, os.SEEK_END)
        if size + len(line) > LIMIT_BYTES:
            return False
        if size and os.pread(file.fileno(), 1, size - 1) != b"\n":
            size = len(b"".join(_whole_lines(file)))
            os.ftruncate(file.fileno(), size)
            file.seek(size)
        try:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            os.ftruncate(file.fileno(), size)
            raise
    return True


def deliver(path: Path, endpoint: str, headers: Mapping[str, str], *, retries: int = 0) -> int:
    """Send what waits in the file and empty it; return the number of requests sent.

    Raises DeliveryError at the first request the gateway does not take for now; that one and those after it stay.
    Requests the gateway refuses for good are dropped and named in the error, after the rest was sent.
    """
    if not waits(path):
        return 0
    with _locked(path) as file:
        lines = _whole_lines(file)
        try:
            return send(lines, endpoint, headers, retries=retries)
        finally:
            _replace(path, file, lines)


def send(lines: list[bytes], endpoint: str, headers: Mapping[str, str], *, retries: int = 0) -> int:
    """Send the requests of these lines, take each that was sent from the list, and return the number that were sent.

    Raises DeliveryError as `deliver` does.
    """
    refused: list[str] = []
    sent = 0
    while lines:
        try:
            post_request(endpoint, headers, _decode(lines[0]), retries=retries)
            sent += 1
        except binascii.Error as error:
            refused.append(f"a line is no base64: {error}")
        except DeliveryError as error:
            if not error.permanent:
                raise
            refused.append(str(error))
        lines.pop(0)
    if refused:
        raise DeliveryError(f"{len(refused)} kept requests were dropped: {refused[0]}", permanent=True)
    return sent


def lines_left(content: bytes) -> list[bytes]:
    """Return the lines of a file that an attempt left.

    Raises ValueError where that is none of ours, or has more than are sent.
    """
    lines = [line for line in content.splitlines(keepends=True) if line.endswith(b"\n")]
    if len(lines) > LIMIT_REQUESTS:
        raise ValueError(f"it has {len(lines)} requests, more than {LIMIT_REQUESTS}")
    for line in lines:
        _decode(line)
    return lines


def _decode(line: bytes) -> bytes:
    return base64.b64decode(line.removesuffix(b"\n"), validate=True)


def _whole_lines(file: IO[bytes]) -> list[bytes]:
    """Return the lines, each with its end.

    A line that a killed process wrote half of is left out; nobody was promised that it is kept.
    """
    file.seek(0)
    return [line for line in file.readlines() if line.endswith(b"\n")]


def _replace(path: Path, file: IO[bytes], lines: list[bytes]) -> None:
    """Leave these lines in the file; a kill meanwhile leaves the former ones."""
    if not lines:
        os.ftruncate(file.fileno(), 0)
        return
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as new:
            new.writelines(lines)
            new.flush()
            os.fsync(new.fileno())
        os.replace(beside, path)
    except OSError:
        beside.unlink(missing_ok=True)  # no room: what was sent is sent again
        raise


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[IO[bytes]]:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "r+b") as file:
            if os.fstat(descriptor).st_uid != os.getuid():  # the temporary folder is everybody's
                raise PermissionError(f"{path} belongs to another user; remove it")
            fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_at(path, descriptor):
                continue  # replaced while this process waited for it
            yield file  # closing it gives the lock back
            return


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(descriptor))
    except FileNotFoundError:
        return False
