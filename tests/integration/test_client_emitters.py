"""What an agent emits, from its process over the real gateway into the tables: rewards that name a span, messages, objects, exceptions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import duckdb
import pytest

from lightning_core.agents.attempt import AttemptSpec
from lightning_core.agents.runner import Runner
from lightning_core.config import AgentSettings
from lightning_core.epoch.derive import derive
from lightning_core.epoch.epoch import Epoch
from lightning_core.lake import catalog
from lightning_core.lake.lake import Lake
from tests.gateway_rig import rig
from tests.lake_maker import settings

AGENT = """
import openai
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from lightning_core import client


def run(task):
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter()))
    tracer = provider.get_tracer("agent")
    steps = []
    with client.span("solve", **{"gen_ai.agent.name": "solver"}):
        for number in range(3):
            with tracer.start_as_current_span("step") as step:
                ask(number)
            steps.append(step)
        with client.span("step") as last:
            ask(3)
        client.emit_reward(0.4, span=last)
        client.emit_reward(0.3, span=format(steps[2].get_span_context().span_id, "016x"))
        client.emit_reward(0.1, span=steps[0])
        client.emit_reward(0.2, span=steps[1].get_span_context())
        client.emit_message("is it 5?", tries=2)
        client.emit_object({"plan": ["add", "check"], "left": None})
        try:
            int("five")
        except ValueError as error:
            client.emit_exception(error)


def ask(number):
    messages = [{"role": "user", "content": str(number)}]
    openai.OpenAI().chat.completions.create(model="policy", messages=messages)
"""


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """That of a home in which the agent has worked once, its epoch derived with `assign: nearest`."""
    home = tmp_path_factory.mktemp("home")
    file = home / "agent.py"
    file.write_text(AGENT)
    with rig(home) as server, Runner(AgentSettings(callable=f"{file}:run", preload=[])) as runner:
        lake = Lake(home)
        epoch = lake.open_epoch("run", 0, "train", {"policy": "v0003"})
        url, token = server.handle.attempt_url("r.1", "a1"), server.handle.mint("r.1", "a1", "train")
        spec = AttemptSpec("run", 0, "train", "r.1", "a1", "g", "t", {}, url, token, server.handle.secret)
        result = runner.run(spec)
        assert result.status == "ok", result.error
        epoch.sealed_offset = server.handle.seal()
        epoch.planned = ["r.1"]
        lake.ingest(epoch.sealed_offset)
    derive(Epoch(settings(home, assign="nearest"), epoch), "key")
    lake.manifests.put_epoch(epoch)
    lake.rebuild_catalog()
    return lake


@pytest.fixture
def asked(lake: Lake) -> Iterator[duckdb.DuckDBPyConnection]:
    with catalog.connect(lake.root) as con:
        yield con


def test_a_reward_goes_to_the_call_in_the_span_that_it_names(asked: duckdb.DuckDBPyConnection) -> None:
    found = asked.sql(
        """
        SELECT calls.input_messages::JSON ->> '$[0].content', steps.reward
        FROM reward_steps AS steps
        JOIN policy_calls USING (call_id)
        JOIN calls ON calls.span_id = policy_calls.span_id
        ORDER BY calls.started
        """
    ).fetchall()
    assert found == [("0", 0.1), ("1", 0.2), ("2", 0.3), ("3", 0.4)]


def test_messages_objects_and_exceptions_are_spans_of_their_agent(asked: duckdb.DuckDBPyConnection) -> None:
    def rows(question: str) -> list[tuple[Any, ...]]:
        return asked.sql(question).fetchall()

    assert rows("SELECT attributes['lightning.message'], attributes['tries'] FROM spans WHERE name = 'message'") == [
        ("is it 5?", "2")
    ]
    assert rows("SELECT attributes['lightning.object'] ->> '$.plan[1]' FROM spans WHERE name = 'object'") == [
        ("check",)
    ]
    assert rows("SELECT agent, name, message FROM errors") == [
        ("solver", "exception", "invalid literal for int() with base 10: 'five'")
    ]
    assert "ValueError" in rows("SELECT attributes['exception.stacktrace'] FROM spans WHERE name = 'exception'")[0][0]
    assert rows("SELECT DISTINCT agent FROM span_tree WHERE name IN ('message', 'object', 'exception')") == [
        ("solver",)
    ]
