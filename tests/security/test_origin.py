"""Where a span came from decides what it may say: attempts that claim rewards, roots and calls get none of them."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lightning_core import names
from lightning_core.client import SpanData, new_span_id, new_trace_id, post_spans
from lightning_core.config import AgentSettings, RewardSettings, Settings, TaskSettings
from lightning_core.doctor.findings import findings
from lightning_core.doctor.trial import Trial, try_agent
from lightning_core.epoch.decoding import decode_spool
from lightning_core.lake import catalog
from lightning_core.lake.explain import explain
from lightning_core.lake.explain_view import view
from lightning_core.lake.lake import Lake
from lightning_core.loading import code_digest
from tests.gateway_rig import Rig, rig
from tests.security.attackers import INVENTED

ATTACKERS = Path(__file__).with_name("attackers.py")
GRADER = f"{ATTACKERS}:grade"
_numbers = itertools.count()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with rig(tmp_path_factory.mktemp("home")) as made:
        made.route(version="v0000")
        yield made


@dataclass
class Epoch:
    """An epoch of attackers, run, graded and derived."""

    trial: Trial

    def ask(self, question: str, task: str) -> list[tuple[Any, ...]]:
        """Rows of the catalog; `?` is the id of the task's rollout."""
        return self._rows(question, f"{self.trial.epoch.run}.{task}")

    def ask_all(self, question: str) -> list[tuple[Any, ...]]:
        """Rows of the catalog; `?` is the run."""
        return self._rows(question, self.trial.epoch.run)

    def rewards(self, *tasks: str) -> list[float | None]:
        found = dict(self.ask_all("SELECT task_id, reward FROM rollout_rewards WHERE run = ?"))
        return [found[task] for task in tasks]

    def _rows(self, question: str, value: str) -> list[tuple[Any, ...]]:
        with catalog.connect(self.trial.epoch.lake.root) as con:
            return con.execute(question, [value]).fetchall()


def settings(run: str, grader: str | None) -> Settings:
    return Settings(
        run=run,
        agent=AgentSettings(callable=f"{ATTACKERS}:run"),
        tasks=TaskSettings(train="(none)"),
        reward=RewardSettings(grader=grader),
    )


def epoch(server: Rig, tasks: dict[str, list[str]], grader: str | None = None) -> Epoch:
    """Attempts that do what `tasks` (name → attacks) says, one after another."""
    run = f"run-{next(_numbers)}"
    known = {
        "run": run,
        "answer": "mine",
        "victims": str(server.home / f"{run}.victims"),
        "grpc": server.handle.grpc_url,
        "grader": code_digest(grader),
        "earned": 0.25,
        "seen": str(server.home / f"{run}.seen"),
    }
    todo = {name: known | {"does": does} for name, does in tasks.items()}
    trial = try_agent(server.handle, settings(run, grader), todo)
    assert {result.status for result in trial.results.values()} == {"ok"}, trial.results
    return Epoch(trial)


@pytest.fixture(scope="module")
def ungraded(server: Rig) -> Epoch:
    """Rewards are what attempts give themselves."""
    everybody = {
        "victim": ["leave", "give_nothing"],
        "by_http": ["reward_a_neighbour", "give_nothing"],
        "by_grpc": ["reward_a_neighbour_by_grpc", "give_nothing"],
        "poses": ["give_nothing", "pose_as_the_grader"],
        "samples": ["pose_as_the_gateway", "give_nothing"],
        "exporter": ["export_with_resource_attributes_alone"],
        "reader": ["read_what_runs"],
    }
    return epoch(server, everybody)


@pytest.fixture(scope="module")
def graded(server: Rig) -> Epoch:
    """Each goes for the reward that the grader gives: 0 for all of them."""
    every = ["reward_a_neighbour", "reward_a_neighbour_by_grpc", "pose_as_the_grader", "pose_as_the_runner"]
    every += ["pose_as_the_gateway", "let_the_runner_deliver"]
    everybody = {
        "victim": ["leave"],
        "poses": ["pose_as_the_grader"],
        "marks": ["name_the_grader"],
        "breaks": ["break_the_grader"],
        "roots": ["pose_as_the_runner"],
        "delivers": ["let_the_runner_deliver"],
        "everything": every,
    }
    return epoch(server, everybody, GRADER)


@pytest.mark.parametrize("attacker", ["by_http", "by_grpc"])
def test_nobody_without_a_token_rewards_a_rollout(ungraded: Epoch, attacker: str) -> None:
    assert ungraded.rewards("victim", attacker) == [0.0, 0.0]


