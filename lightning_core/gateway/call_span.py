"""One LLM call as a span: what the gateway knows and no instrumentation of the agent's does."""

from __future__ import annotations

import os
import re
import time
from array import array
from collections.abc import Mapping, Sized
from dataclasses import dataclass
from typing import Any

import orjson

from lightning_core import names
from lightning_core.gateway.access import Caller
from lightning_core.gateway.api_format import ApiFormat
from lightning_core.gateway.http import HttpError
from lightning_core.gateway.prompts import Served
from lightning_core.gateway.reply import Collected
from lightning_core.gateway.sampling import Kind, Prepared
from lightning_core.gateway.targets import Target
from lightning_core.otlp.spans import KIND_CLIENT, SpanData, encode_request, float32_bytes, int32_bytes

_TRACEPARENT = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]{2}(-.*)?")
OPERATIONS: dict[Kind, str] = {"chat": "chat", "completions": "text_completion", "embeddings": "embeddings"}


# Some hundred ids at a time: each time gives up the interpreter's lock, and waits for it.
_random = bytearray()


def new_id(size: int) -> str:
    """Return a random id of `size` bytes in hex digits; from the operating system, because agents seed `random`."""
    if len(_random) < size:
        _random.extend(os.urandom(4096))
    made = _random[-size:].hex()
    del _random[-size:]
    return made


def parse_traceparent(header: str | None) -> tuple[str, str] | None:
    """Return (trace id, parent span id) of a W3C traceparent header; None where there is no valid one."""
    match = _TRACEPARENT.fullmatch((header or "").strip())
    return None if match is None or (match[1] == "00" and match[4]) else (match[2], match[3])


@dataclass(frozen=True, slots=True)
class Asked:
    """A call as it was understood: whose, what, where to, and how its reply is to look."""

    caller: Caller
    target: Target
    request: dict[str, Any]
    prepared: Prepared
    api_format: ApiFormat
    served: Served


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a call, beside what was collected of the reply. `failure` says why it failed, for people."""

    versions: str | None
    start_ns: int
    end_ns: int
    upstream_request_id: str | None = None
    first_token_ms: float | None = None
    failure: str | None = None
    aborted: bool = False


def encode_call(asked: Asked, collected: Collected, traceparent: str | None, outcome: Outcome) -> bytes:
    """Return the OTLP request that holds the call's span."""
    target, request, prepared, served = asked.target, asked.request, asked.prepared, asked.served
    response_id = asked.api_format.response_id
    choices = collected.ordered()
    ids, logprobs = array("i"), array("f")
    for choice in choices:
        ids += choice.token_ids
        logprobs += choice.logprobs
    attributes: dict[str, Any] = {
        names.POLICY: target.policy,
        names.POLICY_VERSION: outcome.versions,
        names.UPSTREAM: None if target.policy else target.label,
        names.API: asked.api_format.api,
        names.GEN_AI_OPERATION: OPERATIONS[prepared.kind],
        names.GEN_AI_REQUEST_MODEL: target.asked,
        names.GEN_AI_RESPONSE_MODEL: collected.model,
        names.GEN_AI_RESPONSE_ID: response_id or collected.response_id,
        names.UPSTREAM_ID: collected.response_id if response_id else None,
        names.UPSTREAM_REQUEST_ID: outcome.upstream_request_id,
        names.GEN_AI_FINISH_REASONS: [choice.finish_reason or "" for choice in choices] or None,
        names.GEN_AI_INPUT_TOKENS: _count(collected.usage.get("prompt_tokens"), collected.prompt_token_ids),
        names.GEN_AI_OUTPUT_TOKENS: _count(collected.usage.get("completion_tokens"), ids),
        names.GEN_AI_INPUT_MESSAGES: _json(_input_messages(request, prepared)),
        names.PROMPTS_SERVED: _json(served.replaced) if served.replaced else None,
        names.PROMPTS_FOUND: _json(served.found) if served.found is not None else None,
        names.GEN_AI_TOOLS: _json(request["tools"]) if request.get("tools") else None,
        names.GEN_AI_OUTPUT_MESSAGES: _json([choice.message for choice in choices]) if choices else None,
        names.PROMPT_TOKEN_IDS: int32_bytes(collected.prompt_token_ids) if collected.prompt_token_ids else None,
        names.RESPONSE_TOKEN_IDS: int32_bytes(ids) if ids else None,
        names.RESPONSE_LOGPROBS: float32_bytes(logprobs) if logprobs else None,
        names.CHOICE_LENGTHS: int32_bytes([len(c.token_ids) for c in choices]) if len(choices) > 1 else None,
        names.SAMPLING: _json(prepared.used),
        names.REQUESTED_SAMPLING: _json(prepared.requested),
        names.UNTRAINABLE: _untrainable(prepared, collected, outcome),
        names.FIRST_TOKEN_MS: outcome.first_token_ms,
    }
    times = (outcome.start_ns, outcome.end_ns)
    return _encode(
        asked.caller, prepared.kind, target.policy or target.asked, traceparent, times, attributes, outcome.failure
    )


