"""An agent that solves word problems with a calculator. It knows nothing of training: `openai` and OpenTelemetry only.

    echo '{"question": "Ben has 3 boxes of 12 eggs. How many eggs?"}' | python examples/calculator/agent.py

The model is asked twice: for an expression, `calc(3*12)`, and, with the result, for the answer.
"""

import json
import os
import sys
import uuid
from typing import Any

from calculator import evaluate, find_call
from openai import OpenAI
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Status, StatusCode

MODEL = os.environ.get("LIGHTNING_MODEL", "policy")
PROMPT = [
    {"role": "system", "content": "Write the calculation that solves the problem, as calc(...)."},
    {"role": "user", "content": "Tom has 14 pens and loses 9 of them. How many pens does he have now?"},
    {"role": "assistant", "content": "calc(14-9)"},
    {"role": "user", "content": "Result: 5. What is the answer?"},
    {"role": "assistant", "content": "5"},
    {"role": "user", "content": "7 boxes hold 42 eggs. How many eggs are in one box?"},
    {"role": "assistant", "content": "calc(42/7)"},
    {"role": "user", "content": "Result: 6. What is the answer?"},
    {"role": "assistant", "content": "6"},
]
if os.environ.get("CALCULATOR_EXAMPLES") == "no":
    PROMPT = PROMPT[:1]

provider = TracerProvider()
if os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))  # the provider sends the rest when Python ends
tracer = provider.get_tracer("calculator")


def run(task: dict[str, Any]) -> dict[str, Any]:
    """Solve `task["question"]`. `reply` is what the model wrote first; the others are None where it wrote no calculation."""
    client = OpenAI()
    with tracer.start_as_current_span("invoke_agent calculator") as span:
        span.set_attribute("gen_ai.operation.name", "invoke_agent")
        span.set_attribute("gen_ai.agent.name", "calculator")
        messages = [*PROMPT, {"role": "user", "content": task["question"]}]
        reply = ask(client, messages, max_tokens=24)
        outcome: dict[str, Any] = {"reply": reply, "expression": None, "result": None, "answer": None}
        call = find_call(reply)
        if call is None:
            return outcome
        outcome["expression"] = call.removeprefix("calc(").removesuffix(")")
        outcome["result"] = use_calculator(outcome["expression"])
        if outcome["result"] is None:
            return outcome
        # The conversation goes on from what was said, to the letter: so both calls can be one training sequence.
        messages += [
            {"role": "assistant", "content": reply},
            {"role": "user", "content": f"Result: {outcome['result']}. What is the answer?"},
        ]
        outcome["answer"] = ask(client, messages, max_tokens=12).strip()
        return outcome


def ask(client: OpenAI, messages: list[dict[str, Any]], max_tokens: int) -> str:
    """One call of the model, traced as OpenTelemetry's conventions for generative AI have it."""
    with tracer.start_as_current_span(f"chat {MODEL}") as span:
        span.set_attribute("gen_ai.operation.name", "chat")
        span.set_attribute("gen_ai.request.model", MODEL)
        reply = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=max_tokens, temperature=0)  # type: ignore[arg-type]
        span.set_attribute("gen_ai.response.id", reply.id)
        return reply.choices[0].message.content or ""


def use_calculator(expression: str) -> int | float | None:
    """One use of the tool; None where the expression cannot be computed, with the reason on the span."""
    with tracer.start_as_current_span("execute_tool calculator") as span:
        span.set_attribute("gen_ai.operation.name", "execute_tool")
        span.set_attribute("gen_ai.tool.name", "calculator")
        span.set_attribute("gen_ai.tool.call.id", f"call_{uuid.uuid4().hex[:12]}")
        span.set_attribute("gen_ai.tool.call.arguments", json.dumps({"expression": expression}))
        try:
            result = evaluate(expression)
        except ValueError as error:
            span.set_attribute("error.type", "ValueError")
            span.set_status(Status(StatusCode.ERROR, str(error)))
            return None
        span.set_attribute("gen_ai.tool.call.result", json.dumps(result))
        return result


if __name__ == "__main__":
    print(json.dumps(run(json.load(sys.stdin))))
