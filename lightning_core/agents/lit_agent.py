"""Agents written for Agent Lightning, run as they are: `@rollout` functions and LitAgent classes.

Runs in the agent's own process and Python (`agent.python`), where `agentlightning` is installed; nothing of it is imported
before an agent turns out to be its. What its runner would do is done: its default tracer is set up (so `emit_reward`,
`operation` and its instrumentations work), the agent gets the endpoint as its `llm` resource and each prompt of the settings as a
`prompt_template` by its name, and a number it returns is its reward. Spans go where all spans of the attempt go.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

from lightning_core import names

_PACKAGE = "agentlightning"


def is_one(target: Any) -> bool:
    """Return whether the object, or the class, is an agent of Agent Lightning."""
    bases = target.__mro__ if isinstance(target, type) else type(target).__mro__
    return any(base.__name__ == "LitAgent" and base.__module__.split(".")[0] == _PACKAGE for base in bases)


def run(target: Any, task: Any) -> Any:
    """Return what the agent returns for the task; a class is instantiated without arguments."""
    return asyncio.run(_run(target() if isinstance(target, type) else target, task))


async def _run(agent: Any, task: Any) -> Any:
    import agentlightning  # the agent's, not ours
    from agentlightning.types import Attempt, AttemptedRollout
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    from lightning_core.client.prompts import prompts

    rollout_id, attempt_id = os.environ[names.ENV_ROLLOUT_ID], os.environ[names.ENV_ATTEMPT_ID]
    attempt = Attempt(rollout_id=rollout_id, attempt_id=attempt_id, sequence_id=1, start_time=time.time())
    rollout = AttemptedRollout(
        rollout_id=rollout_id, input=task, start_time=attempt.start_time, mode="train", attempt=attempt
    )
    llm = agentlightning.LLM(
        endpoint=os.environ["OPENAI_BASE_URL"],
        model=os.environ[names.ENV_MODEL],
        api_key=os.environ["OPENAI_API_KEY"],
    )
    templates = {
        name: agentlightning.PromptTemplate(template=found["text"], engine="f-string")
        for name, found in prompts().items()
    }
    resources: dict[str, Any] = {**templates, "main_llm": llm}
    tracer = agentlightning.AgentOpsTracer()
    tracer.init_worker(0)
    provider: Any = trace.get_tracer_provider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    async with tracer.trace_context(rollout_id):
        if agent.is_async():
            result = await agent.training_rollout_async(task, resources, rollout)
        else:
            result = agent.training_rollout(task, resources, rollout)
        if isinstance(result, (bool, int, float)):
            agentlightning.emit_reward(float(result))
    return result
