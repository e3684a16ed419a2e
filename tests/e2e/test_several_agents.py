"""Four runs of several agents, each with a real epoch or two, on one real vLLM with a tiny Llama under the adapters."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lightning_core.lake.manifest import Manifests
from lightning_core.policies.store import PolicyStore
from lightning_core.training.job import Job
from tests.e2e.test_two_epochs import HERE, ask, mentioning
from tests.tiny_model import make_tiny_llama

pytestmark = [pytest.mark.slow, pytest.mark.extra, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("crew")
    model = make_tiny_llama(folder / "tiny-llama")
    command = [sys.executable, "-m", "tests.e2e.crew_runs", str(folder / "home"), str(model)]
    done = subprocess.run(command, cwd=HERE.parents[1], capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder / "home"


def versions(home: Path, run: str) -> dict[tuple[int, str], tuple[str, str]]:
    """(epoch, policy) → the version it rolled out, and what training made of it."""
    rows = ask(home, f"SELECT epoch, policy, version, trained_version FROM policy_epochs WHERE run = '{run}'")
    return {(epoch, policy): (before, after) for epoch, policy, before, after in rows}


def test_two_agents_are_trained_by_different_algorithms_on_the_same_rollouts(home: Path) -> None:
    sequences = "FROM sequences WHERE run = 'two-algorithms'"
    assert ask(home, f"SELECT DISTINCT policy {sequences} ORDER BY ALL") == [("lead",), ("worker",)]
    shared = ask(
        home, f"SELECT count(*) FROM (SELECT rollout_id {sequences} GROUP BY 1 HAVING count(DISTINCT policy) = 2)"
    )
    assert shared[0][0] > 0
    scores = "FROM token_scores WHERE run = 'two-algorithms'"
    assert ask(home, f"SELECT DISTINCT policy, name, by_sql {scores} ORDER BY ALL") == [
        ("lead", "advantages", True), ("lead", "logprobs", False), ("lead", "returns", True), ("lead", "values", False),
    ]  # fmt: skip
    assert ask(home, f"SELECT count(DISTINCT advantage) > 1 {sequences} AND policy = 'worker'") == [(True,)]
    signals = "SELECT DISTINCT policy FROM signals WHERE run = 'two-algorithms' AND signal = 'value_loss'"
    assert ask(home, signals) == [("lead",)]
    changed = {p: before != after for (_, p), (before, after) in versions(home, "two-algorithms").items()}
    assert changed == {"lead": True, "worker": True}


def test_policies_are_trained_side_by_side_each_on_a_device(home: Path) -> None:
    epoch = Manifests(home / "lake").epoch("two-algorithms", 0)
    assert epoch is not None
    lead, worker = (epoch.stages[f"train {name}"] for name in ("lead", "worker"))
    begun = [stage.finished_ns - stage.seconds * 1e9 for stage in (lead, worker)]
    assert max(begun) < min(lead.finished_ns, worker.finished_ns), "both were under way at one time"
    jobs = [Job.model_validate_json(f.read_bytes()) for f in home.glob("training/two-algorithms/*/*.job.json")]
    assert {job.policy: job.beside for job in jobs} == {"lead": 2, "worker": 2}
    assert {job.device for job in jobs} == {"0", "1"}


def test_schedules_alternate_and_who_is_not_trained_keeps_its_version(home: Path) -> None:
    found = versions(home, "alternating")
    assert [(key, before != after) for key, (before, after) in sorted(found.items())] == [
        ((0, "lead"), True),
        ((0, "worker"), False),
        ((1, "lead"), False),
        ((1, "worker"), True),
    ]
    assert found[1, "lead"][0] == found[0, "lead"][1]
    sampled = ask(
        home,
        "SELECT policy, policy_version FROM calls WHERE run = 'alternating' AND epoch = 1 AND policy IS NOT NULL GROUP BY ALL ORDER BY ALL",
    )
    assert sampled == [("lead", found[0, "lead"][1]), ("worker", "v0000")]
    reasons = ask(
        home,
        "SELECT DISTINCT epoch, policy FROM exclusions WHERE run = 'alternating' AND reason = 'not_scheduled' ORDER BY ALL",
    )
    assert reasons == [(0, "worker"), (1, "lead")]


def test_a_cohort_is_one_policy_and_a_critic_gives_reward_and_no_gradient(home: Path) -> None:
    cohort = ask(
        home,
        "SELECT DISTINCT agent FROM policy_calls WHERE policy = 'worker' AND left_out IS NULL AND run = 'alternating' ORDER BY ALL",
    )
    assert cohort == [("worker-1",), ("worker-2",), ("worker-3",)]
    assert ask(home, "SELECT DISTINCT agent FROM rewards_given WHERE run = 'two-algorithms'") == [("critic",)]
    critic = ask(home, "SELECT DISTINCT policy, left_out FROM policy_calls WHERE agent = 'critic'")
    assert critic == [(None, "other_policy")]


def test_agents_found_at_run_time_are_those_trained_in_the_next_epoch(home: Path) -> None:
    epoch = Manifests(home / "lake").epoch("discovered", 1)
    assert epoch is not None and epoch.patterns["worker"].pattern == "^worker-1$|^worker-2$", "the busiest of epoch 0"
    rows = ask(
        home,
        "SELECT epoch, agent, left_out FROM policy_calls WHERE run = 'discovered' AND agent LIKE 'worker-%' GROUP BY ALL",
    )
    assert sorted(rows, key=str) == [
        (0, "worker-1", None),
        (0, "worker-2", None),
        (1, "worker-1", None),
        (1, "worker-2", None),
        (1, "worker-3", "agent_not_matched"),
    ]


def test_agents_that_are_frozen_answer_bit_for_bit_as_before(home: Path) -> None:
    """Held-out problems before and after an epoch that trained the lead alone; frozen agents ask at temperature 0."""
    rows = ask(
        home,
        """
        SELECT agent, output_messages, list(DISTINCT epoch ORDER BY epoch)
        FROM calls WHERE run = 'one-agent' AND mode = 'evaluate' AND agent IN ('worker-1', 'worker-2', 'critic')
        GROUP BY agent, input_messages, output_messages
        """,
    )
    assert len(rows) == 12 and all(epochs == [0, 1] for _, _, epochs in rows), rows
    before, after = versions(home, "one-agent")[0, "lead"]
    assert before == "v0000" and after != before
    worker = PolicyStore(home, "worker")
    assert "one-agent" not in {worker.manifest(v).run for v in worker.versions()}
    for version in worker.versions():
        worker.verify(version)


def test_mlflow_has_each_policys_numbers_and_versions(home: Path) -> None:
    import sqlite3

    with sqlite3.connect(home / "mlflow.db") as record:
        names = {row[0] for row in record.execute("SELECT DISTINCT key FROM metrics")}
        registered = {row[0] for row in record.execute("SELECT DISTINCT name FROM model_versions")}
    for policy in ("lead", "worker"):
        assert {f"{policy}/reward", f"{policy}/staleness"} <= names
        assert f"two-algorithms.{policy}" in registered
    assert mentioning(home) == []
