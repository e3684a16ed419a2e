"""Attributes of every convention fill the same columns (sql/ingest)."""

from __future__ import annotations

from typing import Any

import pytest

from tests import decoding as d


def test_an_alias_that_loses_stays_unless_it_says_the_same() -> None:
    row = d.one(
        d.pair("llm.model_name", "b"), d.pair("gen_ai.request.model", "a"), d.pair("gen_ai.response.model", "a")
    )
    assert row["model"] == "a" and row["attributes"] == {"llm.model_name": "b"}
    row = d.one(
        d.pair("gen_ai.usage.input_tokens", "many"),
        d.pair("llm.token_count.prompt", "7"),
        d.pair("lightning.reward", True),
    )
    assert (row["input_tokens"], row["reward"]) == (7, 1.0)
    assert row["attributes"] == {"gen_ai.usage.input_tokens": "many"}


@pytest.mark.parametrize(
    ("attributes", "columns"),
    [
        ({"gen_ai.provider.name": "vllm", "gen_ai.conversation.id": "c", "gen_ai.agent.id": "7"},
         {"provider": "vllm", "conversation_id": "c", "agent_id": "7"}),
        ({"gen_ai.request.temperature": 0.5, "gen_ai.request.max_tokens": 9, "gen_ai.request.stop_sequences": ["x"]},
         {"request_temperature": 0.5, "request_max_tokens": 9, "request_stop": '["x"]'}),
        ({"openinference.span.kind": "TOOL", "input.value": "{}", "output.value": "42", "session.id": "s"},
         {"op": "tool", "tool_arguments": "{}", "tool_result": "42", "conversation_id": "s"}),
        ({"openinference.span.kind": "CHAIN", "input.value": "{}", "output.value": '{"id": "x"}'},
         {"op": "chain", "tool_arguments": None, "tool_result": None, "input_messages": None, "response_id": None}),
        ({"openinference.span.kind": "LLM", "output.value": '{"id": "chatcmpl-1"}', "llm.provider": "openai"},
         {"op": "llm", "response_id": "chatcmpl-1", "output_messages": None, "provider": "openai"}),
        ({"openinference.span.kind": "LLM", "output.value": '{"llm_output": {"id": "chatcmpl-2"}}'}, {"response_id": "chatcmpl-2"}),
        ({"openinference.span.kind": "LLM",
          "output.value": '{"generations": [[{"message": {"kwargs": {"response_metadata": {"id": "chatcmpl-3"}}}}]]}'},
         {"response_id": "chatcmpl-3"}),
        ({"openinference.span.kind": "LLM", "output.value": "no JSON"}, {"response_id": None}),
        ({"traceloop.span.kind": "tool", "traceloop.entity.name": "search", "traceloop.entity.input": "q", "traceloop.entity.output": "r"},
         {"op": "tool", "tool_name": "search", "tool_arguments": "q", "tool_result": "r"}),
        ({"agentops.span.kind": "agent", "operation.name": "critic"}, {"op": "agent", "agent_name": "critic"}),
        ({"gen_ai.request.type": "chat", "gen_ai.response.id": "chatcmpl-4"}, {"op": "llm", "response_id": "chatcmpl-4"}),
        ({"agentlightning.reward.0.value": 0.25, "agentlightning.reward.0.name": "exact"},
         {"op": "reward", "reward": 0.25, "reward_name": "exact"}),
        ({"openinference.span.kind": "CHAIN", "metadata": '{"langgraph_checkpoint_ns": "team:1|searcher:2|agent:3|tools:4"}'},
         {"agent_name": "searcher"}),
        ({"metadata": '{"langgraph_checkpoint_ns": "team:1|searcher:2"}'}, {"agent_name": "searcher"}),
        ({"metadata": '{"langgraph_checkpoint_ns": "planner:1"}'}, {"agent_name": "planner"}),
        ({"agentops.span.kind": "chain", "langchain.chain.type": "write_query"}, {"op": "chain", "agent_name": "write_query"}),
        ({"reward": True}, {"op": "reward", "reward": 1.0, "reward_name": "reward"}),
        ({"reward": True, "gen_ai.operation.name": "execute_tool"},
         {"op": "tool", "reward": None, "reward_name": None, "attributes": {"reward": "true"}}),
        ({"agentops.span.kind": "task", "operation.name": "judge", "agentops.task.output": '{"type": "reward", "value": 0.75}'},
         {"op": "reward", "reward": 0.75}),
        ({"agentops.span.kind": "task", "agentops.entity.output": '{"type": "reward", "value": null}'}, {"op": "reward", "reward": None}),
        ({"agentops.span.kind": "task", "agentops.task.output": "done"}, {"op": "task", "reward": None}),
        ({"gen_ai.usage.cache_read.input_tokens": 3, "llm.token_count.completion_details.reasoning": 4},
         {"cached_tokens": 3, "reasoning_tokens": 4}),
    ],
)  # fmt: skip
def test_the_conventions_are_read_into_the_same_columns(attributes: dict[str, Any], columns: dict[str, Any]) -> None:
    (row,), _ = d.decode(d.request(d.good(attributes=[d.pair(k, v) for k, v in attributes.items()])))
    assert {name: row[name] for name in columns} == columns


@pytest.mark.parametrize(
    ("name", "role", "agent"),
    [("planner.run", "AGENT", "planner"), ("Pipeline.run", "CHAIN", None), ("subprocess.run", None, None)],
)
def test_what_is_only_called_run_is_no_agent(name: str, role: str | None, agent: str | None) -> None:
    attributes = [d.pair("openinference.span.kind", role)] if role else []
    (row,), _ = d.decode(d.request(d.good(name=name, attributes=attributes)))
    assert row["agent_name"] == agent
