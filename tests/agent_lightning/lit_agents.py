"""Agents as they are written for Agent Lightning 0.3.0, of its decorators, base class, rewards and operations; no line for us."""

from typing import Any

import agentlightning as agl
from openai import AsyncOpenAI, OpenAI


def _messages(task: dict[str, Any]) -> list[Any]:
    return [{"role": "user", "content": task["question"]}]


@agl.rollout
def decorated(task: dict[str, Any], llm: agl.LLM) -> float:
    client = OpenAI(base_url=llm.endpoint, api_key=llm.api_key or "dummy")
    reply = client.chat.completions.create(model=llm.model, messages=_messages(task), **llm.sampling_parameters)
    with agl.operation(step="check") as check:
        check.set_input(text=reply.choices[0].message.content)
        agl.emit_reward({"polite": 1.0, "short": 0.5}, primary_key="polite")
        check.set_output("checked")
    return 0.75


@agl.rollout
async def asynchronous(task: dict[str, Any], llm: agl.LLM) -> None:
    client = AsyncOpenAI(base_url=llm.endpoint, api_key=llm.api_key or "dummy")
    await client.chat.completions.create(model=llm.model, messages=_messages(task))
    agl.emit_reward(0.25)


class Classic(agl.LitAgent[dict[str, Any]]):
    def training_rollout(self, task: dict[str, Any], resources: agl.NamedResources, rollout: agl.Rollout) -> float:
        llm = resources["main_llm"]
        assert isinstance(llm, agl.LLM)
        url = llm.get_base_url(rollout.rollout_id, rollout.attempt.attempt_id)
        OpenAI(base_url=url, api_key=llm.api_key).chat.completions.create(model=llm.model, messages=_messages(task))
        return 1.0


@agl.rollout
def prompted(task: dict[str, Any], prompt_template: agl.PromptTemplate) -> float:
    messages: list[Any] = [{"role": "system", "content": prompt_template.format(who="Ann")}, *_messages(task)]
    reply = OpenAI().chat.completions.create(model="policy", messages=messages)
    return float(reply.choices[0].message.content is not None)


class Templated(agl.LitAgent[dict[str, Any]]):
    def training_rollout(self, task: dict[str, Any], resources: agl.NamedResources, rollout: agl.Rollout) -> float:
        template = resources["writer"]
        assert isinstance(template, agl.PromptTemplate) and isinstance(resources["main_llm"], agl.LLM)
        return float(template.format(who="Ann") == "Stories for Ann.")


@agl.rollout
def failing(task: dict[str, Any], llm: agl.LLM) -> float:
    raise ValueError("as agents do")
