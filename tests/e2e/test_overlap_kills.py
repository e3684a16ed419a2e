"""Overlap for real: three epochs whose training and next rollouts are ended by force, side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lightning_core.policies.store import PolicyStore
from tests.e2e import kills
from tests.e2e.kills import Epoch
from tests.e2e.test_two_epochs import HERE, UNSOLVED, ask, write_settings

pytestmark = [pytest.mark.slow, pytest.mark.extra, pytest.mark.timeout(1500)]


@pytest.fixture(params=["tests.e2e.without_vllm", "lightning_flows.flows.cli"])
def run(request: pytest.FixtureRequest, tmp_path: Path, with_prefect: dict[str, str]) -> Iterator[Epoch]:
    settings = write_settings(
        tmp_path,
        epochs=3,
        async_level=1,
        **UNSOLVED,
        evaluation={"every": 3, "success_reward": 0.5},
        agent={"callable": f"{HERE / 'letter_agent.py'}:run", "timeout_s": 60, "environment": {"LETTER_PAUSE": "2"}},
        rollout={
            "tasks_per_epoch": 4,
            "group_size": 6,
            "concurrency": 4,
            "shards": 2,
            "retries": 0,
        },
        policies=[
            {
                "model": str(tmp_path / "tiny-llama"),
                "max_version_lag": 1,
                "training": {"learning_rate": 1e-3, "importance_correction": "token_truncate"},
            }
        ],
    )
    yield Epoch(settings, tmp_path / "home", with_prefect, program=request.param, flow=("train",))


def beside_training(epoch: int) -> Callable[[Epoch], bool]:
    """The epoch is trained, and an attempt of the next one has ended since it was opened.

    That is, in the first training of a flow: the imports before it take seconds, it and those after it less than one.
    """

    before: list[int] = []  # attempts that had ended at the last look before the next epoch was opened

    def holds(run: Epoch) -> bool:
        following = run.manifest_of(epoch + 1)
        under_way = following is not None and following.rolled_out_with is not None and not following.stages
        if not (under_way and before):
            before[:] = [run.attempts()]
            return False
        return run.attempts() > before[0] and kills.trainer_is_there(run)

    return holds


def stages(run: Epoch, epoch: int) -> set[str]:
    manifest = run.manifest_of(epoch)
    assert manifest is not None
    return set(manifest.stages)


def test_killed_on_both_sides_a_run_keeps_what_either_finished_and_mixes_nothing(run: Epoch, tmp_path: Path) -> None:
    run.end_at(beside_training(0), kills.tree)

    assert run.end_at(beside_training(0), kills.server) != 0
    assert "train policy" in stages(run, 0), "training came to its end when the rollouts beside it could not"
    assert "the gateway ended while rollouts ran" in run.log.read_text()
    assert stages(run, 1) == set()

    assert run.end_at(beside_training(1), kills.trainer) != 0
    assert stages(run, 2) == {"rollouts", "rewards"}, "the rollouts came to their end when training could not"
    assert "epoch 1 failed" in run.log.read_text()

    run.finish()
    assert kills.mentioning(run.home) == []
    assert run.rollouts_that_ran_twice() == []
    store = PolicyStore(run.home, "policy")
    assert [store.manifest(v).parent for v in store.versions()] == [None, "v0000", "v0001", "v0002"]
    assert store.current() == "v0003"
    assert kills.weights(store, "v0001") == kills.undisturbed(run, tmp_path / "undisturbed")
    trained, different = kills.triplets(run)
    assert trained == different > 0

    sampled = ask(
        run.home, "SELECT mode, epoch, policy_version, epoch_version, lag FROM staleness WHERE epoch < 9 ORDER BY ALL"
    )
    assert sampled == [
        ("evaluate", 0, "v0000", "v0000", 0),
        ("evaluate", 3, "v0003", "v0003", 0),
        ("train", 0, "v0000", "v0000", 0),
        ("train", 1, "v0000", "v0001", 1),
        ("train", 2, "v0001", "v0002", 1),
    ]
    assert ask(run.home, "SELECT epoch, rollouts, unfinished FROM epochs WHERE mode = 'train' ORDER BY 1") == [
        (0, 24, 0),
        (1, 24, 0),
        (2, 24, 0),
    ]
    assert ask(run.home, "SELECT count(*) FROM policy_calls WHERE left_out = 'stale'") == [(0,)]
