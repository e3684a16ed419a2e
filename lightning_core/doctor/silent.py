"""What helps a command that ended well without a call or a word: most likely its file defines functions and runs none."""

from __future__ import annotations

import ast
import shlex
from pathlib import Path

from lightning_core.config import AgentSettings


def remedy(agent: AgentSettings) -> str:
    """Return the lines to add to the agent's file, and the setting that does without them."""
    file, function, is_async = _file_and_function(agent)
    call = f"{function}(json.load(sys.stdin))"
    call, modules = (f"asyncio.run({call})", "asyncio, json, sys") if is_async else (call, "json, sys")
    return (
        f"most likely {file} defines functions but runs none of them: add at its end\n"
        'if __name__ == "__main__":\n'
        f"    import {modules}\n"
        f"    print(json.dumps({call}))\n"
        f'or give, in place of agent.command, agent.callable: "{file}:{function}"'
    )


def _file_and_function(agent: AgentSettings) -> tuple[str, str, bool]:
    """Return the command's Python file, the first function in it (`run` before others), and whether that is async.

    Where the command names no such file: what they are called in the README.
    """
    command = agent.command or []
    folder = agent.working_directory or Path.cwd()
    for word in shlex.split(command) if isinstance(command, str) else command:
        if word.endswith(".py") and (folder / word).is_file():
            try:
                body = ast.parse((folder / word).read_bytes()).body
            except SyntaxError:  # it is of a newer Python than ours, or of none
                continue
            functions = [node for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
            functions.sort(key=lambda function: function.name != "run")
            if functions:
                return word, functions[0].name, isinstance(functions[0], ast.AsyncFunctionDef)
    return "my_agent.py", "run", False
