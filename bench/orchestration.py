"""What an epoch costs around the agent, the model and the trainer: an agent that returns at once, a model that answers at once.

rollouts_per_s         one epoch, from the first rollout to its training rows (decode, grade, SQL), everything durable:
                       each attempt's process, its call's span and its root span; baseline: what is asked for. `cpu_ms`:
                       of a rollout, in the flow and the attempts; `server_cpu_ms`: in the server
rollouts_10k_rss_mb    what the flow holds when the last of the epoch's rollouts run (median of the last tenth of their
                       time), less what it held so at the end of an epoch of 1,000 before it, which loads whatever
                       is loaded once; baseline: what is allowed. What is taken for a moment is `peak_mb` in decoding,
                       compaction (1 GB at most) and grading, `sql_peak_mb` in the SQL (4 GB at most; then it spills, and works
                       in buckets). `server_mb`: what the server's grew by
orchestration_share    seconds that Prefect takes for a flow run with the task runs and progress of a demo epoch, as a share of the
                       last demo's mean epoch (var/demo.json; without one the seconds alone); baseline: what is allowed
resume_done_s          the command for an epoch whose stages are all done, from start to exit; baseline: what is allowed
overlap_epochs …       bench/overlap.py, which see

.venv/bin/python -m bench.orchestration [--rollouts 10000] [--rows rollouts share resume overlap]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import yaml

from bench.gateway import upstream
from bench.report import figure, say
from bench.soak import Memory
from lightning_core.config import Settings
from lightning_core.epoch.epoch import Epoch, Run
from lightning_core.epoch.plan import plan_training
from lightning_core.epoch.stage_keys import record_key, train_key
from lightning_core.epoch.task_file import load_tasks
from lightning_core.gateway.handle import GatewayHandle
from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import EpochManifest
from lightning_flows.flows.prefect_api import prefect_api

_HERE = Path(__file__).with_name("orchestration_agent.py")
_ROLLOUTS_A_SECOND, _GROWTH_MB, _SHARE, _RESUME_S = 100.0, 100.0, 0.02, 10.0
_GROUP, _BEFORE = 8, 1_000
_TASK_RUNS, _WITH_PROGRESS = 17, 3  # of an epoch of the demo, as Prefect's database has them
# Prefect's server still writes the events of the flow run before, and has the next one wait for its database.
_APART_S = 5.0


def settings_for(home: Path, rollouts: int, run: str = "bench") -> Settings:
    return Settings.model_validate(
        {
            "run": run,
            "home": home,
            "agent": {"callable": f"{_HERE}:run", "preload": ["http.client"]},
            "tasks": {"train": f"{_HERE}:tasks"},
            "rollout": {"tasks_per_epoch": rollouts // _GROUP, "group_size": _GROUP, "concurrency": 16, "shards": 4},
            "reward": {"grader": f"{_HERE}:grade"},
            "evaluation": {"every": 0},
        }
    )


@dataclass(frozen=True)
class RolledOut:
    """What an epoch took; of memory, samples in MB until it was graded, and in the SQL after that."""

    epoch: EpochManifest
    rollouts: int
    seconds: float
    until_graded: list[float]
    in_sql: list[float]

    @property
    def held_mb(self) -> float:
        """When the last rollouts run."""
        stages = self.epoch.stages
        rolling = stages["rollouts"].seconds / (stages["rollouts"].seconds + stages["rewards"].seconds)
        samples = self.until_graded[: round(rolling * len(self.until_graded))]
        return median(samples[-max(1, len(samples) // 10) :])


def rollouts_to_rows(settings: Settings) -> RolledOut:
    """The part of flow `train-epoch` between vLLM and the trainer, as it is there."""
    from prefect import flow
    from prefect.task_runners import ThreadPoolTaskRunner

    from lightning_flows.tasks.derive import derive_tables
    from lightning_flows.tasks.rollouts import roll_out

    planned = plan_training(Run(settings), load_tasks(settings.tasks.train, "tasks.train"), 0)
    epoch = Lake(settings.home).open_epoch(settings.run, 0, "train", {"policy": "v0000"})

    @flow(name="bench", task_runner=ThreadPoolTaskRunner(max_workers=16), persist_result=False)  # type: ignore[arg-type]
    def an_epoch() -> int:
        roll_out(Epoch(settings, epoch), planned)
        graded = len(memory.samples)
        derive_tables(Epoch(settings, epoch))
        return graded

    began, memory = time.monotonic(), Memory(os.getpid())
    graded = an_epoch()
    seconds = time.monotonic() - began
    memory.stop()
    counts = epoch.stages["rollouts"].output
    if counts["statuses"] != {"ok": len(planned)} or epoch.tables["sequences"].rows != len(planned):
        raise RuntimeError(f"{len(planned)} rollouts gave {counts} and {epoch.tables['sequences'].rows} rows")
    return RolledOut(epoch, len(planned), seconds, memory.samples[:graded], memory.samples[graded - 1 :])


def roll_out_and_derive(settings: Settings, model: str, former: bool = True) -> None:
    """Print the figures of an epoch, before which a smaller one has loaded whatever is loaded once; the rate alone without it."""
    server = GatewayHandle.find(settings.home)
    assert server is not None
    server.set_routes({"policies": {"policy": {"upstream": model, "model": "policy", "version": "v0000"}}})
    before = rollouts_to_rows(settings_for(settings.home, _BEFORE, "before")) if former else None
    servers = Memory(server.pid)
    cpu, server_cpu = _cpu(), sum(psutil.Process(server.pid).cpu_times()[:2])
    done = rollouts_to_rows(settings)
    servers.stop()
    cpu, server_cpu = _cpu() - cpu, sum(psutil.Process(server.pid).cpu_times()[:2]) - server_cpu
    took: dict[str, Any] = {name: stage.seconds for name, stage in done.epoch.stages.items()}
    took |= {"cpu_ms": 1000 * cpu / done.rollouts, "server_cpu_ms": 1000 * server_cpu / done.rollouts}
    figure("rollouts_per_s", done.rollouts / done.seconds, "1/s", _ROLLOUTS_A_SECOND, done.rollouts, **took)
    if before is not None:
        held = {"peak_mb": max(done.until_graded), "sql_peak_mb": max(done.in_sql), "server_mb": servers.growth()}
        growth = done.held_mb - before.held_mb
        figure("rollouts_10k_rss_mb", growth, "MB", _GROWTH_MB, done.rollouts, smaller_is_better=True, **held)
    _finish(Lake(settings.home), settings, done.epoch)


def _cpu() -> float:
    """Seconds that this process and its ended children took; the pool that attempts are forked from ends with the rollouts."""
    return sum(os.times()[:4])


def _finish(lake: Lake, settings: Settings, epoch: EpochManifest) -> None:
    """The stages that need a model, as if they were done."""
    key = train_key(Epoch(settings, epoch), settings.policies[0])
    epoch.finish("train policy", key, {"version": "v0001", "metrics": {}}, 0.0)
    epoch.finish("record", record_key(epoch), {}, 0.0)
    lake.manifests.put_epoch(epoch)


def orchestration_share(rounds: int = 5) -> None:
    from prefect import flow, task
    from prefect.cache_policies import NO_CACHE

    from lightning_flows.tasks.progress import Progress

    @task(cache_policy=NO_CACHE, persist_result=False)
    def nothing(number: int) -> None:
        if number < _WITH_PROGRESS:
            Progress(f"step {number}", 1).add()

    @flow(name="as many task runs as a demo epoch", persist_result=False)
    def an_epoch() -> None:
        for number in range(_TASK_RUNS):
            nothing(number)

    an_epoch()
    took = []
    for _ in range(rounds):
        time.sleep(_APART_S)
        began = time.monotonic()
        an_epoch()
        took.append(time.monotonic() - began)
    seconds = median(took)
    epoch_s = _demo_epoch_s()
    if epoch_s is None:
        say("no var/demo.json: run `make demo` for the share")
        figure("orchestration_s", seconds, "s", None, rounds)
        return
    share = seconds / epoch_s
    figure("orchestration_share", share, "", _SHARE, rounds, smaller_is_better=True, seconds=seconds, epoch_s=epoch_s)


def _demo_epoch_s() -> float | None:
    """Mean seconds of the stages of the last demo's training epochs."""
    try:
        rows: list[dict[str, Any]] = json.loads(Path("var/demo.json").read_text())["epochs"]
    except FileNotFoundError:
        return None
    epochs = [sum(s for stage, s in row["seconds"].items() if stage != "evaluate") for row in rows if row["epoch"] >= 0]
    return sum(epochs) / len(epochs)


