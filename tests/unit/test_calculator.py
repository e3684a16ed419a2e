"""The calculator example: its tasks, its tool, its reward, and the agent itself against a canned model
(tests/standin_server.py stands in for the server)."""

from __future__ import annotations

import contextlib
import hashlib
import json
import operator
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_core import names
from lightning_core.agents.attempt import AttemptSpec
from lightning_core.agents.runner import Runner, new_attempt_id
from lightning_core.config import AgentSettings
from lightning_core.settings_file import load_settings
from tests.standin_server import Standin, standin

pytestmark = pytest.mark.slow  # it starts agents

EXAMPLE = Path(__file__).parents[2] / "examples" / "calculator"


@pytest.fixture(scope="module")
def example() -> Iterator[dict[str, ModuleType]]:
    """The example's modules, imported as its own files import each other."""
    before = dict(sys.modules)
    wanted = ("tasks", "calculator", "reward")
    for name in wanted:
        sys.modules.pop(name, None)
    sys.path.insert(0, str(EXAMPLE))
    try:
        yield {name: __import__(name) for name in wanted}
    finally:
        sys.path.remove(str(EXAMPLE))
        for name in wanted:
            sys.modules.pop(name, None)
            if name in before:
                sys.modules[name] = before[name]


def test_tasks_are_the_same_on_every_machine(example: dict[str, ModuleType]) -> None:
    train, heldout = example["tasks"].train_tasks(), example["tasks"].heldout_tasks()
    assert (len(train), len(heldout)) == (4096, 192)
    digest = hashlib.sha256(json.dumps([train, heldout]).encode()).hexdigest()
    assert digest[:16] == "e64e94a8413a083a"


def test_heldout_tasks_share_nothing_with_those_trained_on(example: dict[str, ModuleType]) -> None:
    train, heldout = example["tasks"].train_tasks(), example["tasks"].heldout_tasks()
    for key in ("id", "question", "expression"):
        assert not {t[key] for t in train} & {t[key] for t in heldout}
    assert len({t["question"] for t in train}) == len(train)
    assert set(Counter(t["expression"].strip("0123456789") for t in heldout[:64]).values()) == {16}


def test_every_answer_is_what_its_expression_gives(example: dict[str, ModuleType]) -> None:
    evaluate = example["calculator"].evaluate
    for task in example["tasks"].train_tasks() + example["tasks"].heldout_tasks():
        assert evaluate(task["expression"]) == task["answer"]
        for number in (
            task["expression"].replace("+", " ").replace("-", " ").replace("*", " ").replace("/", " ").split()
        ):
            assert number in task["question"]


NUMBERS = st.integers(0, 999)
OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul}


@given(NUMBERS, NUMBERS, NUMBERS, st.sampled_from("+-*"), st.sampled_from("+-*"))
def test_the_calculator_agrees_with_python(
    example: dict[str, ModuleType], a: int, b: int, c: int, one: str, two: str
) -> None:
    evaluate = example["calculator"].evaluate
    assert evaluate(f"({a} {one} {b}) {two} {c}") == OPERATORS[two](OPERATORS[one](a, b), c)
    assert evaluate(f"-{a}{one}({b}{two}{c})") == OPERATORS[one](-a, OPERATORS[two](b, c))


