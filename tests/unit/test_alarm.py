"""The collapse alarm: a forced collapse stops the run, and the best version is current."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prefect.logging import disable_run_logger
from pydantic import ValidationError

from lightning_core.config import PolicySettings, Settings, TaskSettings
from lightning_core.epoch.derive import derive
from lightning_core.epoch.epoch import Epoch, Run
from lightning_core.lake.lake import Lake
from lightning_core.policies.store import Evaluation, Lineage, PolicyStore
from lightning_core.tracking.alarm import Collapse, alarms
from lightning_core.tracking.mlflow_backend import MlflowRun
from lightning_flows.flows import finetune as flow
from lightning_flows.flows import learn as learn_flow
from lightning_flows.flows import run as ending
from lightning_flows.flows import train_epoch as recipe
from lightning_flows.tasks.alarm import watch
from lightning_flows.tasks.train import Trained
from tests.lake_maker import Attempt, derived, settings
from tests.policy_files import store_with_base, write_model

pytestmark = pytest.mark.slow  # it makes many lakes

TASKS = TaskSettings(train="tasks.jsonl", evaluate="tasks.jsonl")


def run_of(home: Path, held_out: list[float], entropy: list[float], kl: float = 0.01) -> None:
    """A run of so many epochs with these mean held-out rewards (one more than epochs) and entropies; v0001 is the best."""
    rows = []
    for epoch, reward in enumerate(held_out):
        attempt = Attempt(f"e{epoch}", group=f"e{epoch}")
        attempt.root(mode="evaluate", epoch=epoch)
        attempt.call([1], [2])
        attempt.reward(reward)
        rows += attempt.rows
    lake, first = derived(home, rows, mode="evaluate")
    store = store_with_base(home)
    for epoch, value in enumerate(entropy):
        write_model(home / f"out{epoch}", value=epoch + 1.0)
        lineage = Lineage(run="run", epoch=epoch, base_model="base", kind="full", parent=f"v{epoch:04d}")
        version = store.publish(home / f"out{epoch}", lineage)
        manifest = first.model_copy(
            update={
                "mode": "train",
                "epoch": epoch,
                "tables": {},
                "stages": {},
                "versions": {"policy": f"v{epoch:04d}"},
            }
        )
        manifest.finish("train policy", "k", {"version": version, "metrics": {"entropy": value, "kl": kl}}, 1.0)
        lake.manifests.put_epoch(manifest)
    for epoch, reward in enumerate(held_out):
        manifest = first.model_copy(update={"epoch": epoch, "tables": {}, "stages": {}})
        derive(Epoch(settings(home), manifest), f"k{epoch}")
        lake.manifests.put_epoch(manifest)
        store.evaluated(
            f"v{epoch:04d}",
            Evaluation(run="run", epoch=epoch, tasks=1, right=reward, reward=reward, held_out="h"),
        )
    store.set_current(f"v{len(entropy):04d}")


def test_a_collapse_of_the_held_out_reward_stops_the_run_and_the_best_version_is_current(tmp_path: Path) -> None:
    run_of(tmp_path, held_out=[0.3, 0.8, 0.1], entropy=[1.5, 0.4])
    given = settings(tmp_path, alarm={"reward_drop": 0.2}, tasks=TASKS)
    with disable_run_logger(), pytest.raises(Collapse, match=r"0\.1 is 0\.7 below the best, 0\.8.*v0001 of policy"):
        watch.fn(Run(given), 2)
    assert PolicyStore(tmp_path, "policy").current() == PolicyStore(tmp_path, "policy").best() == "v0001"
    run = MlflowRun(given)
    assert "run 'run' is stopped" in run._client.get_run(run.run_id).data.tags["alarm"]
    with disable_run_logger(), pytest.raises(Collapse):
        watch.fn(Run(given), 2)  # started again, it stays stopped


def training_that_collapses(began: list[int]) -> Callable[[Epoch], Trained]:
    """In place of a flow's stage: notes the epoch, whose entropy ends at 0.2."""

    def trains(epoch: Epoch) -> Trained:
        began.append(epoch.number)
        output = {"version": "v0001", "metrics": {"entropy": 0.2}}
        epoch.manifest.finish("train policy", "k", output, 1.0)
        epoch.save()
        return Trained({"policy": output})

    return trains


