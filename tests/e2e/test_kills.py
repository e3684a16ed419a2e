"""kill -9 at any stage: the epoch goes on, no finished rollout runs twice, and the policy is the undisturbed one's."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import sqlite3
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from lightning_core.policies.store import PolicyStore
from tests.e2e import kills
from tests.e2e.kills import Epoch
from tests.e2e.test_two_epochs import HERE, write_settings
from tests.gateway_rig import wait_for
from tests.tiny_model import make_tiny_llama

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def new_epoch(folder: Path, with_prefect: dict[str, str], epochs: int = 1, **more: Any) -> Epoch:
    agent = {"callable": f"{HERE / 'letter_agent.py'}:run", "timeout_s": 60, "environment": {"LETTER_PAUSE": "1"}}
    rollout = {"tasks_per_epoch": 4, "group_size": 6, "concurrency": 4, "shards": 2}
    training = {"learning_rate": 1e-3, "steps_per_epoch": 4, "checkpoint_seconds": 0}
    settings = write_settings(
        folder,
        epochs=epochs,
        policies=[{"model": str(folder / "tiny-llama"), "training": training}],
        evaluation={"every": 0},
        agent=agent,
        rollout=rollout,
        reward={"grader": f"{HERE / 'slow_grader.py'}:grade"},
    )
    return Epoch(settings, folder / "home", with_prefect, **more)


def check(epoch: Epoch, folder: Path, *later: str) -> None:
    """`later`: the versions of epochs after this one."""
    store = PolicyStore(epoch.home, "policy")
    assert kills.mentioning(epoch.home) == [], "what a killed flow left running was taken over, and stopped"
    assert epoch.rollouts_that_ran_twice() == []
    assert epoch.manifest is not None and epoch.manifest.stages["rollouts"].output["unfinished"] == 0
    trained, different = kills.triplets(epoch)
    assert trained == different > 0
    assert store.versions() == ["v0000", "v0001", *later]
    assert kills.weights(store, "v0001") == kills.undisturbed(epoch, folder / "undisturbed")


def test_killed_where_no_vllm_is_needed_a_run_comes_to_the_same_policy_and_mlflow_says_how_each_start_ended(
    tmp_path: Path, with_prefect: dict[str, str]
) -> None:
    epoch = new_epoch(tmp_path, with_prefect, program="tests.e2e.without_vllm", flow=("train",), epochs=2)

    def status() -> str:
        return status_in_mlflow(epoch)

    epoch.end_at(kills.rolling_out, kills.flow)
    epoch.end_at(kills.after("rollouts"), kills.tree)  # it grades
    assert epoch.end_at(kills.a_step_is_done, kills.trainer) != 0
    epoch.end_at(kills.weights_are_written, kills.tree)
    epoch.end_at(kills.mlflow_has_the_run, kills.flow)  # it records, and rolls out epoch 1
    assert status() == "RUNNING", "nobody was left to say otherwise"
    with epoch.started() as process:
        # The rollouts of epoch 1 may have ended before the last kill; then it is trained.
        wait_for(lambda: kills.rolling_out(epoch) or kills.trainer_is_there(epoch), kills.WAIT_S)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(kills.WAIT_S) != 0
    assert status() == "KILLED"
    with epoch.started() as process:
        wait_for(lambda: status() == "RUNNING", kills.WAIT_S)
        assert process.wait(kills.WAIT_S) == 0, epoch.log.read_text()[-3000:]
    assert status() == "FINISHED"
    check(epoch, tmp_path, "v0002")
    assert _artifacts(with_prefect, "/latest") == {
        *(("epochs-tiny", "table"), ("report-tiny", "markdown"), ("why-tiny", "markdown"))
    }
    assert (None, "progress") in _artifacts(with_prefect), "on the pages of flow runs"


@pytest.mark.parametrize(
    "victim",
    [kills.tree, *(pytest.param(other, marks=pytest.mark.extra) for other in (kills.flow, kills.trainer))],
)
def test_killed_while_a_version_is_served_and_not_yet_kept_the_run_comes_to_the_same_policy(
    tmp_path: Path, with_prefect: dict[str, str], victim: Any
) -> None:
    """Its weights are written beside the next epoch's rollouts, which it already answers."""
    epoch = new_epoch(tmp_path, with_prefect, program="tests.e2e.written_late", flow=("train",), epochs=2)
    ended = epoch.end_at(kills.served_and_not_kept, victim)
    assert ended != 0 or victim is kills.trainer
    answered = epoch.attempts()
    assert answered > 24, "some of the next epoch's"
    epoch.finish()
    check(epoch, tmp_path, "v0002")
    assert epoch.attempts() < 24 + 24 + 12, "those that had ended did not run again"