@pytest.mark.parametrize(
    "expression",
    [
        *("", "2+", "x", "2**9", "__import__('os')", "9//2", "f(1)", "[1]", "1,2", "True+1", "'a'*9", "1/0", "1e999"),
        *("9" * 40, "1" + "+1" * 60, "(" * 49 + "1" + ")" * 49 + "(", "999999999999*999999999999", "1 if 1 else 2"),
        *("5%3", "3j", "\x00"),
    ],
)
def test_the_calculator_refuses_what_is_no_small_arithmetic(example: dict[str, ModuleType], expression: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        example["calculator"].evaluate(expression)


@given(st.text(st.sampled_from("0123456789+-*/(). calc,eE_jx"), max_size=120))
def test_whatever_a_model_writes_is_a_number_or_a_value_error(example: dict[str, ModuleType], text: str) -> None:
    call = example["calculator"].find_call(text)
    assert call is None or (call in text and call.count("(") == call.count(")"))
    with contextlib.suppress(ValueError):
        assert abs(example["calculator"].evaluate(text)) <= example["calculator"].LARGEST


def test_division_is_exact(example: dict[str, ModuleType]) -> None:
    assert example["calculator"].evaluate("84/4") == 21
    assert example["calculator"].evaluate("0.1+0.2") == 0.3
    assert example["calculator"].evaluate("1/4") == 0.25


def output(reply: str, expression: str | None, answer: str | None) -> dict[str, Any]:
    return {"reply": reply, "expression": expression, "result": None, "answer": answer}


@pytest.mark.parametrize(
    ("given_output", "reward"),
    [
        (output("calc(12*7)", "12*7", "84"), 1.0),
        (output(" calc(12*7)\n", "12*7", "The answer is 84."), 1.0),
        (output("calc(12*7)", "12*7", "48"), 0.95),
        (output("calc(12*7)", "12*7", None), 0.95),
        (output("calc(12*7)", "12*7", "84 or 85"), 0.95),
        (output("Sure: calc(12*7)", "12*7", "84"), 0.8),
        (output("Sure: calc(12*7)", "12*7", "1"), 0.75),
        (output("calc(12+7)", "12+7", "84"), 0.1),
        (output("calc(84)", "84", "84"), 0.1),
        (output("calc(-84)", "-84", "84"), 0.1),
        (output("calc(12*)", "12*", None), 0.0),
        (output("84", None, "84"), 0.0),
        (None, 0.0),
        ("Traceback", 0.0),
        ({}, 0.0),
    ],
)
def test_rewards(example: dict[str, ModuleType], given_output: Any, reward: float) -> None:
    assert example["reward"].grade({"answer": 84}, given_output, []) == pytest.approx(reward)


def test_solved_means_the_right_calculation() -> None:
    settings = load_settings(EXAMPLE / "settings.yaml")
    assert 0.1 < settings.evaluation.success_reward <= 0.75
    assert settings.policies[0].agent_match == "calculator"


@pytest.fixture
def model() -> Iterator[Standin]:
    def reply(messages: list[dict[str, Any]]) -> str:
        question = messages[-1]["content"]
        return "42" if "Result" in question else "calc(6/0)" if "zero" in question else "calc(6*7)"

    with standin(reply) as server:
        yield server


def attempt(server: Standin, question: str, **settings: Any) -> Any:
    attempt_id = new_attempt_id()
    url = f"{server.url}/rollouts/r1/attempts/{attempt_id}"
    task = {"id": "1", "question": question, "answer": 42}
    spec = AttemptSpec("test", 0, "train", "r1", attempt_id, "g", "1", task, url, "token", "secret")
    with Runner(AgentSettings(**settings)) as runner:
        return runner.run(spec)


@pytest.mark.parametrize(
    "settings",
    [{"callable": f"{EXAMPLE}/agent.py:run"}, {"command": [sys.executable, str(EXAMPLE / "agent.py")]}],
    ids=["callable", "command"],
)
def test_the_agent_asks_computes_and_answers(model: Standin, settings: dict[str, Any]) -> None:
    result = attempt(model, "How many eggs are in 7 boxes of 6?", **settings)
    assert result.output == {"reply": "calc(6*7)", "expression": "6*7", "result": 42, "answer": "42"}
    first, second = model.calls
    assert (first["max_tokens"], second["max_tokens"]) == (24, 12)
    assert second["messages"][: len(first["messages"])] == first["messages"]
    assert second["messages"][len(first["messages"])] == {"role": "assistant", "content": "calc(6*7)"}
    assert first["model"] == "policy"


def test_its_spans_name_the_agent_and_join_the_calls_by_response_id(model: Standin) -> None:
    attempt(model, "How many eggs?", callable=f"{EXAMPLE}/agent.py:run")
    (agent,) = model.named("invoke_agent calculator")
    chats = model.named("chat policy")
    (tool,) = model.named("execute_tool calculator")
    assert agent.attributes["gen_ai.agent.name"] == "calculator"
    assert {span.raw["parentSpanId"] for span in (*chats, tool)} == {agent.raw["spanId"]}
    assert [span.attributes["gen_ai.response.id"] for span in chats] == ["chatcmpl-1", "chatcmpl-2"]
    assert tool.attributes["gen_ai.tool.call.arguments"] == '{"expression": "6*7"}'
    assert tool.attributes["gen_ai.tool.call.result"] == "42"
    assert [span.name for span in model.spans][-1] == names.SPAN_ROLLOUT


def test_a_calculation_that_fails_marks_the_tool_span(model: Standin) -> None:
    result = attempt(model, "zero", callable=f"{EXAMPLE}/agent.py:run")
    assert result.status == "ok"
    assert result.output == {"reply": "calc(6/0)", "expression": "6/0", "result": None, "answer": None}
    (tool,) = model.named("execute_tool calculator")
    assert tool.raw["status"] == {"message": "division by zero", "code": 2}
    assert len(model.calls) == 1


def test_the_agent_imports_nothing_of_this_project() -> None:
    code = f"import sys; sys.path.insert(0, {str(EXAMPLE)!r}); import agent; print([m for m in sys.modules if 'lightning' in m])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout.strip() == "[]"
