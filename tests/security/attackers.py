"""Agents that look for a reward everywhere but in the task: each attack is a function that a task names in `does`.

They run as attempts of the real runner, and know what any attempt knows: its environment.
"""

from __future__ import annotations

import json
import os
import time
import urllib.request
from pathlib import Path
from typing import Any

from lightning_core import names
from lightning_core.client import SpanData, emit_reward, fallback, new_span_id, new_trace_id, post_spans
from lightning_core.otlp.spans import encode_request, float32_bytes, int32_bytes

INVENTED = [7, 7, 7]
MODEL_SAYS = "Hello world"


def run(task: dict[str, Any]) -> str:
    """Ask the model once, as an honest agent would, then do what the task says."""
    for attack in task["does"]:
        globals()[attack](task)
    return ask()


def grade(task: dict[str, Any], output: Any, spans: list[dict[str, Any]]) -> float:
    """What an honest grader says: none of these agents knows the answer. It is not made for every span there may be."""
    steps = [int(span["attributes"]["step"]) for span in spans if span["name"] == "step"]
    assert steps == sorted(steps)
    return float(output == task["answer"])


def ask() -> str:
    body = {"model": os.environ["LIGHTNING_MODEL"], "messages": [{"role": "user", "content": "hi"}]}
    headers = {"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"], "Content-Type": "application/json"}
    url = os.environ["OPENAI_BASE_URL"] + "/chat/completions"
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), headers)) as reply:
        return str(json.load(reply)["choices"][0]["message"]["content"])


def span(name: str, attributes: dict[str, Any]) -> SpanData:
    now = time.time_ns()
    return SpanData(name, now, now, new_trace_id(), new_span_id(), attributes=attributes)


def mine() -> dict[str, str]:
    return {names.ROLLOUT_ID: os.environ[names.ENV_ROLLOUT_ID], names.ATTEMPT_ID: os.environ[names.ENV_ATTEMPT_ID]}


def send(*spans: SpanData) -> None:
    """To the attempt's own address, with its own token."""
    headers = {"authorization": "Bearer " + os.environ["OPENAI_API_KEY"]}
    post_spans(os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"], headers, {}, spans)


def leave(task: dict[str, Any]) -> None:
    """Say who this attempt is, for those that come after it."""
    Path(task["victims"]).write_text(json.dumps(mine()))


def give_nothing(task: dict[str, Any]) -> None:
    emit_reward(0.0)


def others(task: dict[str, Any]) -> list[tuple[str, dict[str, str]]]:
    """Whom to reward at whose cost: (a name for the reward, resource)."""
    return [("reward", json.loads(Path(task["victims"]).read_text()))]


def reward_a_neighbour(task: dict[str, Any]) -> None:
    root = os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"].partition("/rollouts/")[0]
    for name, resource in others(task):
        given = {names.REWARD: 1.0, names.REWARD_NAME: name}
        post_spans(root, {}, resource, [span(names.SPAN_REWARD, given)])
        post_spans(root, {}, {}, [span(names.SPAN_REWARD, given | resource)])
        own = {"authorization": "Bearer " + os.environ["OPENAI_API_KEY"]}
        post_spans(root, own, resource, [span("a neighbour's", {**resource, "attempt": "of the attacker"})])


def reward_a_neighbour_by_grpc(task: dict[str, Any]) -> None:
    import grpc

    export = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
    with grpc.insecure_channel(task["grpc"].removeprefix("http://")) as channel:
        for name, resource in others(task):
            given = span(names.SPAN_REWARD, {names.REWARD: 1.0, names.REWARD_NAME: name})
            channel.unary_unary(export)(encode_request(resource, [given]), timeout=20)


def as_the_grader(digest: str) -> SpanData:
    claim = {names.REWARD: 1.0, names.REWARD_NAME: "reward"}
    return span(names.SPAN_REWARD, claim | {names.REWARD_SOURCE: "grader", names.REWARD_GRADER: digest})


def as_the_runner(task: dict[str, Any], name: str) -> SpanData:
    labels = {names.RUN: task["run"], names.EPOCH: 0, names.MODE: "train", names.GROUP_ID: "g", names.TASK_ID: "t"}
    shown = {names.TASK: json.dumps(task | {"answer": "mine"}), names.OUTPUT: json.dumps("mine"), names.STATUS: "ok"}
    made = span(name, labels | mine() | shown)
    made.start_ns -= 3_600_000_000_000  # the first of several would be the one that counts
    return made


def as_the_gateway() -> SpanData:
    call = {
        names.POLICY: "policy",
        names.POLICY_VERSION: "v0000",
        names.GEN_AI_OPERATION: "chat",
        names.GEN_AI_RESPONSE_ID: "chatcmpl-invented",
        names.SAMPLING: json.dumps({"temperature": 1.0, "top_p": 1.0}),
        names.PROMPT_TOKEN_IDS: int32_bytes([1, 2, 3]),
        names.RESPONSE_TOKEN_IDS: int32_bytes(INVENTED),
        names.RESPONSE_LOGPROBS: float32_bytes([-0.1] * len(INVENTED)),
    }
    return span("chat policy", call)


def pose_as_the_grader(task: dict[str, Any]) -> None:
    send(as_the_grader(task["grader"]))


def name_the_grader(task: dict[str, Any]) -> None:
    """A reward of the agent's own that has the mark by which a grader knows its work is done."""
    send(span(names.SPAN_REWARD, {names.REWARD: 1.0, names.REWARD_GRADER: task["grader"]}))


def pose_as_the_runner(task: dict[str, Any]) -> None:
    send(as_the_runner(task, names.SPAN_ROLLOUT_START), as_the_runner(task, names.SPAN_ROLLOUT))


def pose_as_the_gateway(task: dict[str, Any]) -> None:
    send(as_the_gateway())


def let_the_runner_deliver(task: dict[str, Any]) -> None:
    """Claim everything in the file that the runner sends for an attempt."""
    claims = [as_the_grader(task["grader"]), as_the_runner(task, names.SPAN_ROLLOUT), as_the_gateway()]
    path = fallback.fallback_path(os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"])
    for resource in ({}, mine()):
        fallback.keep(path, encode_request(resource, claims))


def break_the_grader(task: dict[str, Any]) -> None:
    emit_reward(1.0)
    send(span("step", {"step": "none"}))


def read_what_runs(task: dict[str, Any]) -> None:
    """Everything that this user can read of command lines and environments without asking anybody."""
    lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    own = "\0".join(f"{name}={value}" for name, value in os.environ.items()).encode()
    Path(task["seen"]).write_bytes(b"\n".join([own, *lines]))


def export_with_resource_attributes_alone(task: dict[str, Any]) -> None:
    """What an exporter does that knows no header: OpenTelemetry's resource, and the address of the server."""
    from lightning_core.client.destination import of_environment

    own = of_environment()
    assert own is not None
    root = os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"].partition("/rollouts/")[0]
    post_spans(root, {}, own.resource, [span(names.SPAN_REWARD, {names.REWARD: task["earned"]})])