def test_an_attempt_is_no_grader(graded: Epoch) -> None:
    assert graded.rewards("poses") == [0.0]
    given = graded.ask(
        "SELECT source, reward, left_out FROM rewards_given WHERE rollout_id = ? ORDER BY reward", "poses"
    )
    assert given == [("grader", 0.0, None), ("emitted", 1.0, "no_authority")]


def test_a_grader_does_not_take_an_attempts_mark_for_its_own(graded: Epoch) -> None:
    assert graded.rewards("marks") == [0.0]


def test_an_attempt_that_poses_as_a_grader_gives_no_reward_where_there_is_none(ungraded: Epoch) -> None:
    assert ungraded.rewards("poses") == [0.0]


def test_an_attempt_that_breaks_the_grader_is_not_asked_instead(graded: Epoch) -> None:
    found = graded.ask("SELECT reward, left_out FROM rollout_rewards WHERE rollout_id = ?", "breaks")
    assert found == [(None, "no_reward")]
    given = graded.ask(
        "SELECT source, reward, left_out FROM rewards_given WHERE rollout_id = ? ORDER BY source", "breaks"
    )
    assert given == [("emitted", 1.0, "grader_failed"), ("grader", None, "no_number")]


def test_an_attempt_writes_no_root(graded: Epoch) -> None:
    assert graded.rewards("roots") == [0.0], "the grader was shown the attacker's own task and output"
    assert graded.ask("SELECT output, attempts FROM rollouts WHERE rollout_id = ?", "roots") == [('"Hello world"', 1)]


def test_an_attempt_samples_nothing_by_itself(ungraded: Epoch) -> None:
    calls = ungraded.ask(
        "SELECT response_id, left_out FROM policy_calls WHERE rollout_id = ? AND policy = 'policy'", "samples"
    )
    assert len(calls) == 1 and calls[0][0] != "chatcmpl-invented"
    trained = ungraded.ask_all("SELECT token_ids FROM sequences WHERE run = ?")
    assert not [ids for (ids,) in trained if INVENTED[0] in ids]


def test_what_the_runner_delivers_for_an_attempt_is_the_attempts_own_word(graded: Epoch) -> None:
    assert graded.rewards("delivers") == [0.0]
    assert graded.ask("SELECT output FROM rollouts WHERE rollout_id = ?", "delivers") == [('"Hello world"',)]
    calls = "SELECT count(*) FROM policy_calls WHERE rollout_id = ? AND policy = 'policy'"
    assert graded.ask(calls, "delivers") == [(1,)]


def test_an_attempt_that_tries_everything_gets_what_the_grader_gives(graded: Epoch) -> None:
    assert graded.rewards("victim", "everything") == [0.0, 0.0]
    for task in ("victim", "everything"):
        found = graded.ask("SELECT output, attempts FROM rollouts WHERE rollout_id = ?", task)
        assert found == [('"Hello world"', 1)]


def test_feedback_that_comes_later_is_given_by_a_token_of_the_rollout_or_by_the_secret(
    server: Rig, ungraded: Epoch
) -> None:
    made = ungraded.trial
    result = made.results["by_http"]
    resource = {names.ROLLOUT_ID: result.rollout_id, names.ATTEMPT_ID: result.attempt_id}
    token = server.handle.mint(result.rollout_id, result.attempt_id, "train")
    for number, key in enumerate((token, server.handle.secret, None)):
        given = {names.REWARD: float(number), names.REWARD_NAME: "thumb"}
        thumb = SpanData(names.SPAN_REWARD, number, number, new_trace_id(), new_span_id(), attributes=given)
        post_spans(server.handle.url, {"authorization": f"Bearer {key}"} if key else {}, resource, [thumb])
    decode_spool(Lake(server.home), None)
    with catalog.connect(made.epoch.lake.root) as con:
        rewards = "SELECT sender, reward FROM spans WHERE rollout_id = ? AND reward_name = 'thumb' ORDER BY reward"
        assert con.execute(rewards, [result.rollout_id]).fetchall() == [("attempt", 0.0), ("secret", 1.0)]


def test_resource_attributes_alone_are_enough_with_the_proof_among_them(ungraded: Epoch) -> None:
    assert ungraded.rewards("exporter") == [0.25]
    rows = ungraded.ask(
        "SELECT scope, sender, refused, map_keys(resource) FROM spans WHERE reward = 0.25 AND rollout_id = ?",
        "exporter",
    )
    assert [row[:3] for row in rows] == [("proof", "attempt", None)]
    assert names.ROLLOUT_ID in rows[0][3] and names.PROOF not in rows[0][3], "a proof is not for whoever reads the lake"


