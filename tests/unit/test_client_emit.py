"""What an agent's process sends, against a stand-in server (tests/standin_server.py) that records it."""

from __future__ import annotations

import json
import math
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_core import client, names
from lightning_core.client import delivery, http
from lightning_core.otlp.spans import SpanData, encode_request, plain_attributes
from tests.examples import of_many
from tests.standin_server import Standin, standin


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Standin]:
    with standin() as running:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"{running.url}/rollouts/r1/attempts/a1")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20to%2Cken,x-more=1")
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "lightning.rollout_id=r%201,lightning.attempt_id=a1")
        monkeypatch.setenv(names.ENV_TASK, str(tmp_path / "task.json"))
        monkeypatch.setattr(delivery.time, "sleep", lambda _: None)
        monkeypatch.setattr("lightning_core.client.emit._warned", set())
        yield running


def test_a_reward_arrives_with_its_scope_and_credentials(server: Standin) -> None:
    client.emit_reward(0.25, name="style", words="too long", judge="me", tries=3)
    (span,) = server.spans
    assert span.path == "/rollouts/r1/attempts/a1/v1/traces"
    assert server.headers[0]["Authorization"] == "Bearer to,ken"
    assert server.headers[0]["X-More"] == "1"
    assert span.resource == {names.ROLLOUT_ID: "r 1", names.ATTEMPT_ID: "a1"}
    assert span.attributes == {
        names.REWARD: 0.25,
        names.REWARD_NAME: "style",
        names.REWARD_SOURCE: "agent",
        names.REWARD_WORDS: "too long",
        "judge": "me",
        "tries": 3,
    }
    assert len(span.raw["traceId"]) == 32
    assert len(span.raw["spanId"]) == 16
    assert isinstance(span.raw["startTimeUnixNano"], str)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "1.0", None, [1.0], 10**400, b"1"])
def test_a_reward_that_is_no_finite_number_is_refused_where_it_is_given(server: Standin, value: object) -> None:
    with pytest.raises(ValueError, match=r"emit_reward: .*finite number"):
        client.emit_reward(value)  # type: ignore[arg-type]
    assert server.spans == []


def test_numbers_of_other_libraries_are_rewards(server: Standin) -> None:
    import numpy

    client.emit_reward(numpy.float32(0.5))  # type: ignore[arg-type]
    client.emit_reward(True)
    client.emit_reward(numpy.int64(2))  # type: ignore[arg-type]
    assert [span.attributes[names.REWARD] for span in server.spans] == [0.5, 1.0, 2.0]


def test_a_reward_hangs_below_the_span_it_names_however_that_is_named(server: Standin) -> None:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import INVALID_SPAN

    with client.span("ours") as ours:
        pass
    theirs = TracerProvider(shutdown_on_exit=False).get_tracer("agent").start_span("theirs")
    context = theirs.get_span_context()
    their_id = format(context.span_id, "016x")
    with client.span("current") as current:
        for named in (ours, theirs, context, ours.span_id, ours.span_id.upper(), INVALID_SPAN):
            client.emit_reward(1, span=named)
    rewards = [span for span in server.spans if span.name == "reward"]
    assert [span.raw["parentSpanId"] for span in rewards] == [
        *(ours.span_id, their_id, their_id, ours.span_id, ours.span_id),
        current.span_id,  # that of OpenTelemetry's for where there is none
    ]
    assert [rewards[0].raw["traceId"], rewards[1].raw["traceId"]] == [ours.trace_id, format(context.trace_id, "032x")]


@pytest.mark.parametrize("named", ["planner", "0x12", 7, {"span_id": "1"}, object()])
def test_what_names_no_span_is_refused_where_the_reward_is_given(server: Standin, named: object) -> None:
    with pytest.raises(ValueError, match=r"emit_reward: span=.* names no span; give a span, its context, or its id"):
        client.emit_reward(1, span=named)
    assert server.spans == []


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ({"a": [1, None, "é"]}, '{"a": [1, null, "é"]}'),
        (math.nan, '"nan"'),
        (Path("x"), '"x"'),
        ({(1, 2): 3}, '"{(1, 2): 3}"'),
    ],
)
def test_an_object_is_kept_as_json_whatever_it_is(server: Standin, value: object, kept: str) -> None:
    client.emit_object(value, step=1)
    (span,) = server.spans
    assert (span.name, span.attributes) == ("object", {names.OBJECT: kept, "step": 1})


def test_what_happens_in_a_span_becomes_its_child(server: Standin) -> None:
    with client.span("plan", **{"gen_ai.agent.name": "planner"}) as outer:
        with client.span("step"):
            client.emit_event("looked up", source="wiki")
        client.emit_reward(1)
        outer.set({"steps.done": 1}, ok=True)
    event, step, reward, plan = server.spans
    assert [s.name for s in server.spans] == ["looked up", "step", "reward", "plan"]
    assert event.raw["parentSpanId"] == step.raw["spanId"]
    assert step.raw["parentSpanId"] == reward.raw["parentSpanId"] == plan.raw["spanId"] == outer.span_id
    assert {s.raw["traceId"] for s in server.spans} == {outer.trace_id}
    assert plan.attributes == {"gen_ai.agent.name": "planner", "steps.done": 1, "ok": True}


