"""Epochs an hour with `async_level: 1` against 0: a real vLLM behind the real gateway, real training, a small Llama.

overlap_epochs     seconds of a sequential epoch over those of an overlapped one. Generation (vLLM, server, agents, flow)
                   is pinned to one core and the trainer to another in both runs, whose epochs take turns. How often the
                   agent calls is set after two epochs, so that generation and training take alike
overlap_reward     mean reward of the rollouts that the last version of both runs sampled: overlapped; baseline:
                   sequential; `standard_error` of their difference. `rewards`: of every version

.venv/bin/python -m bench.overlap [--epochs 4] [--seed 0]
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

import psutil

from bench.report import figure, say
from lightning_core.config import Settings
from lightning_core.epoch.epoch import Run
from lightning_core.epoch.services import running
from lightning_core.lake import catalog
from lightning_core.lake.lake import Lake
from lightning_core.training import launch
from lightning_flows.flows.prefect_api import prefect_api
from tests.tiny_model import make_tiny_llama

_AGENT = Path(__file__).with_name("orchestration_agent.py")
_FASTER, _CALLS = 1.4, 4
_RUNS = {"sequential": 0, "overlapped": 1}
_OF_A_VERSION = """
    SELECT run, policy_version, avg(reward), stddev_samp(reward), count(*)
    FROM (
        SELECT DISTINCT calls.run, calls.policy_version, rollouts.rollout_id, rollouts.reward
        FROM calls JOIN rollouts USING (rollout_id)
    )
    GROUP BY ALL ORDER BY ALL
"""


def settings_for(home: Path, model: Path, run: str, calls: int, seed: int) -> Settings:
    """Both runs share the home and its vLLM, so every epoch begins with a swap to the run's own version."""
    training = {"learning_rate": 1e-3, "steps_per_epoch": 4, "importance_correction": "token_truncate"}
    return Settings.model_validate(
        {
            "run": run,
            "seed": seed,
            "async_level": _RUNS[run],
            "home": home,
            "epochs": 1000,  # so that the last one measured has a next one too
            "agent": {"callable": f"{_AGENT}:letters", "preload": ["http.client"], "timeout_s": 600, "environment": {"CALLS": str(calls)}},
            "tasks": {"train": f"{_AGENT}:tasks"},
            "rollout": {"tasks_per_epoch": 8, "group_size": 8, "concurrency": 16, "shards": 2},
            "reward": {"grader": f"{_AGENT}:grade_letters"},
            "policies": [{"model": str(model), "training": training}],
            "evaluation": {"every": 0},
            "vllm": {"kv_cache_gb": 0.2, "max_model_len": 512, "max_num_seqs": 16},
            "tracking": {"backends": ["console"]},
        }
    )  # fmt: skip


def pin(pids: list[int], core: int) -> None:
    """Every thread of these processes and of those under them."""
    for pid in pids:
        for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
            for thread in process.threads():
                os.sched_setaffinity(thread.id, {core})


def pin_trainers(core: int) -> None:
    """Every trainer that this process starts from now on."""
    bare = launch.command
    launch.command = lambda job, job_file: ["taskset", "--cpu-list", str(core), *bare(job, job_file)]


def measure(epochs: int, seed: int) -> None:
    generation, training, *_ = sorted(os.sched_getaffinity(0))
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory(prefix="bench-overlap-") as name:
        home = Path(name) / "home"
        model = make_tiny_llama(Path(name) / "llama", layers=4, hidden=128)
        with prefect_api(home):
            from lightning_flows.flows.train_epoch import train_epoch

            def epoch(run: str, number: int, calls: int) -> tuple[float, dict[str, float]]:
                """Seconds of an epoch, and of its rollouts and its training."""
                settings = settings_for(home, model, run, calls, seed)
                began = time.monotonic()
                train_epoch(settings, number)
                took = time.monotonic() - began
                stages = Lake(home).manifests.epoch(run, number).stages  # type: ignore[union-attr]
                parts = {"rollouts": stages["rollouts"].seconds, "train": stages["train policy"].seconds}
                say(f"{run} {number}: {took:.1f} s, generation {parts['rollouts']:.1f}, training {parts['train']:.1f}")
                return took, parts

            with running(Run(settings_for(home, model, "sequential", _CALLS, seed)), say) as services:
                pin([os.getpid(), services.gateway.pid, *(vllm.state.pid for vllm in services.fleet)], generation)
                pin_trainers(training)
                epoch("sequential", 0, _CALLS)  # vLLM is slow at first
                _, warm = epoch("sequential", 1, _CALLS)
                calls = max(1, round(_CALLS * warm["train"] / warm["rollouts"]))
                epoch("overlapped", 0, calls)
                took: dict[str, list[float]] = {run: [] for run in _RUNS}
                parts: list[dict[str, float]] = []
                for number in range(1, epochs + 1):
                    for run in _RUNS:
                        seconds, of_it = epoch(run, number + (run == "sequential"), calls)
                        took[run].append(seconds)
                        if run == "sequential":
                            parts.append(of_it)
        middle = {run: statistics.median(seconds) for run, seconds in took.items()}
        figure(
            "overlap_epochs", middle["sequential"] / middle["overlapped"], "x", _FASTER, epochs,
            sequential_s=took["sequential"], overlapped_s=took["overlapped"], calls=calls,
            generation_s=statistics.median(p["rollouts"] for p in parts),
            training_s=statistics.median(p["train"] for p in parts),
        )  # fmt: skip
        _learning(home, epochs)


def _learning(home: Path, trained: int) -> None:
    """The rollouts sampled after so many epochs of training, of which either run has some."""
    Lake(home).rebuild_catalog()
    with catalog.connect(home / "lake") as con:
        rows = con.execute(_OF_A_VERSION).fetchall()
    runs = {run: [row[2:] for row in rows if row[0] == run] for run in _RUNS}
    (ours, deviation, n), (theirs, other, m) = (runs[run][trained] for run in ("overlapped", "sequential"))
    figure(
        "overlap_reward", ours, "", theirs, n + m,
        standard_error=math.sqrt(deviation**2 / n + other**2 / m),
        rewards={run: [round(row[0], 3) for row in found] for run, found in runs.items()},
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--epochs", type=int, default=4, help="of each run, behind the first ones, which are not counted"
    )
    parser.add_argument("--seed", type=int, default=0, help="of both runs")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # or vLLM would outlive this
    measure(arguments.epochs, arguments.seed)


if __name__ == "__main__":
    main()