def resume_done(settings: Settings, folder: Path, rounds: int = 3) -> None:
    file = folder / "settings.yaml"
    file.write_text(yaml.safe_dump(settings.model_dump(mode="json", exclude_defaults=True)))
    command = [sys.executable, "-m", "lightning_flows.flows.cli", "train-epoch", str(file), "--epoch", "0"]
    environment = _without_prefect()
    took = []
    for _ in range(rounds):
        began = time.monotonic()
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        took.append(time.monotonic() - began)
        if done.returncode != 0 or "is done, with these settings" not in done.stderr:
            raise RuntimeError(done.stderr[-2000:])
    figure("resume_done_s", median(took), "s", _RESUME_S, rounds, smaller_is_better=True)


def _without_prefect() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}


ROWS = ("rollouts", "share", "resume", "overlap")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=10_000)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS, help="`resume` runs the rollouts first, too")
    arguments = parser.parse_args()
    if {"rollouts", "share", "resume"} & set(arguments.rows):
        with tempfile.TemporaryDirectory(prefix="bench-orchestration-") as name:
            _alone(Path(name), arguments.rollouts, set(arguments.rows))
    if "overlap" in arguments.rows:
        # In a process of its own: Prefect keeps the address of the server that it was imported with.
        subprocess.run([sys.executable, "-m", "bench.overlap"], env=_without_prefect(), check=True)


def _alone(folder: Path, rollouts: int, rows: set[str]) -> None:
    settings = settings_for(folder / "home", rollouts)
    with prefect_api(settings.home), upstream() as model:
        if rows - {"share"}:
            server = GatewayHandle.start(settings.home, settings.gateway, folder / "gateway.log")
            try:
                roll_out_and_derive(settings, model.url.removesuffix("/v1"))
            finally:
                server.stop()
        if "share" in rows:
            orchestration_share()
    if "resume" in rows:
        resume_done(settings, folder)


if __name__ == "__main__":
    main()
