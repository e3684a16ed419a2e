"""The user's agent, grader, task functions and rules, imported in child processes as training will import them."""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_core.agents import program
from lightning_core.agents.attempt import AttemptSpec
from lightning_core.agents.attempt_outcome import exit_text
from lightning_core.agents.environment import attempt_environment, base_environment, import_folder
from lightning_core.agents.pool import Program
from lightning_core.agents.venv import interpreter, unbuilt
from lightning_core.checks.result import Check
from lightning_core.config import AgentSettings, Settings, SettingsError
from lightning_core.epoch.patterns import COMPUTED
from lightning_core.process.spawn import Process

Say = Callable[[str], None]
log = logging.getLogger(__name__)
_LOG_EVERY_S, _POLL_S = 10.0, 0.02
_PRINTED_CHARS = 1000  # of what the user's code printed before it ended


@dataclass(frozen=True)
class Patience:
    """How long the user's imports may take, who is notified while they run, and how to stop them early."""

    deadline_s: float = 300.0
    say: Say = log.info
    stopped: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class Import:
    """One piece of the user's code: the setting that names it, how it is loaded, and what it is called with."""

    name: str
    kind: str  # "agent" | "function" | "tasks", as in checks/imports.py
    fields: Mapping[str, Any]


def flow_imports(settings: Settings, parts: Sequence[str]) -> list[Import]:
    """Return what the flow itself imports for these parts."""
    found = []
    for part, name, reference in (
        ("tasks", "tasks.train", settings.tasks.train),
        ("held_out", "tasks.evaluate", settings.tasks.evaluate),
    ):
        if part in parts and reference is not None and ":" in reference and not Path(reference).exists():
            found.append(Import(name, "tasks", {"reference": reference}))
    grader = settings.reward.grader
    if "grader" in parts and grader is not None and not grader.endswith(".sql"):
        found.append(_function("reward.grader", grader, "task", "output", "spans"))
    if "rules" in parts:
        found += [_function("tracking.backends", name, "epoch", "signals") for name in settings.tracking.own_backends]
        for policy in settings.policies:
            if policy.agent_match.startswith(COMPUTED[0]):
                reference = policy.agent_match.removeprefix(COMPUTED[0])
                found.append(_function(f"policies.{policy.name}.agent_match", reference, "agents"))
    return found


def _function(name: str, reference: str, *parameters: str) -> Import:
    return Import(name, "function", {"reference": reference, "parameters": parameters})


def check_flow_imports(imports: Sequence[Import], patience: Patience) -> list[Check]:
    """Import them as the flow does, with its import path."""
    if not imports:
        return []
    environment = os.environ | {"LIGHTNING_CHECK_PATH": json.dumps(sys.path)}
    return _import(sys.executable, "flow", Path.cwd(), environment, imports, patience)


def check_agent(settings: AgentSettings, model: str, patience: Patience | None = None, build: bool = False) -> Check:
    """Check that the agent can be run: import its callable as an attempt does, find its command's program.

    build: create a missing environment of `agent.python`; otherwise the check only reports it and imports nothing.
    """
    try:
        missing = unbuilt(settings.python, settings.environments)
        if missing is not None and not build:
            found = f"{_shown(settings)}; not imported, because its environment is not built yet; the run builds it before the first rollout: {settings.python} → {missing}"
            return Check("warning", "agent", found)
        python = None if settings.python is None else interpreter(settings.python, settings.environments)
        environment = base_environment(settings, python=python)
        resolved = program.resolve(settings, environment, 0, python)
        if resolved.target is None:
            _require_script(resolved)
            return Check("ok", "agent", _shown(settings))
    except SettingsError as error:
        return Check("error", "agent", str(error))
    preload = [] if resolved.preload_optional else list(resolved.preload)
    job = Import("agent.callable", "agent", {"target": resolved.target, "preload": preload})
    with tempfile.TemporaryDirectory(prefix="lightning-check-") as folder:
        task = Path(folder) / "task.json"
        task.write_text("{}")
        spec = AttemptSpec("", 0, "train", "check", "check", "", "", {}, "http://127.0.0.1:9", "check", "check")
        there = attempt_environment(environment, spec, task, model)
        [done] = _import(
            str(python or sys.executable), "agent", resolved.directory, there, [job], patience or Patience()
        )
    return Check(done.level, "agent", f"{settings.callable}: {done.found}" if done.level == "ok" else done.found)


def _shown(settings: AgentSettings) -> str:
    shown = settings.callable or settings.command or ""
    return shown if isinstance(shown, str) else " ".join(shown)


def _require_script(resolved: Program) -> None:
    """Raise SettingsError for `python some_file.py` where there is no such file."""
    runs_python = Path(resolved.argv[0]).name.startswith("python")
    script = next((word for word in resolved.argv[1:2] if word.endswith(".py")), None)
    if runs_python and script is not None and not (resolved.directory / script).is_file():
        raise SettingsError(f"agent.command: there is no file {script} in {resolved.directory}")


def _import(
    python: str,
    side: str,
    directory: Path,
    environment: Mapping[str, str],
    imports: Sequence[Import],
    patience: Patience,
) -> list[Check]:
    """Import one after another in a child process; after one that ended the child, continue in another."""
    checks: list[Check] = []
    while len(checks) < len(imports):
        with tempfile.TemporaryDirectory(prefix="lightning-check-") as name:
            folder = Path(name)
            left = imports[len(checks) :]
            jobs = [{"name": each.name, "kind": each.kind, **each.fields} for each in left]
            (folder / "jobs.json").write_text(json.dumps(jobs))
            arguments = [python, "-m", "lightning_core.checks.imports", name, side, str(directory)]
            ended = _run(arguments, import_folder(folder), environment, folder / "output", patience)
            file = folder / "events.jsonl"
            events = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
            checks += [_check(event["name"], event) for event in events if "name" in event]
            if len(checks) < len(imports):
                printed = (folder / "output").read_text(errors="replace").strip()[-_PRINTED_CHARS:]
                problem = f"{ended}; it printed:\n{printed}" if printed else ended
                checks.append(Check("error", imports[len(checks)].name, f"{imports[len(checks)].name}: {problem}"))
    return checks


def _check(name: str, event: Mapping[str, str]) -> Check:
    if "found" in event:
        return Check("ok", name, event["found"])
    problem, section = event["problem"], name.partition(".")[0]
    return Check("error", name, problem if problem.startswith(f"{section}.") else f"{name}: {problem}")


def _run(
    arguments: list[str], directory: Path, environment: Mapping[str, str], output: Path, patience: Patience
) -> str:
    """Wait for the child, in a session of its own, and end what is left of it; return how it ended, in words."""
    began = logged = time.monotonic()
    process = Process(arguments, output, environment, directory=directory)
    try:
        while process.poll() is None:
            now = time.monotonic()
            if now - began > patience.deadline_s:
                return f"its import did not end within {patience.deadline_s:g} s, so it was stopped"
            if now - logged > _LOG_EVERY_S:
                logged = now
                patience.say(f"still importing your code ({now - began:.0f} s of {patience.deadline_s:g} s at most)")
            if patience.stopped.wait(_POLL_S):
                return "it was interrupted"
    finally:
        process.end(0)
    return f"its import ended the process ({exit_text(process.returncode)})"
