"""All checks of one kind of work, and the error of those that fail.

What takes the user's imports runs in child processes beside the rest, so all of it takes about as long as they do.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Literal

from lightning_core.agents.source import agent_digest
from lightning_core.checks import machine
from lightning_core.checks.cards import check_cards
from lightning_core.checks.result import Check
from lightning_core.checks.user_imports import Patience, Say, check_agent, check_flow_imports, flow_imports
from lightning_core.config import PolicySettings, Settings, SettingsError, TaskSettings
from lightning_core.epoch.derive_inputs import check_estimators
from lightning_core.epoch.draw import check_sampler
from lightning_core.epoch.patterns import check_patterns
from lightning_core.epoch.task_file import load_tasks, summary
from lightning_core.lake import user_sql
from lightning_core.lake.manifest import stage_key
from lightning_core.lake.redact import Redaction
from lightning_core.loading import code_digest
from lightning_core.prompts.seeds import read_seeds
from lightning_core.training.errors import TrainingError
from lightning_core.training.weighing import weighing_sql

logger = logging.getLogger(__name__)

Work = Literal["train", "evaluate", "learn", "finetune", "regrade", "deploy", "doctor"]
_PARTS: dict[Work, tuple[str, ...]] = {
    "train": ("tasks", "held_out", "agent", "prompts", "grader", "rules", "vllm", "cluster", "memory", "disk"),
    "evaluate": ("held_out", "agent", "prompts", "grader", "rules", "vllm", "cluster", "memory", "disk"),
    "learn": ("grader", "rules", "vllm", "memory", "disk"),
    "finetune": ("examples", "rules", "memory", "disk"),
    "regrade": ("grader", "rules", "disk"),
    "deploy": ("tasks", "held_out", "agent", "prompts", "grader", "rules"),  # what runs it may be another machine
    "doctor": ("agent", "prompts", "grader", "rules"),
}
_TASKS = {"tasks": "tasks.train", "held_out": "tasks.evaluate"}
_passed: dict[str, set[str]] = {}  # digest of settings and code → parts that were in order in this process


def check(
    settings: Settings,
    work: Work = "train",
    *,
    parts: Sequence[str] | None = None,
    api: str | None = None,
    build: bool = False,
    patience: Patience | None = None,
) -> list[Check]:
    """Check everything that the work needs, one check a line; reads files and imports the user's code, changes nothing.

    parts: only these of the work's parts. api: URL of Prefect's server (default: PREFECT_API_URL). build: create the agent's
    environment if `agent.python` is a requirements.txt that has none yet.
    """
    parts = _PARTS[work] if parts is None else parts
    api = os.environ.get("PREFECT_API_URL") if api is None else api
    patience = patience or Patience()
    with ThreadPoolExecutor(2, thread_name_prefix="check") as children:
        try:
            agent = []
            if "agent" in parts:
                agent = [children.submit(check_agent, settings.agent, settings.policies[0].name, patience, build)]
            imports = children.submit(check_flow_imports, flow_imports(settings, parts), patience)
            others = [*_rules(settings, parts), *_machine(settings, work, parts, api)]
            imported = {each.name: each for each in imports.result()}
            tasks = [_tasks(settings.tasks, work, name, imported) for part, name in _TASKS.items() if part in parts]
            prompts = [_prompts(settings)] if "prompts" in parts and settings.prompts else []
            grader = [_grader(settings.reward.grader, imported)] if "grader" in parts else []
            return [*tasks, *(each.result() for each in agent), *prompts, *grader, *imported.values(), *others]
        except BaseException:
            patience.stopped.set()
            raise


def require(
    settings: Settings,
    work: Work = "train",
    *,
    api: str | None = None,
    build: bool = False,
    say: Say = logger.info,
    warn: Say = logger.warning,
) -> None:
    """Raise one SettingsError with all that is wrong; pass warnings to `warn`, and one line on the rest to `say`.

    Parts that passed in this process are not checked again while settings, agent and grader stay the same: a command
    checks before Prefect's server runs, and its flow and the flows within it skip the check.
    """
    passed = _passed.setdefault(_key(settings), set())
    parts = [part for part in _PARTS[work] if part not in passed]
    if settings.tasks.evaluate is None and work != "evaluate":  # which alone cannot do without
        parts = [part for part in parts if part != "held_out"]
    if not parts:
        return
    found = check(settings, work, parts=parts, api=api, build=build, patience=Patience(say=say))
    wrong = [each for each in found if each.level == "error"]
    if wrong:
        raise SettingsError(_together(wrong))
    for each in found:
        if each.level == "warning":
            warn(f"{each.name}: {each.found}")
    say("checked: " + ", ".join(each.name for each in found))
    passed |= set(parts)
    if any(each.name == "agent" and each.level == "warning" for each in found):
        passed.discard("agent")  # whose environment is still to be built


def _key(settings: Settings) -> str:
    try:
        agent = agent_digest(settings.agent)
    except SettingsError:  # which the check reports
        agent = ""
    return stage_key(str(Path.cwd()), settings, agent, code_digest(settings.reward.grader))


def _together(wrong: list[Check]) -> str:
    if len(wrong) == 1:
        return wrong[0].found
    lines = ["\n      ".join(each.found.splitlines()) for each in wrong]
    return f"{len(wrong)} things are wrong:\n" + "\n".join(f"  ✗ {line}" for line in lines)


def _tasks(tasks: TaskSettings, work: Work, name: str, imported: dict[str, Check]) -> Check:
    if name in imported:
        return imported.pop(name)
    reference = tasks.train if name == "tasks.train" else tasks.evaluate
    if reference is None:
        found = "tasks.evaluate is not set: set it to held-out tasks"
        return Check("error", name, found) if work == "evaluate" else Check("ok", name, "not set: nothing is evaluated")
    return _try(name, lambda: summary(load_tasks(reference, name)))


def _prompts(settings: Settings) -> Check:
    return _try("prompts", lambda: ", ".join(read_seeds(settings.prompts)))


def _grader(grader: str | None, imported: dict[str, Check]) -> Check:
    name = "reward.grader"
    if name in imported:
        return imported.pop(name)
    if grader is None:
        return Check("ok", name, "not set: the agent emits the rewards")
    try:
        user_sql.checked(Path(grader).read_text())
    except OSError as error:
        return Check("error", name, f"{name}: {grader}: no such file ({error.strerror})")
    except user_sql.QueryError as error:
        return Check("error", name, f"{name}: {grader}: {error}")
    return Check("ok", name, grader)


def _rules(settings: Settings, parts: Sequence[str]) -> list[Check]:
    if not {"rules", "examples"} & set(parts):
        return []
    made = [_try("algorithm", partial(_algorithm, policy, settings)) for policy in settings.policies]
    found = [each for each in made if each.level == "error"]
    if found:
        return found
    others = [policy for policy in settings.policies if not policy.imitates]
    if "examples" in parts and others:
        problem = (
            f"finetune: policy {others[0].name!r} has `algorithm: {others[0].algorithm}`, which needs rollouts of the "
            "newest version; set `algorithm: sft` for it"
        )
        found.append(Check("error", "algorithm", problem))
    if "rules" not in parts:
        return found
    looks: list[Callable[[], object]] = [
        lambda: check_patterns(settings),
        lambda: check_estimators(settings.policies),
        lambda: check_sampler(settings),
        lambda: Redaction(settings.lake),
    ]
    wrong = [each for look in looks if (each := _try("rules", look)).level == "error"]
    return found + (wrong or [Check("ok", "rules", "patterns, estimators of advantages, sampler of tasks, redaction")])


def _algorithm(policy: PolicySettings, settings: Settings) -> None:
    """Raise SettingsError for an algorithm that cannot be made or has nothing to compare, or whose SQL is not there."""
    try:
        weighing = policy.made_algorithm.weigh()
        policy.require_comparable(settings.rollout.group_size, settings.reward.assign)
        if weighing is not None:
            weighing_sql(weighing)
    except (ValueError, TrainingError) as error:
        raise SettingsError(f"policies.{policy.name}.algorithm: {error}") from None


def _machine(settings: Settings, work: Work, parts: Sequence[str], api: str | None) -> list[Check]:
    found = []
    if "memory" in parts:
        found.append(machine.check_model(settings.policies[0].model, settings.models))
    if "vllm" in parts:
        found.append(machine.check_serving(settings))
    if "cluster" in parts:
        found.append(machine.check_cluster(settings.cluster, api))
    if "memory" in parts and all(each.level != "error" for each in found):
        found.append(machine.check_memory(settings, serves=work != "finetune", trains=work != "evaluate"))
        found += [] if machine.on_cpu() else check_cards(settings, trains=work != "evaluate")
    if "disk" in parts:
        found.append(machine.check_disk(settings, trains=work in ("train", "learn", "finetune")))
    return found


def _try(name: str, look: Callable[[], object]) -> Check:
    """Return what `look` returns as a check; a SettingsError is an error."""
    try:
        return Check("ok", name, str(look()))
    except SettingsError as error:
        return Check("error", name, str(error))
