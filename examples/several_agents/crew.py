"""A lead, two or three workers and a critic write slogans. They know nothing of training: `openai` and OpenTelemetry only.

Each agent asks for a model of its own role and runs under a span with its name: `lead` (model `lead`), `worker-1` to
`worker-3` (all model `worker`), `critic` (model `critic`). How many workers there are depends on the task. The critic says
what it thinks, and its span carries the reward: how much of the slogans is in small letters.
"""

import os
from typing import Any

from openai import OpenAI
from opentelemetry.sdk.trace import TracerProvider

provider = TracerProvider()
if os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
tracer = provider.get_tracer("crew")


def run(task: dict[str, Any]) -> dict[str, Any]:
    """Slogans for `task["thing"]`, of `task["workers"]` workers, and the lead's pick of words."""
    client = OpenAI()
    with agent("lead"):
        words = ask(client, "lead", f"Two words for {task['thing']}")
    slogans = []
    for number in range(1, task["workers"] + 1):
        with agent(f"worker-{number}"):
            slogans.append(ask(client, "worker", f"A slogan for {task['thing']}"))
    with agent("critic") as span:
        ask(client, "critic", f"Is this good: {task['thing']}")
        span.set_attribute("lightning.reward", small_letters(words + "".join(slogans)))
    return {"words": words, "slogans": slogans}


def agent(name: str) -> Any:
    return tracer.start_as_current_span(name, attributes={"gen_ai.agent.name": name})


def ask(client: OpenAI, model: str, text: str) -> str:
    messages: Any = [{"role": "user", "content": text}]
    reply = client.chat.completions.create(model=model, messages=messages, max_tokens=24, temperature=0)
    return reply.choices[0].message.content or ""


def small_letters(text: str) -> float:
    return sum(c.islower() for c in text) / max(len(text), 1)


def train_tasks() -> list[dict[str, Any]]:
    return [{"id": f"t{i}", "thing": f"{i} pens", "workers": 2 + i % 2} for i in range(64)]


def heldout_tasks() -> list[dict[str, Any]]:
    return [{"id": f"h{i}", "thing": f"{i} cups", "workers": 2} for i in range(4)]


def busiest_workers(agents: list[dict[str, Any]]) -> str | None:
    """`agent_match` at run time, from the agents of the last epoch: the workers that made the most calls; at first, all."""
    workers = [row for row in agents if (row["agent"] or "").startswith("worker-")]
    most = max((row["calls"] for row in workers), default=0)
    return "|".join(sorted(f"^{row['agent']}$" for row in workers if row["calls"] == most)) or "^worker-"