def test_an_exception_marks_its_span_and_goes_on(server: Standin) -> None:
    with pytest.raises(KeyError), client.span("plan"):
        raise KeyError("x")
    (span,) = server.spans
    assert span.raw["status"]["code"] == 2
    assert span.raw["events"][0]["name"] == "exception"


def test_a_reward_hangs_below_the_current_opentelemetry_span(server: Standin) -> None:
    from opentelemetry.sdk.trace import TracerProvider

    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("agent")
    with tracer.start_as_current_span("theirs") as theirs:
        client.emit_reward(1)
        with client.span("ours") as ours:
            client.emit_reward(2)
            with tracer.start_as_current_span("inner") as inner:
                client.emit_reward(3)
    found = {s.attributes.get(names.REWARD, s.name): s.raw["parentSpanId"] for s in server.spans}
    assert found == {
        1.0: format(theirs.get_span_context().span_id, "016x"),
        2.0: ours.span_id,
        3.0: format(inner.get_span_context().span_id, "016x"),
        "ours": format(theirs.get_span_context().span_id, "016x"),
    }
    assert {s.raw["traceId"] for s in server.spans} == {format(theirs.get_span_context().trace_id, "032x")}


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_server_that_is_busy_is_asked_again(server: Standin, status: int) -> None:
    server.fail = [(status, {"Retry-After": "0"}), (status, {})]
    client.emit_reward(1)
    assert len(server.spans) == 1


def test_an_answer_that_comes_before_all_is_sent_is_heard(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def refuse() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(100)
                connection.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                connection.shutdown(socket.SHUT_WR)
                time.sleep(0.3)

        thread = threading.Thread(target=refuse)
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        with pytest.raises(client.DeliveryError, match="413") as caught:
            delivery.post_request(url, {}, bytes(30_000_000), retries=0)
        thread.join()
    assert caught.value.permanent


def test_a_connection_that_the_server_closed_meanwhile_costs_no_request() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer_once_each() -> None:
            for _ in range(2):
                connection, _ = listening.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=answer_once_each)
        thread.start()
        for _ in range(2):
            delivery.post_request(f"http://127.0.0.1:{listening.getsockname()[1]}", {}, b"", retries=0)
        thread.join()


def test_requests_go_over_one_connection_and_a_fork_has_its_own(
    server: Standin, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = ("127.0.0.1", server.server_address[1])
    client.emit_reward(1)
    kept = http._kept.to(*place)
    assert kept.sock is not None
    client.emit_reward(2)
    assert http._kept.to(*place) is kept
    monkeypatch.setattr(http.os, "getpid", lambda: -1)
    assert http._kept.to(*place) is not kept


def test_what_a_server_says_in_protobuf_is_read() -> None:
    from email.message import Message

    from google.rpc.status_pb2 import Status
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

    partial = ExportTraceServiceResponse()
    partial.partial_success.rejected_spans, partial.partial_success.error_message = 300, "no id"
    headers = Message()
    headers["Content-Type"] = delivery.PROTOBUF
    answers = [
        http.Answer(200, headers, b""),
        http.Answer(200, headers, partial.SerializeToString()),
        http.Answer(503, headers, Status(code=14, message="the spool is full").SerializeToString()),
        http.Answer(500, headers, b"\xff"),
    ]
    printed: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delivery, "ask", lambda *_: answers.pop(0))
        for _ in range(4):
            try:
                printed.append(delivery.post_request("http://x", {}, b"", retries=0))
            except client.DeliveryError as failure:
                printed.append((str(failure), failure.permanent))
    assert printed == [
        None,
        ("http://x/v1/traces refused 300 spans: no id", True),
        ("http://x/v1/traces answered 503: the spool is full", False),
        ("http://x/v1/traces answered 500: \ufffd", True),
    ]


def test_without_an_endpoint_nothing_happens_and_the_log_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    monkeypatch.setattr("lightning_core.client.emit._warned", set())
    client.emit_reward(1)
    client.emit_reward(1)
    assert caplog.text.count("OTEL_EXPORTER_OTLP_ENDPOINT is not set") == 1


def test_seeding_random_does_not_repeat_ids() -> None:
    ids = set()
    for _ in range(3):
        random.seed(42)
        ids |= {client.new_span_id(), client.new_trace_id()}
    assert len(ids) == 6


def test_keys_that_are_no_json_keys_do_not_stop_a_span() -> None:
    assert plain_attributes({"a": {(1, 2): 3}}) == {"a": "{(1, 2): 3}"}