def end_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in (
        (recipe, "derive_tables"),
        (recipe, "prune_versions"),
        (ending, "record"),
        (ending, "publish_lake"),
    ):
        monkeypatch.setattr(module, name, lambda *_: None)


def test_a_finetuning_is_an_epoch_that_the_alarm_stops_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_of(tmp_path, held_out=[0.3, 0.8], entropy=[1.5])
    home: dict[str, Any] = {"policies": [PolicySettings(algorithm="sft")], "finetune": {"runs": ["run"]}}
    began: list[int] = []

    def opened(run: Run, *_: Any) -> Epoch:
        before = run.known(0)
        assert before is not None
        return run.at(before.model_copy(update={"epoch": 1, "stages": {}, "versions": {"policy": "v0001"}}))

    numbers = iter((1, 2))
    monkeypatch.setattr(Lake(tmp_path).manifests.__class__, "next_epoch", lambda *_: next(numbers))
    monkeypatch.setattr(recipe, "train_policies", training_that_collapses(began))
    monkeypatch.setattr(flow, "open_finetune", opened)
    monkeypatch.setattr(flow, "watch", watch.fn)
    monkeypatch.setattr(ending, "watch", watch.fn)
    for name in ("base_model", "ingest_spans", "settle"):
        monkeypatch.setattr(flow, name, lambda *_: None)
    end_nothing(monkeypatch)
    with disable_run_logger(), pytest.raises(Collapse, match=r"epoch 1, policy: entropy 0\.2 is below"):
        flow.finetune.fn(settings(tmp_path, alarm={"entropy_below": 0.3}, **home))
    assert began == [1]
    with disable_run_logger(), pytest.raises(Collapse, match="epoch 1"):
        flow.finetune.fn(settings(tmp_path, alarm={"entropy_below": 0.3}, **home))
    assert began == [1], "started again, it stays stopped"


def test_learning_from_production_is_an_epoch_that_the_alarm_stops_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_of(tmp_path, held_out=[0.3, 0.8], entropy=[1.5])
    given = settings(tmp_path, alarm={"entropy_below": 0.3})
    began: list[int] = []
    deployed: list[dict[str, str]] = []
    numbers = iter((1, 2))
    monkeypatch.setattr(Lake(tmp_path).manifests.__class__, "next_epoch", lambda *_: next(numbers))
    monkeypatch.setattr(recipe, "train_policies", training_that_collapses(began))
    monkeypatch.setattr(learn_flow, "running", lambda *_: nullcontext(SimpleNamespace()))
    monkeypatch.setattr(recipe, "vllm_asleep", lambda *_: nullcontext())
    monkeypatch.setattr(learn_flow, "watch", watch.fn)
    monkeypatch.setattr(ending, "watch", watch.fn)
    for module in ("lightning_flows.flows.train_epoch", "lightning_flows.tasks.alarm"):
        monkeypatch.setattr(f"{module}.deploy", lambda _, __, versions: deployed.append(versions))
    for name in ("adopt", "settle"):
        monkeypatch.setattr(learn_flow, name, lambda *_: None)
    end_nothing(monkeypatch)
    with disable_run_logger(), pytest.raises(Collapse, match=r"epoch 1, policy: entropy 0\.2 is below"):
        learn_flow.learn.fn(given)
    assert (began, deployed) == ([1], [{"policy": "v0001"}] * 2), (
        "by the epoch, and by the alarm, which puts back what it keeps"
    )
    assert PolicyStore(tmp_path, "policy").current() == "v0001"
    with disable_run_logger(), pytest.raises(Collapse, match="epoch 1"):
        learn_flow.learn.fn(given)
    assert began == [1], "started again, it stays stopped"