def encode_refusal(
    caller: Caller,
    kind: Kind,
    request: Mapping[str, Any],
    policy: str | None,
    traceparent: str | None,
    error: HttpError,
) -> bytes:
    """Return the OTLP request that holds the span of a call that was refused before it began."""
    now, model = time.time_ns(), request.get("model")  # of a request that was not read nobody knows it
    attributes = {
        names.GEN_AI_OPERATION: OPERATIONS[kind],
        names.GEN_AI_REQUEST_MODEL: model,
        names.POLICY: policy,
        names.UNTRAINABLE: "refused",
        names.ERROR_TYPE: str(error.code or error.status),
    }
    return _encode(caller, kind, policy or model or "unread", traceparent, (now, now), attributes, error.message)


def _encode(
    caller: Caller,
    kind: Kind,
    whom: str,
    traceparent: str | None,
    times: tuple[int, int],
    attributes: Mapping[str, Any],
    failure: str | None,
) -> bytes:
    """Return the OTLP request with a span of the gateway's.

    `whom` was called from the first of `times` to the second (ns).
    """
    trace_id, parent_id = parse_traceparent(traceparent) or (new_id(16), "")
    span = SpanData(
        name=("embeddings " if kind == "embeddings" else names.SPAN_CALL_PREFIX) + whom,
        trace_id=trace_id,
        span_id=new_id(8),
        parent_id=parent_id,
        kind=KIND_CLIENT,
        start_ns=times[0],
        end_ns=times[1],
        attributes=attributes,
        status="error" if failure else "ok",
        status_message=failure or "",
    )
    return encode_own(caller.rollout_id, caller.attempt_id, span)


def encode_own(rollout_id: str | None, attempt_id: str | None, span: SpanData) -> bytes:
    """Return the OTLP request that holds a span of the gateway's, of this attempt or of none."""
    resource: dict[str, Any] = {"service.name": "lightning-gateway"}
    if rollout_id is not None and attempt_id is not None:
        resource |= {names.ROLLOUT_ID: rollout_id, names.ATTEMPT_ID: attempt_id}
    return encode_request(resource, [span], "lightning_core.gateway")


def _untrainable(prepared: Prepared, collected: Collected, outcome: Outcome) -> str | None:
    if outcome.aborted or any(choice.finish_reason == "abort" for choice in collected.choices.values()):
        return "aborted"
    if outcome.failure:
        return "failed"
    choices = collected.ordered()
    if not collected.prompt_token_ids or not choices or any(not choice.token_ids for choice in choices):
        return prepared.untrainable or "missing_ids"
    if any(
        len(choice.logprobs) != len(choice.token_ids) or any(value != value for value in choice.logprobs)
        for choice in choices
    ):
        return prepared.untrainable or "missing_logprobs"
    return prepared.untrainable


def _count(reported: Any, ids: Sized | None) -> int | None:
    if isinstance(reported, int):
        return reported
    return len(ids) if ids else None


def _input_messages(request: Mapping[str, Any], prepared: Prepared) -> Any:
    if prepared.kind == "chat":
        return request.get("messages")
    return [{"role": "user", "content": request.get("prompt" if prepared.kind == "completions" else "input")}]


def _json(value: Any) -> str:
    return orjson.dumps(value).decode()
