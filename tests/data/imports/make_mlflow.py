"""Writes mlflow.json by the real MLflow: `python make_mlflow.py`, in an empty folder, with the project's MLflow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import SpanType

CALL = {"id": "c1", "type": "function", "function": {"name": "calc", "arguments": '{"expression": "12*7"}'}}
TOOL = {"type": "function", "function": {"name": "calc", "parameters": {"type": "object", "properties": {}}}}


@mlflow.trace(span_type=SpanType.TOOL)  # type: ignore[untyped-decorator]
def calc(expression: str) -> int:
    return 84


@mlflow.trace(name="solver", span_type=SpanType.AGENT)  # type: ignore[untyped-decorator]
def agent(question: str) -> str:
    messages: list[dict[str, Any]] = [{"role": "user", "content": question}]
    for number, reply in enumerate(
        ({"role": "assistant", "content": None, "tool_calls": [CALL]}, {"role": "assistant", "content": "84"}), 1
    ):
        with mlflow.start_span(
            "Completions", span_type=SpanType.CHAT_MODEL
        ) as span:  # as mlflow.openai.autolog writes it
            span.set_inputs({"model": "gpt-4o", "messages": messages, "tools": [TOOL]})
            choice = {"index": 0, "finish_reason": "stop", "message": reply}
            span.set_outputs({"id": f"chatcmpl-{number}", "object": "chat.completion", "choices": [choice]})
        if number == 1:
            messages = [*messages, reply, {"role": "tool", "tool_call_id": "c1", "content": str(calc("12*7"))}]  # type: ignore[list-item]
    return "84"


mlflow.set_tracking_uri("sqlite:///mlflow.db")
mlflow.set_experiment("calculator")
agent("What is 12*7?")
mlflow.flush_trace_async_logging()
trace_id = mlflow.get_last_active_trace_id()
assert trace_id is not None
mlflow.log_feedback(trace_id=trace_id, name="correctness", value=True)
written = mlflow.get_trace(trace_id).to_json(pretty=True)
for folder in (Path(__file__).resolve().parent, Path.cwd()):  # no path of one machine in the tree
    written = written.replace(f"{folder}/", "")
Path("mlflow.json").write_text(written + "\n")
