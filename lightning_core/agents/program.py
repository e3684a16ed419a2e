"""From `agent:` in the settings to the program a pool runs; all errors in it are raised here."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path

from lightning_core.agents.pool import Program
from lightning_core.config import AgentSettings, SettingsError

_SHELL = frozenset({"&&", "||", "|", ";", "&", ">", ">>", "<", "<<", "|&", "&>", "2>", "(", ")"})

# What the default modules import only when they are first used: a third of a second of every attempt of an agent that
# has one client and one exporter. Names that move with a version are skipped; that costs time, nothing else.
_IMPORTED_LATER = [
    "openai.resources.chat.chat",
    "openai.resources.chat.completions.completions",
    "openai.lib.streaming.chat",
    "openai.resources.responses.responses",
    "httpx",
    "httpcore",
    "httpcore2",
    "truststore",
    "requests",
    "concurrent.futures.thread",
]


def resolve(
    settings: AgentSettings, environment: Mapping[str, str], grace_s: float, python: Path | None = None
) -> Program:
    """Return the program of an agent, with absolute paths. Relative ones count from where the flow was started.

    `python`: the agent's own interpreter, where it has one; `python` and `python3` of a command mean that one.

    Raises SettingsError where the working directory, the callable's file or the command's program does not exist.
    """
    directory = (settings.working_directory or Path.cwd()).absolute()
    if not directory.is_dir():
        raise SettingsError(f"agent.working_directory: {directory} is no directory")
    if settings.callable is None:
        argv = _argv(settings.command or [], directory, environment, python)
        return Program(directory, environment, settings.limits, argv=argv, grace_s=grace_s)
    default = list(settings.preload) == AgentSettings.model_fields["preload"].get_default(call_default_factory=True)
    return Program(
        directory,
        environment,
        settings.limits,
        target=_target(settings.callable),
        python=python,
        preload=[*settings.preload, *(_IMPORTED_LATER if default else [])],
        preload_optional=default,
        grace_s=grace_s,
    )


def _target(callable_: str) -> str:
    where, _, name = callable_.rpartition(":")
    if not where or not name:
        raise SettingsError(f"agent.callable: {callable_!r}: write `module:function` or `path/to/file.py:function`")
    if not where.endswith(".py"):
        if "/" in where:
            raise SettingsError(f"agent.callable: {where!r} is neither a module nor a .py file")
        return callable_
    path = Path(where).absolute()
    if not path.is_file():
        raise SettingsError(f"agent.callable: there is no file {path}; relative paths count from where the flow starts")
    return f"{path}:{name}"


def _argv(command: str | list[str], directory: Path, environment: Mapping[str, str], python: Path | None) -> list[str]:
    argv = _split(command) if isinstance(command, str) else list(command)
    if not argv:
        raise SettingsError("agent.command is empty; give a program and its arguments")
    if python is not None and argv[0] in ("python", "python3"):
        return [str(python), *argv[1:]]
    found = _find(argv[0], directory, environment)
    if found is None:
        where = f"in {directory}" if "/" in argv[0] else f"on the PATH ({environment.get('PATH', '')})"
        raise SettingsError(f"agent.command: there is no program {argv[0]!r} {where}")
    return [found, *argv[1:]]


def _split(command: str) -> list[str]:
    try:
        argv = shlex.split(command)
        lexer = shlex.shlex(command, posix=False, punctuation_chars=True)
        lexer.whitespace_split = True
        tokens = list(lexer)
    except ValueError as error:
        raise SettingsError(f"agent.command: {command!r} cannot be read: {error}") from None
    syntax = [token for token in tokens if token in _SHELL]
    if syntax:
        raise SettingsError(
            f"agent.command: {syntax[0]!r} is shell syntax, and no shell reads the command; "
            f'write ["bash", "-c", "…"] where you want one'
        )
    return argv


def _find(program: str, directory: Path, environment: Mapping[str, str]) -> str | None:
    if "/" in program:
        path = directory / program
        return str(path) if path.is_file() and os.access(path, os.X_OK) else None
    return shutil.which(program, path=environment.get("PATH"))
