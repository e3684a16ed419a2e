"""Agents that each lack something: `python agents_for_the_doctor.py NAME`. Nothing of ours is imported."""

import json
import os
import sys
import urllib.error
import urllib.request


def ask(model="policy", path="/chat/completions", **more):
    """One call of the model; returns its id."""
    body = {"model": model, "messages": [{"role": "user", "content": "What is 2 + 3?"}], **more}
    headers = {"Authorization": f"Bearer {os.environ['OPENAI_API_KEY']}", "Content-Type": "application/json"}
    url = os.environ["OPENAI_BASE_URL"] + path
    try:
        with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), headers)) as reply:
            text = reply.read().decode()
            return None if body.get("stream") else json.loads(text)["id"]
    except urllib.error.HTTPError as error:
        print(error.read().decode(), file=sys.stderr)


def tracing(**options):
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(**options)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider.get_tracer("agent")


def calls_nothing():
    print("nothing was asked of anyone")


def fails():
    ask()
    sys.exit("out of ideas")


def fails_at_once():
    import no_such_module  # noqa: F401


def only_calls():
    ask()
    ask(stream=True)


def is_traced_and_asks_for_gpt_4o():
    tracer = tracing()
    with tracer.start_as_current_span("invoke_agent adder", attributes={"gen_ai.agent.name": "adder"}):
        asked = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "openai/gpt-4o"}
        with tracer.start_as_current_span("chat openai/gpt-4o", attributes=asked) as call:
            call.set_attribute("gen_ai.response.id", ask("openai/gpt-4o"))
        with tracer.start_as_current_span("reward", attributes={"lightning.reward": 1.0}):
            pass


def asks_a_judge():
    ask("gpt-judge")


def embeds_with_the_policy():
    ask()
    ask(path="/embeddings", input="What is 2 + 3?")


def forces_a_tool():
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
    ask(tools=[tool], tool_choice="required")


def spans_without_names():
    with tracing().start_as_current_span("work"):
        ask()


def all_is_there():
    from opentelemetry.trace import Status, StatusCode

    tracer = tracing()
    with tracer.start_as_current_span("invoke_agent adder", attributes={"gen_ai.agent.name": "adder"}):
        with tracer.start_as_current_span("chat policy", attributes={"gen_ai.operation.name": "chat"}) as call:
            call.set_attribute("gen_ai.response.id", ask())
        with tracer.start_as_current_span("add", attributes={"gen_ai.operation.name": "execute_tool"}) as tool:
            tool.set_status(Status(StatusCode.ERROR, "no such number"))
        with tracer.start_as_current_span("reward", attributes={"lightning.reward": 1.0}):
            pass


def limits_its_attributes():
    from opentelemetry.sdk.trace import SpanLimits

    tracer = tracing(span_limits=SpanLimits(max_span_attributes=2))
    with tracer.start_as_current_span("invoke_agent adder", attributes={"gen_ai.agent.name": "adder"}) as span:
        span.set_attributes({"one": 1, "two": 2})
        ask()


def calls_elsewhere_too():
    attributes = {"gen_ai.operation.name": "chat", "gen_ai.response.id": "of-another-api", "gen_ai.agent.name": "adder"}
    with tracing().start_as_current_span("chat another-model", attributes=attributes):
        pass
    ask()


if __name__ == "__main__":
    globals()[sys.argv[1]]()
