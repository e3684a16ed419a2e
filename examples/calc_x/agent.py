"""AutoGen with a calculator: solves a word problem and ends with `### ANSWER: …`. It knows nothing of training."""

import ast
import asyncio
import json
import operator
import sys
from typing import Any

from autogen_agentchat.agents import AssistantAgent
from autogen_core import FunctionCall
from autogen_core.model_context import UnboundedChatCompletionContext
from autogen_core.models import (
    AssistantMessage,
    FunctionExecutionResult,
    FunctionExecutionResultMessage,
    LLMMessage,
    UserMessage,
)
from autogen_ext.models.openai import OpenAIChatCompletionClient

SAYS = "Solve the problem. Use the calculator for every calculation. End with the answer, a number alone, as\n### ANSWER: 42"
SHOWN = (  # how it goes: a small model needs to see it
    ("Tom has 14 boxes of 12 pens each. How many pens does he have?", "14 * 12", "168"),
    ("Ann had 305 eggs and sold 87 of them. How many eggs are left?", "305 - 87", "218"),
    ("96 chairs stand in 8 equal rows. How many chairs are in each row?", "96 / 8", "12"),
    ("Ben found 45 shells in the morning and 38 in the afternoon. How many shells did he find?", "45 + 38", "83"),
)
OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.USub: operator.neg,
}


def calculate(expression: str) -> str:
    """Compute an arithmetic expression, such as (12 + 3) * 7 / 2."""
    return f"{value(ast.parse(expression, mode='eval').body):.10g}"


def value(node: ast.expr) -> float:
    match node:
        case ast.Constant(value=int() | float() as number):
            return number
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            return OPERATORS[type(op)](value(left), value(right))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -value(operand)
    raise ValueError(f"only numbers and + - * / ( ) are understood, not {ast.unparse(node)!r}")


def shown(number: int, question: str, expression: str, result: str) -> list[LLMMessage]:
    name = f"shown_{number}"
    call = FunctionCall(id=name, name="calculate", arguments=json.dumps({"expression": expression}))
    back = FunctionExecutionResult(content=result, name="calculate", call_id=name, is_error=False)
    return [
        UserMessage(content=question, source="user"),
        AssistantMessage(content=[call], source="calculator"),
        FunctionExecutionResultMessage(content=[back]),
        AssistantMessage(content=f"### ANSWER: {result}", source="calculator"),
    ]


async def run(task: dict[str, Any]) -> str:
    model = OpenAIChatCompletionClient(
        model="policy",
        temperature=0,
        model_info={
            "vision": False,
            "function_calling": True,
            "json_output": False,
            "family": "unknown",
            "structured_output": False,
        },
    )
    examples = [message for number, example in enumerate(SHOWN) for message in shown(number, *example)]
    agent = AssistantAgent(
        "calculator",
        model,
        tools=[calculate],
        system_message=SAYS,
        max_tool_iterations=5,
        model_context=UnboundedChatCompletionContext(initial_messages=examples),
    )
    result = await agent.run(task=task["question"])
    return str(result.messages[-1].content)


if __name__ == "__main__":
    print(json.dumps(asyncio.run(run(json.load(sys.stdin)))))
