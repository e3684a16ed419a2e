"""Signals of an epoch: the numbers of the view, and what each backend makes of them."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from lightning_core.checks.check import check
from lightning_core.config import Settings
from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import EpochManifest
from lightning_core.settings_file import load_settings
from lightning_core.tracking.prometheus import PrometheusFile, SignalFiles
from lightning_core.tracking.signals import Backend, Console, Signal, backends, epoch_signals
from lightning_core.training.new_version import peak_flops, throughput
from tests.lake_maker import Attempt, derived, settings

pytestmark = pytest.mark.slow  # many lakes

METRICS = {"kl": 0.02, "entropy": 1.5, "clip_ratio": 0.1, "grad_norm": 2.0, "mismatch": 1e-5, "unique_share": 0.25}


def trained(home: Path, mode: str = "train", metrics: dict[str, float] | None = None) -> tuple[Lake, EpochManifest]:
    """An epoch of two groups, one without spread, of which one call was sampled by an older version."""
    rows = []
    for group, rewards in {"g": [1.0, 0.0, 0.0], "h": [0.5, 0.5]}.items():
        for n, reward in enumerate(rewards):
            attempt = Attempt(f"{group}.{n}", group=group)
            attempt.root(mode=mode)
            attempt.call([1, 2], [3, 4], policy_version="v0001" if reward == 1.0 else "v0002")
            attempt.reward(reward)
            rows += attempt.rows
    lake, epoch = derived(home, rows, mode=mode, versions={"policy": "v0002"})
    if mode == "train":
        epoch.finish("train policy", "k", {"version": "v0003", "metrics": METRICS if metrics is None else metrics}, 2.5)
    lake.manifests.put_epoch(epoch)
    return lake, epoch


def values(signals: list[Signal]) -> dict[tuple[str | None, str], float]:
    return {(s.policy, s.name): s.value for s in signals}


def test_the_signals_of_a_training_epoch(tmp_path: Path) -> None:
    found = values(epoch_signals(*trained(tmp_path)))
    own = {name: value for (policy, name), value in found.items() if policy == "policy"}
    assert own["reward"] == pytest.approx(0.4)
    assert own["reward_spread"] == pytest.approx(0.37417, abs=1e-5)
    assert own["group_spread"] == pytest.approx(0.57735 / 2, abs=1e-5), "g has a deviation of 0.577, h of 0"
    assert own["groups_kept"] == 0.5
    assert (own["kept"], own["dropped/no_spread"]) == (3, 2)
    assert own["advantage_spread"] == pytest.approx(0.81636, abs=1e-4)
    calls_by_lag = [1, 4]
    assert own["staleness"] == pytest.approx(calls_by_lag[0] / sum(calls_by_lag))
    assert own.items() >= METRICS.items()
    assert found[None, "seconds/train_policy"] == 2.5


def test_the_signals_of_an_evaluation(tmp_path: Path) -> None:
    found = values(epoch_signals(*trained(tmp_path, "evaluate")))
    assert found == {
        (None, "held_out_reward"): pytest.approx(0.4),
        (None, "held_out_right"): pytest.approx(0.2),
        (None, "held_out_tasks"): 2,  # of five rollouts
        ("policy", "version"): 2,
    }


def test_a_trainer_that_measured_nothing_leaves_no_gap(tmp_path: Path) -> None:
    found = values(epoch_signals(*trained(tmp_path, metrics={})))
    assert ("policy", "kl") not in found and found["policy", "kept"] == 3


def test_prometheus_gets_gauges_of_the_newest_epoch_of_each_run(tmp_path: Path) -> None:
    file = PrometheusFile(tmp_path)
    registry = CollectorRegistry()
    registry.register(SignalFiles(tmp_path))
    assert generate_latest(registry) == b"", "before the first epoch"
    epoch = EpochManifest(run="a", epoch=0, opened_offset=0)
    file.send(epoch, [Signal("p", "kl", 9.0)])
    file.send(epoch.model_copy(update={"epoch": 1}), [Signal("p", "kl", 0.5), Signal("p", "dropped/no_spread", 2.0)])
    file.send(epoch.model_copy(update={"run": "b"}), [Signal("p", "kl", 0.25)])
    file.send(epoch.model_copy(update={"mode": "evaluate"}), [Signal(None, "held_out_right", 0.75)])
    lines = generate_latest(registry).decode().splitlines()
    assert 'lightning_train_kl{of="",policy="p",run="a"} 0.5' in lines
    assert 'lightning_train_kl{of="",policy="p",run="b"} 0.25' in lines
    assert 'lightning_train_dropped{of="no_spread",policy="p",run="a"} 2.0' in lines
    assert 'lightning_evaluate_held_out_right{of="",policy="",run="a"} 0.75' in lines
    assert 'lightning_train_epoch{of="",policy="",run="a"} 1.0' in lines
    assert sum(line == "# TYPE lightning_train_kl gauge" for line in lines) == 1, "a family is one family over all runs"


def test_a_broken_signal_file_does_not_take_the_servers_metrics_down(tmp_path: Path) -> None:
    PrometheusFile(tmp_path).send(EpochManifest(run="a", epoch=0, opened_offset=0), [Signal("p", "kl", 0.5)])
    (tmp_path / "signals" / "b.train.json").write_text("{")
    assert [family.name for family in SignalFiles(tmp_path).collect()] == [
        "lightning_train_kl",
        "lightning_train_epoch",
    ]


def test_the_console_has_a_line_a_policy_and_no_bookkeeping() -> None:
    lines: list[str] = []
    signals = [Signal(None, "seconds/sequences", 1.0), Signal("p", "kl", 0.123456), Signal("p", "tokens", 99.0)]
    signals += [Signal("p", "tokens_per_s", 512.34), Signal("p", "peak_rss_bytes", 2.5e9)]
    Console(lines.append).send(EpochManifest(run="a", epoch=3, opened_offset=0), signals)
    assert lines == ["epoch 3, p: kl 0.1235, tokens_per_s 512.3, peak_rss_bytes 2.5e+09"]


def backends_of(given: Settings) -> list[Backend]:
    return backends(given.tracking, given.home, print)


def test_only_the_backends_of_the_settings_are_told(tmp_path: Path) -> None:
    assert [type(b) for b in backends_of(settings(tmp_path))] == [Console, PrometheusFile]
    assert backends_of(settings(tmp_path, tracking={"backends": ["mlflow"]})) == []


def test_a_function_of_ones_own_is_told_and_when_it_fails_no_epoch_does(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "own.py"
    file.write_text(
        "def send(epoch, signals):\n"
        "    with open('told.txt', 'a') as out:\n"
        "        print(epoch.run, epoch.epoch, epoch.mode, *((s.policy, s.name, s.value) for s in signals), file=out)\n"
        "    1 / (1 - epoch.epoch)\n"
    )
    (own,) = backends_of(settings(tmp_path, tracking={"backends": [f"{file}:send"]}))
    with contextlib.chdir(tmp_path):
        for number in (0, 1):
            own.send(EpochManifest(run="run", epoch=number, opened_offset=0), [Signal("p", "kl", 0.5)])
    assert (tmp_path / "told.txt").read_text() == "run 0 train ('p', 'kl', 0.5)\nrun 1 train ('p', 'kl', 0.5)\n"
    assert "own.py:send: epoch 1: ZeroDivisionError" in caplog.text


def test_a_function_that_is_not_there_is_found_before_the_run(tmp_path: Path) -> None:
    given = settings(tmp_path, tracking={"backends": ["console", "no_such:send"]})
    found = check(given, parts=["rules"])
    assert ["no_such" in each.found for each in found if each.level == "error"] == [True]


def test_mlflow_has_them_by_policy(tmp_path: Path) -> None:
    from lightning_core.tracking.mlflow_backend import MlflowRun

    given = settings(tmp_path)
    run = MlflowRun(given)
    epoch = EpochManifest(run="run", epoch=2, opened_offset=0)
    run.send(epoch, [Signal("policy", "kl", 0.5), Signal(None, "seconds/sequences", 2.0)])
    run.send(epoch.model_copy(update={"mode": "evaluate"}), [Signal(None, "seconds/sequences", 7.0)])
    metrics = run._client.get_run(run.run_id).data.metrics
    assert metrics == {"policy/kl": 0.5, "seconds/sequences": 2.0}


def test_the_peak_of_a_gpu_is_known_by_its_name() -> None:
    assert peak_flops("NVIDIA H200") == 989e12
    assert peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_flops("Some Device") is None


def test_throughput_counts_what_was_computed_and_on_a_gpu_the_share_of_its_peak(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    steps = [{"tokens": 50, "unique_tokens": 20, "seconds": 1.5}, {"tokens": 30, "unique_tokens": 20, "seconds": 0.5}]
    model = torch.nn.Linear(10, 10, bias=False)
    on_cpu = {"tokens_per_s": 40.0, "unique_tokens_per_s": 20.0}
    assert throughput(model, steps) == on_cpu
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 7)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    found = throughput(model, steps)
    assert found == on_cpu | {"peak_gpu_bytes": 7.0, "mfu": pytest.approx(6 * 100 * 20 / 989e12)}


def test_unknown_backends_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("agent: {callable: a:b}\ntasks: {train: t}\ntracking: {backends: [wandb]}\n")
    with pytest.raises(ValueError, match=r"tracking\.backends"):
        load_settings(file)
