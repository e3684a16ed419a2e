"""Prefect's server may go away while an epoch runs: work goes on without it, and what cannot begin without it waits."""

from __future__ import annotations

import contextlib
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

from prefect import tags
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL

from lightning_core.errors import LightningError
from lightning_flows.tasks.progress import logger

_POLL_S, _SAY_EVERY_S, _PATIENCE_S = 1.0, 30.0, 600.0


class ApiAway(LightningError):
    """Prefect's server did not come back. What was finished is kept."""


def wait_for_api(patience_s: float = _PATIENCE_S) -> None:
    """Wait until Prefect's server answers, whatever the answer.

    A task with a concurrency limit fails at once where it does not answer. Raises ApiAway after `patience_s`.
    """
    url = PREFECT_API_URL.value()
    if url is None:  # one of Prefect's own, inside this process
        return
    began, reported = time.monotonic(), -_SAY_EVERY_S
    while not _answers(url):
        away = time.monotonic() - began
        if away > patience_s:
            raise ApiAway(
                f"Prefect's server at {url} has not answered for {away:.0f} s; start it, and run the flow again: what is "
                "finished is kept"
            )
        if away - reported > _SAY_EVERY_S:
            logger().warning("Prefect's server at %s does not answer; waiting for it", url)
            reported = away
        time.sleep(_POLL_S)


@contextlib.contextmanager
def limited(tag: str) -> Iterator[None]:
    """Give the tasks within the tag, if Prefect's server has a limit for it.

    A task with a tag asks for a slot also where there is no limit. With SQLite below the server, that is refused when it meets
    another write, and Prefect's client tries again 2 s later.
    """
    with contextlib.ExitStack() as stack:
        if PREFECT_API_URL.value() is None or _has_limit(tag):
            stack.enter_context(tags(tag))
        yield


def _has_limit(tag: str) -> bool:
    with get_client(sync_client=True) as client:
        try:
            client.read_global_concurrency_limit_by_name(f"tag:{tag}")
        except ObjectNotFound:
            return False
    return True


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=5).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True
