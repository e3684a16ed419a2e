"""Sending requests as fast as they are taken, and keeping processes to a core."""

from __future__ import annotations

import contextlib
import http.client
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

SERVER_CORE, LOAD_CORE = 0, 1
CONNECTIONS = 4


@dataclass(frozen=True)
class Post:
    """One request: path and headers beside the body's own type."""

    path: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Sent:
    """What became of them. `refused`: answers 429 and 503, after each of which the request was sent again."""

    acknowledged: int = 0
    refused: int = 0
    seconds: float = 0.0


@contextlib.contextmanager
def on_core(core: int) -> Iterator[None]:
    """Keep this thread, and the processes it starts meanwhile, to one core; to all there are where that one is not."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core} & before or before)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def send(url: str, posts: Iterable[Post], check: Callable[[], None] = lambda: None) -> Sent:
    """POST all of them over CONNECTIONS connections; each is sent until it is answered 200.

    Raises RuntimeError for any answer but a whole success, 429 and 503: the figure would not be one of stored spans. `check` is
    called before each repetition and may raise, where nobody is left to make room.
    """
    queue, lock = iter(posts), threading.Lock()
    sent = Sent()
    failures: list[BaseException] = []

    def work() -> None:
        parts = urlsplit(url)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=120)
        try:
            while not failures:
                with lock:
                    post = next(queue, None)
                if post is None:
                    return
                _until_taken(connection, parts.path + post.path, post, sent, lock, check)
        except BaseException as error:  # noqa: BLE001 - raised again below, in the caller's thread
            failures.append(error)
        finally:
            connection.close()

    began = time.perf_counter()
    with on_core(LOAD_CORE):
        threads = [threading.Thread(target=work, daemon=True) for _ in range(CONNECTIONS)]
        for thread in threads:
            thread.start()
    for thread in threads:
        thread.join()
    sent.seconds = time.perf_counter() - began
    if failures:
        raise failures[0]
    return sent


def _until_taken(
    connection: http.client.HTTPConnection,
    path: str,
    post: Post,
    sent: Sent,
    lock: threading.Lock,
    check: Callable[[], None],
) -> None:
    headers = {"Content-Type": "application/x-protobuf", **post.headers}
    while True:
        connection.request("POST", path, post.body, headers)
        response = connection.getresponse()
        answer = response.read()
        if response.status == 200:
            if answer:  # a partial success: not all of it was stored
                raise RuntimeError(f"POST {path}: {answer[:300]!r}")
            with lock:
                sent.acknowledged += 1
            return
        if response.status not in (429, 503):
            raise RuntimeError(f"POST {path}: {response.status} {answer[:300]!r}")
        with lock:
            sent.refused += 1
        check()
        time.sleep(float(response.headers["Retry-After"]))