def test_a_copy_that_an_attempt_sent_first_suppresses_nothing(server: Rig) -> None:
    """The same bytes: ids, content, resource. The lake takes the second for a retry if it looks at these alone."""
    rollout, attempt, now = f"copied-{next(_numbers)}", "a1", 1_700_000_000_000_000_000
    root = SpanData(names.SPAN_ROLLOUT, now, now + 1, new_trace_id(), new_span_id())
    root.attributes = {names.RUN: "copied", names.EPOCH: 0, names.MODE: "train", names.STATUS: "ok"}
    url, resource = server.handle.attempt_url(rollout, attempt), {names.ROLLOUT_ID: rollout, names.ATTEMPT_ID: attempt}
    token = {"authorization": "Bearer " + server.handle.mint(rollout, attempt, "train")}
    secret = {"authorization": "Bearer " + server.handle.secret}
    for headers in (token, token, secret, secret):
        post_spans(url, headers, resource, [root])
        decode_spool(Lake(server.home), None)
    with catalog.connect(Lake(server.home).root) as con:
        found = con.execute("SELECT sender, op, run FROM spans WHERE rollout_id = ? ORDER BY sender", [rollout])
        assert found.fetchall() == [("attempt", "other", None), ("secret", "rollout", "copied")]


def test_a_setting_lets_loopback_name_a_rollout_and_no_more(tmp_path: Path) -> None:
    with rig(tmp_path, trust_loopback=True) as server:
        resource = {names.ROLLOUT_ID: "r", names.ATTEMPT_ID: "a"}
        given = SpanData(names.SPAN_REWARD, 1, 1, new_trace_id(), new_span_id(), attributes={names.REWARD: 0.5})
        posed = SpanData(names.SPAN_ROLLOUT, 1, 1, new_trace_id(), new_span_id(), attributes={names.RUN: "run"})
        post_spans(server.handle.url, {}, resource, [given, posed])
        decode_spool(Lake(server.home), None)
        with catalog.connect(Lake(server.home).root) as con:
            found = con.execute("SELECT rollout_id, sender, op, refused FROM spans ORDER BY op").fetchall()
    assert found == [("r", "attempt", "other", names.RUN), ("r", "attempt", "reward", None)]


def test_what_was_claimed_in_vain_is_counted_and_shown(server: Rig) -> None:
    attacks = ["pose_as_the_grader", "pose_as_the_runner", "pose_as_the_gateway", "reward_a_neighbour"]
    made = epoch(server, {"victim": ["leave", "give_nothing"], "attacker": ["give_nothing", *attacks]})
    run = made.trial.epoch.run
    claims = made.ask_all(
        "SELECT rollout_id, sender, refused, count(*) FROM refused_claims WHERE run = ? GROUP BY ALL ORDER BY ALL"
    )
    assert claims == [
        (f"{run}.attacker", "attempt", names.POLICY, 1),
        (f"{run}.attacker", "attempt", names.REWARD_SOURCE, 1),
        (f"{run}.attacker", "attempt", names.RUN, 2),
        (f"{run}.victim", "nobody", names.ROLLOUT_ID, 2),
    ]
    found = {f.name: f for f in findings(made.trial)}["refused_claims"]
    assert found.level == "missing" and found.what.startswith("6 spans claim") and names.POLICY in found.what
    console = Console(width=200, record=True, file=io.StringIO())
    for rollout in ("victim", "attacker"):
        console.print(view(explain(made.trial.epoch.lake.root, f"{run}.{rollout}")))
    shown = console.export_text()
    assert len(re.findall("Claims that count for nothing", shown)) == 2
    assert len(re.findall(rf"nobody +{names.ROLLOUT_ID} +1", shown)) == 2
    assert [
        key for key in (names.POLICY, names.REWARD_SOURCE, names.RUN) if not re.search(f"attempt +{key}", shown)
    ] == []
    refused = made.ask_all(
        "SELECT attributes FROM spans WHERE refused IN ('lightning.policy', 'lightning.run') AND rollout_id LIKE ? || '.%'"
    )
    kept = {key for (attributes,) in refused for key in attributes}
    assert {names.POLICY, names.RESPONSE_TOKEN_IDS, names.RUN, names.OUTPUT, names.TASK} <= kept, "as it was sent"
    dropped = made.ask_all("SELECT count(*) FROM bad_rewards WHERE run = ? AND reason = 'no_authority'")
    assert dropped == [(3,)], "the grader's, and two for the neighbour"


def test_the_secret_is_in_no_environment_of_an_attempt_and_on_no_command_line(server: Rig, ungraded: Epoch) -> None:
    seen = (server.home / f"{ungraded.trial.epoch.run}.seen").read_bytes()
    assert b"lightning_core.gateway" in seen and b"OPENAI_API_KEY=lf-" in seen and names.PROOF.encode() in seen
    assert server.handle.secret.encode() not in seen