def test_another_runs_best_version_is_not_put_in_place(tmp_path: Path) -> None:
    """It may be good at another task: without an evaluation of its own, a run goes back by one epoch."""
    run_of(tmp_path, held_out=[], entropy=[1.0, 0.01])
    store = PolicyStore(tmp_path, "policy")
    other = Evaluation(run="other", epoch=0, tasks=1, right=1.0, reward=1.0, held_out="o")
    assert store.evaluated("v0000", other) == "v0000"
    with disable_run_logger(), pytest.raises(Collapse, match="v0001 of policy"):
        watch.fn(Run(settings(tmp_path, alarm={"entropy_below": 0.3}, tracking={"backends": ["console"]})), 2)
    assert store.current() == "v0001"


def test_the_runs_own_best_is_put_in_place_where_another_runs_is_better(tmp_path: Path) -> None:
    run_of(tmp_path, held_out=[0.3, 0.8, 0.5, 0.1], entropy=[1.5, 1.0, 0.01])
    store = PolicyStore(tmp_path, "policy")
    assert store.best() == "v0001"
    other = Evaluation(run="other", epoch=0, tasks=1, right=1.0, reward=1.0, held_out="o")
    assert store.evaluated("v0000", other) == "v0000"
    with disable_run_logger(), pytest.raises(Collapse, match="v0001 of policy"):
        watch.fn(Run(settings(tmp_path, alarm={"entropy_below": 0.3}, tracking={"backends": ["console"]})), 3)
    assert store.current() == "v0001"


def test_nothing_happens_within_the_limits(tmp_path: Path) -> None:
    run_of(tmp_path, held_out=[0.3, 0.8, 0.7], entropy=[1.5, 0.4])
    watch.fn(Run(settings(tmp_path, alarm={"reward_drop": 0.2, "entropy_below": 0.3}, tasks=TASKS)), 2)
    watch.fn(Run(settings(tmp_path)), 2)
    assert PolicyStore(tmp_path, "policy").current() == "v0002"


def found(given: Settings, epochs: int) -> list[str]:
    return alarms(Lake(given.home), given.run, given.alarm, epochs)


def test_entropy_and_kl_are_of_the_last_epoch(tmp_path: Path) -> None:
    run_of(tmp_path, held_out=[0.3, 0.8, 0.7], entropy=[0.2, 0.4], kl=0.5)
    assert found(settings(tmp_path, alarm={"entropy_below": 0.3}), 2) == []
    assert found(settings(tmp_path, alarm={"entropy_below": 0.3}), 1) == [
        "epoch 0, policy: entropy 0.2 is below alarm.entropy_below 0.3"
    ]
    kl = settings(tmp_path, alarm={"kl_above": 0.4}, training={"beta": 0.1})
    assert found(kl, 2) == ["epoch 1, policy: kl 0.5 is above alarm.kl_above 0.4"]
    assert found(kl, 0) == [], "before the first epoch"


def test_without_an_evaluation_the_version_before_the_epoch_is_kept(tmp_path: Path) -> None:
    run_of(tmp_path, held_out=[], entropy=[1.0, 0.01])
    with disable_run_logger(), pytest.raises(Collapse, match="v0001 of policy"):
        watch.fn(Run(settings(tmp_path, alarm={"entropy_below": 0.3}, tracking={"backends": ["console"]})), 2)
    assert PolicyStore(tmp_path, "policy").current() == "v0001"


@pytest.mark.parametrize(
    ("alarm", "why"), [({"kl_above": 0.1}, "training.beta"), ({"reward_drop": 0.1}, "needs evaluations")]
)
def test_an_alarm_that_could_never_sound_is_an_error(tmp_path: Path, alarm: dict[str, float], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        settings(tmp_path, alarm=alarm)
