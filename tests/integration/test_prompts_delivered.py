"""Prompts from the settings to the lake: real attempts, the real gateway, a model that always answers the same."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lightning_core import names
from lightning_core.config import Settings
from lightning_core.doctor.canned import canned_model
from lightning_core.doctor.trial import Trial, try_agent
from lightning_core.epoch.epoch import Run
from lightning_core.epoch.plan import Task, attempt_of, plan_training
from lightning_core.epoch.prompts import with_prompts
from lightning_core.epoch.stage_keys import rollouts_key
from lightning_core.lake import catalog, why
from lightning_core.lake.manifest import Mode
from lightning_core.prompts.served import PromptSet
from lightning_core.prompts.store import PromptStore
from tests.gateway_rig import Rig, rig
from tests.integration.agents_with_prompts import SEED

AGENTS = Path(__file__).parent / "agents_with_prompts.py"
BETTER = "Very short stories for {who}."
TASKS: dict[str, dict[str, Any]] = {name: {"question": f"A {name}?"} for name in ("cat", "dog", "cow")}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with rig(tmp_path_factory.mktemp("home")) as made, canned_model() as made.upstream:
        made.route(version="v0000")
        yield made


def settings_of(server: Rig, run: str, agent: dict[str, Any], prompt: str | None = None, text: str = SEED) -> Settings:
    """With a prompt of this name, whose file has the text that the agents have, or another."""
    file = server.home / "writer.md"
    file.write_text(text + "\n")
    return Settings.model_validate(
        {
            "run": run,
            "home": server.home,
            "agent": agent | {"preload": []},
            "tasks": {"train": "(none)"},
            "prompts": {prompt: {"file": file}} if prompt is not None else {},
            "rollout": {"tasks_per_epoch": 1, "group_size": 2},
        }
    )


def ask(trial: Trial, question: str) -> list[tuple[Any, ...]]:
    with catalog.connect(trial.epoch.lake.root) as con:
        return con.execute(question, [trial.epoch.run]).fetchall()


def better(server: Rig, prompt: str) -> str:
    """Have a version after the seed that new epochs use."""
    store = PromptStore(server.home, prompt)
    store.read_file(SEED + "\n", Path("writer.md"))
    store.put("current", store.add(BETTER, "by hand", "p0000"))
    return "p0001"


def test_an_agent_stays_as_it_is_and_its_rollouts_say_what_they_were_served(server: Rig) -> None:
    agent = {"callable": f"{AGENTS}:unmodified"}
    seed = try_agent(server.handle, settings_of(server, "seed", agent, "writer"), TASKS)
    assert {r.status for r in seed.results.values()} == {"ok"}, [r.error for r in seed.results.values()]
    better(server, "writer")
    other = try_agent(server.handle, settings_of(server, "better", agent, "writer"), TASKS)
    found = "SELECT DISTINCT prompts, reward FROM rollouts WHERE run = ?"
    assert (ask(seed, found), ask(other, found)) == (
        [('{"writer": "p0000"}', 1.0)], [('{"writer": "p0001"}', 1.0)],
    )  # fmt: skip
    assert (seed.epoch.manifest.prompt_versions, other.epoch.manifest.prompt_versions) == (
        {"writer": "p0000"}, {"writer": "p0001"},
    )  # fmt: skip
    # The record has what was sent and what was served, and agents are told by what they sent.
    calls = """
        SELECT DISTINCT json_extract_string(input_messages, '$[0].content'), json_extract_string(prompts_served, '$[0].content')
        FROM calls WHERE run = ?
    """
    assert (ask(seed, calls), ask(other, calls)) == ([(SEED, None)], [(SEED, BETTER)])
    # What is trained on are the tokens of what was served: the canned model's are of the text.
    tokens = "SELECT DISTINCT prompt_tokens, left_out FROM policy_calls WHERE run = ? AND prompt_tokens > 0"
    assert ask(seed, tokens) != ask(other, tokens)


def test_prompts_reach_a_callable_that_asks_for_them(server: Rig) -> None:
    better(server, "asked")
    settings = settings_of(server, "asks", {"callable": f"{AGENTS}:asks"}, "writer")
    PromptStore(server.home, "writer").read_file(SEED + "\n", Path("writer.md"))
    better(server, "writer")
    trial = try_agent(server.handle, settings, {"cat": TASKS["cat"]})
    output = trial.results["cat"].output
    assert output["text"] == "Very short stories for Ann {what}."
    assert "there is no such prompt; the settings' `prompts` have writer" in output["unknown"]
    # It had the version already.
    assert ask(trial, "SELECT prompts_served, prompts_found FROM calls WHERE run = ?") == [(None, '["writer"]')]


def test_a_prompt_that_the_agent_does_not_send_is_diagnosed(server: Rig) -> None:
    agent = {"callable": f"{AGENTS}:unmodified"}
    for run, text, said in (
        ("own", SEED, []),
        ("strange", "You read.", ["none of 3 calls had strange in a system message"]),
    ):
        trial = try_agent(server.handle, settings_of(server, run, agent, run, text), TASKS)
        with catalog.connect(trial.epoch.lake.root) as con:
            found = [finding for finding in why.diagnose(con, run) if finding.rule == "prompt_not_found"]
            assert [finding.what for finding in found] == said
            assert all(con.execute(finding.evidence).fetchall() for finding in found)


def test_prompts_reach_a_command_by_its_environment(server: Rig) -> None:
    version = better(server, "painter")
    settings = settings_of(server, "command", {"command": [sys.executable, str(AGENTS)]}, "painter")
    trial = try_agent(server.handle, settings, {"cat": TASKS["cat"]})
    assert trial.results["cat"].output == {"painter": {"version": version, "text": BETTER}}


def test_without_prompts_there_is_nothing_of_them(server: Rig) -> None:
    agent = {"callable": f"{AGENTS}:asks"}
    trial = try_agent(server.handle, settings_of(server, "none", agent), {"cat": TASKS["cat"]})
    assert "LIGHTNING_PROMPTS is not set" in str(trial.results["cat"].error)
    assert ask(trial, "SELECT prompts FROM rollouts WHERE run = ?") == [(None,)]
    assert trial.epoch.manifest.prompt_versions == {} and not (server.home / "prompts" / "none").exists()


def test_an_epoch_keeps_the_versions_that_it_began_with(server: Rig) -> None:
    settings = settings_of(server, "keeps", {"command": "true"}, "kept")
    epoch = Run(settings).open(0, "train", {"policy": "v0000"})
    planned = plan_training(epoch, [Task("a", {})], 0)
    before = rollouts_key(epoch, planned)
    (first, second) = with_prompts(epoch, planned)
    assert first.prompts is second.prompts and first.prompts is not None
    began = rollouts_key(epoch, planned)
    assert before != began == rollouts_key(epoch, [first, second])
    better(server, "kept")
    again = Run(settings).open(0, "train", {"policy": "v0000"})
    assert with_prompts(again, planned)[0].prompts == first.prompts
    assert rollouts_key(again, planned) == began
    # The next one uses what is current, and so does an evaluation.
    modes: tuple[Mode, ...] = ("train", "evaluate")
    for mode in modes:
        after = Run(settings).open(1, mode, {"policy": "v0000"})
        with_prompts(after, planned)
        assert after.manifest.prompt_versions == {"kept": "p0001"}
        assert rollouts_key(after, planned) != began


def test_rollouts_with_versions_of_their_own_are_in_groups_of_their_own(server: Rig) -> None:
    settings = settings_of(server, "own", {"command": "true"}, "own")
    better(server, "own")
    PromptStore(server.home, "own").put("current", "p0000")
    epoch = Run(settings).open(0, "train", {"policy": "v0000"})
    planned = plan_training(epoch, [Task("a", {})], 0)
    one, other = with_prompts(epoch, planned)
    candidate = PromptSet.of(server.home, settings.prompts, {"own": "p0001"})
    tried = with_prompts(epoch, [one, replace(planned[1], prompts=candidate)])
    specs = [attempt_of(epoch, rollout, "a1", server.handle) for rollout in tried]
    assert [spec.group_id for spec in specs] == ["own.0000.a", "own.0000.a.own-p0001"]
    assert [json.loads(spec.labels()[names.PROMPTS]) for spec in specs] == [{"own": "p0000"}, {"own": "p0001"}]
    assert rollouts_key(epoch, tried) != rollouts_key(epoch, [one, other])
