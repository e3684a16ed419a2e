"""A rollout that this process opens by itself at a gateway, for an agent that no runner started.

    from lightning_core.client import emit_reward, rollout

    with rollout("https://gateway.example.com", key, task={"question": q}, group=q) as r:
        r.output = my_agent(q, base_url=r.base_url, api_key=r.token)
        emit_reward(judge(q, r.output))

Rewards, events and spans of the block go to this rollout. Each thread and each asyncio task may have its own; a thread that is
started inside a block is in none (`contextvars.copy_context().run` takes the block along, as `asyncio.to_thread` does).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from lightning_core import names
from lightning_core.client.delivery import DeliveryError, post_json
from lightning_core.client.destination import Destination, current_rollout, resource_text, variables
from lightning_core.client.emit import current_span, deliver_waiting
from lightning_core.client.fallback import own_path

log = logging.getLogger(__name__)


@dataclass
class Rollout:
    """An open rollout. Set `output` (any JSON), and `status` ("ok", "error", "timeout") with `error` where it failed without raising."""

    rollout_id: str
    attempt_id: str
    otlp_endpoint: str  # exporters add `/v1/traces`
    token: str = field(repr=False)  # for calls and for spans: `OPENAI_API_KEY`
    proof: str = field(repr=False)  # for a collector that forwards resource attributes and no token
    expires: int  # of token and proof, Unix time in seconds
    output: Any = None  # None: the last that a model answered stands for it
    status: str = "ok"
    error: str | None = None

    @property
    def base_url(self) -> str:
        """Return where its calls go: `OPENAI_BASE_URL`."""
        return f"{self.otlp_endpoint}/v1"

    @property
    def otlp_headers(self) -> dict[str, str]:
        """Return the headers of an exporter of its spans."""
        return {"authorization": f"Bearer {self.token}"}

    @property
    def resource(self) -> dict[str, str]:
        """Return the resource attributes of its spans, for an exporter that sends no token."""
        return {names.ROLLOUT_ID: self.rollout_id, names.ATTEMPT_ID: self.attempt_id, names.PROOF: self.proof}

    @property
    def environment(self) -> dict[str, str]:
        """Return the variables by which another process is in this rollout.

        For example: `subprocess.run(…, env=os.environ | r.environment)`.
        """
        return variables(self.otlp_endpoint, self.token) | {"OTEL_RESOURCE_ATTRIBUTES": resource_text(self.resource)}


def open_rollout(
    url: str | None = None,
    key: str | None = None,
    *,
    task: Any = None,
    task_id: str | None = None,
    group: str | None = None,
    ttl_s: float | None = None,
) -> Rollout:
    """Open a rollout that another process works in, and may end: see `rollout`, which also ends it.

    Raises as `rollout` does.
    """
    url = (url or os.environ.get(names.ENV_GATEWAY_URL, "")).rstrip("/")
    key = key or os.environ.get(names.ENV_GATEWAY_KEY)
    if not url or not key:
        missing = names.ENV_GATEWAY_KEY if url else names.ENV_GATEWAY_URL
        raise ValueError(
            f"rollout: set {missing}, or give url and key: the gateway's address, and what `lightning-flows token --opener` prints"
        )
    asked = {"task": task, "task_id": task_id, "group": group, "ttl_s": ttl_s}
    try:
        answer = post_json(f"{url}/v1/rollouts", key, {k: v for k, v in asked.items() if v is not None})
    except (TypeError, ValueError) as error:
        raise ValueError(f"rollout: the task is no JSON: {error}") from None
    where = f"{url}{answer['path']}"
    return Rollout(
        answer["rollout_id"], answer["attempt_id"], where, answer["token"], answer["proof"], answer["expires"]
    )


@contextlib.contextmanager
def rollout(
    url: str | None = None,
    key: str | None = None,
    *,
    task: Any = None,
    task_id: str | None = None,
    group: str | None = None,
    ttl_s: float | None = None,
) -> Iterator[Rollout]:
    """Open a rollout at the gateway, and end it with the block.

    It ends with `output`, or with status error where the block raises.

    url, key: the gateway's address and an opener key (default: `LIGHTNING_GATEWAY_URL`, `LIGHTNING_GATEWAY_KEY`).
    task: any JSON, which graders see. task_id: its name. group: rollouts of one group are compared. ttl_s: seconds that
    the token opens it (default: 30 days, the most there is).

    Raises ValueError without url or key and for a task that is no JSON, DeliveryError where the gateway does not open
    it. That it cannot be ended is logged: then it is over when it has been silent for a while.
    """
    opened = open_rollout(url, key, task=task, task_id=task_id, group=group, ttl_s=ttl_s)
    to = Destination(opened.otlp_endpoint, opened.otlp_headers, opened.resource, own_path(opened.otlp_endpoint))
    rollouts, spans = current_rollout.set(to), current_span.set(None)
    try:
        yield opened
    except BaseException as error:
        opened.status, opened.error = "error", f"{type(error).__name__}: {error}"
        raise
    finally:
        with contextlib.suppress(ValueError):  # a generator closed elsewhere leaves its context
            current_span.reset(spans)
            current_rollout.reset(rollouts)
        deliver_waiting(to, retries=2)
        _end(opened)


def _end(opened: Rollout) -> None:
    body = {"output": _jsonable(opened), "status": opened.status, "error": opened.error}
    try:
        post_json(f"{opened.otlp_endpoint}/end", opened.token, {k: v for k, v in body.items() if v is not None})
    except DeliveryError as error:
        log.error("rollout %s could not be ended: %s", opened.rollout_id, error)


def _jsonable(opened: Rollout) -> Any:
    try:
        json.dumps(opened.output, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        log.warning("rollout %s: its output is no JSON (%s); its repr is kept", opened.rollout_id, error)
        return repr(opened.output)
    return opened.output
