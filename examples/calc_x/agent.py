"""AutoGen with a calculator: solves a word problem and ends with `### ANSWER: …`. It knows nothing of training."""

import ast
import asyncio
import json
import operator
import sys
from typing import Any

from autogen_agentchat.agents import AssistantAgent
from autogen_ext.models.openai import OpenAIChatCompletionClient

SAYS = "Solve the problem. Use the calculator for every calculation. End with the answer, a number alone, as\n### ANSWER: 42"
OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.USub: operator.neg,
}


def calculate(expression: str) -> str:
    """Compute an arithmetic expression, such as (12 + 3) * 7 / 2."""
    found = value(ast.parse(expression, mode="eval").body)
    return str(int(found)) if found == int(found) else f"{found:.10g}"


def value(node: ast.expr) -> float:
    match node:
        case ast.Constant(value=int() | float() as number):
            return number
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            return OPERATORS[type(op)](value(left), value(right))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -value(operand)
    raise ValueError(f"only numbers and + - * / ( ) are understood, not {ast.unparse(node)!r}")


def client() -> OpenAIChatCompletionClient:
    return OpenAIChatCompletionClient(
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


async def run(task: dict[str, Any]) -> str:
    agent = AssistantAgent("calculator", client(), tools=[calculate], system_message=SAYS, max_tool_iterations=5)
    result = await agent.run(task=task["question"])
    return str(result.messages[-1].content)


if __name__ == "__main__":
    print(json.dumps(asyncio.run(run(json.load(sys.stdin)))))
