"""The agent's tool: finds `calc(…)` in a text and computes it. Never `eval`: a model wrote the expression."""

import ast
import operator
import re
from fractions import Fraction

LONGEST = 100  # characters of an expression
LARGEST = 10**12  # size of any number on the way
OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def find_call(text: str) -> str | None:
    """The first `calc(…)` in a text, up to the parenthesis that closes it."""
    start = re.search(r"\bcalc\(", text)
    if start is None:
        return None
    depth = 0
    for end in range(start.end() - 1, len(text)):
        depth += {"(": 1, ")": -1}.get(text[end], 0)
        if depth == 0:
            return text[start.start() : end + 1]
    return None


def evaluate(expression: str) -> int | float:
    """The value of numbers, `+ - * /` and parentheses. Raises ValueError, saying why, for anything else."""
    if len(expression) > LONGEST:
        raise ValueError(f"the expression is longer than {LONGEST} characters")
    try:
        value = _value(ast.parse(expression.strip(), mode="eval").body)
    except (SyntaxError, MemoryError, RecursionError):
        raise ValueError("this is no arithmetic expression") from None
    except ZeroDivisionError:
        raise ValueError("division by zero") from None
    return int(value) if value.denominator == 1 else float(value)


def _value(node: ast.expr) -> Fraction:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float) and abs(node.value) <= LARGEST:
        return Fraction(str(node.value))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATIONS:
        value = OPERATIONS[type(node.op)](_value(node.left), _value(node.right))
        if abs(value) <= LARGEST:
            return value
        raise ValueError(f"the value is larger than {LARGEST}")
    raise ValueError("only numbers, + - * / and parentheses are allowed")
