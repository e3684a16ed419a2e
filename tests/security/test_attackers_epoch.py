"""An epoch in which attempts try everything at once: their rewards are what the real grader gives, and their neighbours' are what they were."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lightning_core.agents.grading import grade
from lightning_core.config import Settings
from lightning_core.epoch.decoding import decode_spool
from lightning_core.epoch.derive import attempts, derive
from lightning_core.epoch.epoch import Epoch, Run
from lightning_core.epoch.plan import Task, plan_training
from lightning_core.lake import catalog
from lightning_core.loading import code_digest
from lightning_flows.tasks.shard import rollout_shard
from tests.gateway_rig import Rig, rig
from tests.security.attackers import INVENTED, MODEL_SAYS
from tests.security.test_one_attempt import gone

HERE = Path(__file__).parent
GRADER = f"{HERE / 'attackers.py'}:grade"
GROUP, FAILURE = 2, -0.5
HONEST = {"right": {"answer": MODEL_SAYS}, "wrong": {"answer": "mine"}}
ENDS: dict[str, dict[str, Any]] = {
    "returns": {"ends": None},
    "leaves a process": {"ends": "orphan"},
    "kills its parent": {"ends": "kill_parent"},
    "leaves garbage as its result": {"ends": "leave", "name": "result.json", "what": "garbage"},
    "leaves garbage as its spans": {"ends": "leave", "name": "undelivered-spans", "what": "garbage"},
}
RETURNS = {"returns", "leaves a process"}
_numbers = itertools.count()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with rig(tmp_path_factory.mktemp("home"), max_body_mb=1) as made:
        made.route(version="v0000")
        yield made


@dataclass
class Ended:
    """An epoch that ended, as its tables show it."""

    epoch: Epoch
    statuses: dict[str, int]

    def ask(self, question: str) -> list[tuple[Any, ...]]:
        """Rows of the catalog; `?` is the run."""
        with catalog.connect(self.epoch.lake.root) as con:
            return con.execute(question, [self.epoch.run]).fetchall()

    def rewards(self) -> dict[str, list[float | None]]:
        rows = self.ask("SELECT task_id, list(reward ORDER BY reward) FROM rollout_rewards WHERE run = ? GROUP BY ALL")
        return dict(rows)

    def of_the_honest(self) -> list[tuple[Any, ...]]:
        """What is trained on of the honest: every column that does not name the run, or the moment."""
        return self.ask(
            """
            SELECT task_id, rollouts.outcome, rollouts.output, sequences.reward, sequences.advantage, sequences.policy_version,
                sequences.token_ids, sequences.loss_mask, sequences.logprobs, policy_calls.agent, policy_calls.left_out
            FROM rollouts
            JOIN sequences USING (run, epoch, rollout_id, attempt_id)
            JOIN policy_calls USING (run, epoch, rollout_id, attempt_id)
            WHERE run = ? AND task_id IN ('right', 'wrong') ORDER BY ALL
            """
        )


def run_epoch(server: Rig, folder: Path, attacks: dict[str, dict[str, Any]]) -> Ended:
    """Roll out, grade and derive an epoch of honest tasks and of these, all attempts at once."""
    run_name = f"epoch-{next(_numbers)}"
    (folder / "done").mkdir(parents=True)
    known = {
        "run": run_name,
        "answer": "mine",
        "done": str(folder / "done"),
        "victims": str(folder / "victims"),
        "orphan": str(folder / "orphan"),
        "attackers": GROUP * len(attacks),
        "grpc": server.handle.grpc_url,
        "grader": code_digest(GRADER),
    }
    tasks = [Task(name, known | content | {"attacks": False}) for name, content in HONEST.items()]
    tasks += [Task(name, known | content | {"attacks": True}) for name, content in attacks.items()]
    total = GROUP * len(tasks)
    run = Run(
        Settings.model_validate(
            {
                "home": server.home,
                "run": run_name,
                "agent": {"callable": f"{HERE / 'agent_of_the_epoch.py'}:run", "preload": [], "timeout_s": 120},
                "tasks": {"train": "(none)"},
                "policies": [{"advantages": "reinforce"}],
                "reward": {"grader": GRADER, "failure_reward": FAILURE},
                "rollout": {"tasks_per_epoch": len(tasks), "group_size": GROUP, "concurrency": total},
            }
        )
    )
    epoch = run.open(0, "train", run.versions(0))
    planned = plan_training(epoch, tasks, 0)
    epoch.manifest.planned = [rollout.rollout_id for rollout in planned]
    shard = rollout_shard.fn(epoch, server.handle, planned, number=1, of=1, total=total)
    decode_spool(run.lake, None)
    with attempts(epoch) as con:
        grade(GRADER, con, server.handle.store)
    decode_spool(run.lake, None)
    derive(epoch, "attackers")
    epoch.save()
    run.lake.rebuild_catalog()
    return Ended(epoch, shard["statuses"])


@pytest.fixture(scope="module")
def attacked(server: Rig, tmp_path_factory: pytest.TempPathFactory) -> tuple[Ended, Path]:
    folder = tmp_path_factory.mktemp("attacked")
    return run_epoch(server, folder, ENDS), folder


def test_every_rollout_has_what_the_grader_gives_or_failed(attacked: tuple[Ended, Path]) -> None:
    ended, _ = attacked
    failed = len(ENDS) - len(RETURNS)
    assert ended.statuses == {"ok": GROUP * (len(HONEST) + len(RETURNS)), "error": GROUP * failed}
    assert ended.rewards() == {
        "right": [1.0, 1.0],
        "wrong": [0.0, 0.0],
        **{name: [0.0 if name in RETURNS else FAILURE] * GROUP for name in ENDS},
    }


def test_the_honest_are_trained_on_as_they_are_without_attackers(
    attacked: tuple[Ended, Path], server: Rig, tmp_path: Path
) -> None:
    alone = run_epoch(server, tmp_path / "alone", {}).of_the_honest()
    assert len(alone) == GROUP * len(HONEST) and attacked[0].of_the_honest() == alone


def test_no_call_and_no_root_is_an_attackers_invention(attacked: tuple[Ended, Path]) -> None:
    ended, _ = attacked
    calls = ended.ask("SELECT rollout_id, count(*) FROM policy_calls WHERE run = ? AND policy = 'policy' GROUP BY ALL")
    assert Counter(count for _, count in calls) == {1: GROUP * (len(HONEST) + len(ENDS))}
    assert not [ids for (ids,) in ended.ask("SELECT token_ids FROM sequences WHERE run = ?") if INVENTED[0] in ids]
    outputs = ended.ask("SELECT DISTINCT output FROM rollouts WHERE run = ? AND outcome = 'ok'")
    assert outputs == [(f'"{MODEL_SAYS}"',)]


def test_what_was_claimed_is_counted_for_those_who_look(attacked: tuple[Ended, Path]) -> None:
    ended, _ = attacked
    found = ended.ask("SELECT DISTINCT refused FROM refused_claims WHERE run = ? AND sender = 'attempt' ORDER BY ALL")
    assert {"lightning.policy", "lightning.reward.source", "lightning.run"} <= {claim for (claim,) in found}


def test_what_an_attacker_left_running_is_gone_and_the_gateway_is_not(
    attacked: tuple[Ended, Path], server: Rig
) -> None:
    assert gone(int((attacked[1] / "orphan").read_text()))
    assert server.handle.health()["pid"] == server.handle.pid