def test_ctrl_c_amid_a_write_to_mlflow_comes_after_it(tmp_path: Path, with_prefect: dict[str, str]) -> None:
    """What an interrupt breaks off there keeps the database locked: nobody could say that the run was ended."""
    epoch = new_epoch(tmp_path, with_prefect, program="tests.e2e.interrupted_amid_a_write")
    with epoch.started() as process:
        assert process.wait(kills.WAIT_S) == -signal.SIGINT, epoch.log.read_text()[-3000:]
    assert status_in_mlflow(epoch) == "KILLED"
    assert "database is locked" not in epoch.log.read_text()
    with sqlite3.connect(epoch.home / "mlflow.db") as record:
        assert record.execute("SELECT count(*) FROM model_versions").fetchone()[0] > 0, "it came to its end"


def status_in_mlflow(epoch: Epoch) -> str:
    with sqlite3.connect(epoch.home / "mlflow.db") as record:
        return str(record.execute("SELECT status FROM runs").fetchone()[0])


def _artifacts(with_prefect: dict[str, str], which: str = "") -> set[tuple[str | None, str]]:
    """(key, type) of Prefect's artifacts; `/latest` are those of its Artifacts page."""
    url = f"{with_prefect['PREFECT_API_URL']}/artifacts{which}/filter"
    request = urllib.request.Request(url, b'{"limit": 200}', {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return {(artifact["key"], artifact["type"]) for artifact in json.load(answer)}


AN_EARLIER_HOME = Path(__file__).parents[1] / "data" / "home_amid_rollouts"


def test_an_epoch_that_an_earlier_commit_began_goes_on_and_rolls_out_nothing_twice(
    tmp_path: Path, with_prefect: dict[str, str]
) -> None:
    """The home is one of commit 913891b, killed when 8 of 16 rollouts had ended; keys.json has the keys that it gave the stages."""
    shutil.copy(AN_EARLIER_HOME / "settings.yaml", tmp_path)
    home, keys = tmp_path / "home", json.loads((AN_EARLIER_HOME / "keys.json").read_text())
    for file in (home / "lake/manifests/tiny/0000.json", home / "spool/00000000000000000000.seg"):
        file.parent.mkdir(parents=True)
    (home / "lake/manifests/tiny/0000.json").write_bytes((AN_EARLIER_HOME / "epoch.json").read_bytes())
    spool = gzip.decompress((AN_EARLIER_HOME / "spool.seg.gz").read_bytes())
    (home / "spool/00000000000000000000.seg").write_bytes(spool)
    make_tiny_llama(tmp_path / "tiny-llama")
    epoch = Epoch(tmp_path / "settings.yaml", home, with_prefect, program="tests.e2e.without_vllm", folder=tmp_path)
    epoch.finish()
    assert epoch.manifest is not None
    stages = epoch.manifest.stages
    assert {"collect": stages["rollouts"].key, "grade": stages["rewards"].key} == keys, "under the names of that commit"
    assert epoch.rollouts_that_ran_twice() == []
    assert epoch.attempts() == 8, "the others had ended before"
    assert epoch.manifest.stages["rollouts"].output["unfinished"] == 0


MOMENTS = [
    (kills.vllm_is_starting, kills.flow),
    (kills.rolling_out, kills.flow),
    (kills.rolling_out, kills.server),
    (kills.rolling_out, kills.vllm_then_flow),
    (kills.rolling_out, kills.tree),
    (kills.after("rollouts"), kills.flow),  # it grades
    (kills.after("rewards"), kills.tree),  # it derives
    (kills.trainer_is_there, kills.trainer),
    (kills.trainer_is_there, kills.flow),
    (kills.a_step_is_done, kills.flow),
    (kills.a_step_is_done, kills.tree),
    (kills.weights_are_written, kills.flow),
    (kills.after("train policy"), kills.tree),  # it redeploys
    (kills.mlflow_has_the_run, kills.tree),
]


@pytest.mark.extra
@pytest.mark.parametrize("program", ["lightning_flows.flows.cli", "tests.e2e.without_vllm"])
def test_killed_at_every_stage_one_after_another_an_epoch_comes_to_the_same_policy(
    tmp_path: Path, with_prefect: dict[str, str], program: str
) -> None:
    epoch = new_epoch(tmp_path, with_prefect, program=program)
    for moment, victim in MOMENTS:
        if program == "lightning_flows.flows.cli" or (
            victim is not kills.vllm_then_flow and moment is not kills.vllm_is_starting
        ):
            epoch.end_at(moment, victim)
    epoch.finish()
    check(epoch, tmp_path)