def test_importing_the_client_imports_no_framework() -> None:
    code = "import sys, lightning_core.client; print(*sorted({m.split('.')[0] for m in sys.modules} & set(sys.argv)))"
    heavy = ["torch", "prefect", "duckdb", "pydantic", "opentelemetry", "numpy", "requests", "yaml"]
    run = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout.strip() == ""


def test_post_spans_names_the_server_and_what_it_said(server: Standin) -> None:
    server.fail = [(401, {})]
    with pytest.raises(client.DeliveryError, match=r"answered 401: .*asked to fail") as caught:
        client.post_spans(server.url, {}, {}, [])
    assert caught.value.permanent
    with pytest.raises(client.DeliveryError, match="cannot be reached"):
        client.post_spans("http://127.0.0.1:9", {}, {}, [], retries=0)
    with pytest.raises(client.DeliveryError, match="no usable endpoint"):
        client.post_spans("nonsense", {}, {}, [])


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3) | st.tuples(inner),
    max_leaves=5,
)


@of_many(examples=25)
@given(st.dictionaries(st.text(st.characters()), VALUES, max_size=5))
def test_whatever_the_attributes_are_the_request_is_valid_otlp(attributes: dict[str, object]) -> None:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    span = SpanData("name", 1, 2**63, "a" * 32, "b" * 16, attributes=attributes)
    body = encode_request({}, [span])
    request = ExportTraceServiceRequest.FromString(body)
    (sent,) = request.resource_spans[0].scope_spans[0].spans
    assert sent.end_time_unix_nano == 2**63
    assert len(sent.attributes) == sum(value is not None for value in attributes.values())


THROUGH_OPENTELEMETRY = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from lightning_core import client
import json, logging
logging.basicConfig()
client.emit_reward(0)
kept = InMemorySpanExporter()
provider = TracerProvider(SAMPLER)
provider.add_span_processor(SimpleSpanProcessor(kept))
trace.set_tracer_provider(provider)
with trace.get_tracer("theirs").start_as_current_span("turn"):
    with client.span("plan", **{"gen_ai.agent.name": "planner"}) as span:
        client.emit_reward(0.5, name="style", judge={"me": 1}, nothing=None)
        span.set(ok=True)
    client.emit_event("done", steps=[1, 2])
client.emit_reward(1, span=span)
client.emit_message("hi")
client.emit_exception(KeyError("x"))
spans = kept.get_finished_spans()
above = {s.context.span_id: s.name for s in spans}
failed = [[s.name, s.status.description] for s in spans if not s.status.is_ok and not s.status.is_unset]
kept = [[s.name, s.parent and above[s.parent.span_id], dict(s.attributes)] for s in spans]
print(json.dumps([kept, failed]))
"""


def run_through_opentelemetry(sampler: str = "") -> tuple[list[Any], list[Any], str]:
    """(name, name of the parent, attributes) of the spans it exports, (name, what it says) of those that failed, and what it logs."""
    code = THROUGH_OPENTELEMETRY.replace("SAMPLER", sampler)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    exported, failed = json.loads(run.stdout)
    return exported, failed, run.stderr


def test_without_an_endpoint_rewards_are_spans_of_the_opentelemetry_that_is_set_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    spans, failed, printed = run_through_opentelemetry()
    reward = {"judge": '{"me": 1}', names.REWARD: 0.5, names.REWARD_NAME: "style", names.REWARD_SOURCE: "agent"}
    assert spans == [
        ["reward", "plan", reward],
        ["plan", "turn", {"gen_ai.agent.name": "planner", "ok": True}],
        ["done", "turn", {"steps": "[1, 2]"}],
        ["turn", None, {}],
        ["reward", "plan", {names.REWARD: 1.0, names.REWARD_NAME: "reward", names.REWARD_SOURCE: "agent"}],
        ["message", None, {names.MESSAGE: "hi"}],
        ["exception", None, spans[-1][2]],
    ]
    assert spans[-1][2]["exception.type"] == "KeyError"
    assert failed == [["exception", "KeyError: 'x'"]]
    assert printed.count("OTEL_EXPORTER_OTLP_ENDPOINT is not set") == 1, "before it was set up, and only then"


def test_a_reward_that_the_sampler_leaves_out_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    spans, _, printed = run_through_opentelemetry(
        "__import__('opentelemetry.sdk.trace.sampling', fromlist=['x']).ALWAYS_OFF"
    )
    assert spans == []
    assert "'reward' is not recorded" in printed


def test_with_an_endpoint_rewards_are_posted_at_once_and_not_left_to_their_exporter(server: Standin) -> None:
    spans, *_ = run_through_opentelemetry()
    assert [name for name, *_ in spans] == ["turn"]
    posted = ["reward", "reward", "plan", "done", "reward", "message", "exception"]
    assert [span.name for span in server.spans] == posted
