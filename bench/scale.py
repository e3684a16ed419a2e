"""What an epoch costs by its size, and a plan for more machines computed from that.

rollout_cost   CPU of a rollout in the flow and its attempts (`server_cpu_ms`: in the server; seconds by stage), in epochs of
               so many rollouts, with an agent and a model that answer at once; baseline: that of the smallest epoch

.venv/bin/python -m bench.scale [100 1000 10000]   measures, one JSON line a size
.venv/bin/python -m bench.scale --plan             the tables of docs/scale.md; nothing is measured
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from bench.report import figure

SIZES = (100, 1_000, 10_000)


@dataclass(frozen=True)
class Costs:
    """Measured on two shared x86-64 cores (docs/scale.md says by what), but for the last four: of GPUs, assumed."""

    rollout_cpu_s: float = 0.0120
    server_cpu_s: float = 0.0026  # of the one server process: a rollout's spans, questions and first call
    calls_a_second: float = 1584.0  # further ones
    decoded_a_second: float = 10_723.0  # spans, one core
    derived_a_second: float = 342_479 / 2  # spans, one core
    statements_s: float = 1.1  # of the SQL, however few the spans
    generated_a_second: float = 2_500.0  # output tokens, a GPU
    stream_a_second: float = 60.0  # output tokens, one reply
    trained_a_second: float = 10_000.0  # tokens, a GPU
    swap_s: float = 5.0  # of one replica


@dataclass(frozen=True)
class Machines:
    """`serving` and `training` count GPUs: the same ones, one after the other, or two sets beside each other."""

    gpus: int
    serving: int
    training: int
    replicas: int
    cores: int

    @property
    def overlapped(self) -> bool:
        return self.serving + self.training == self.gpus


PLANS = (Machines(1, 1, 1, 1, 16), Machines(8, 4, 4, 4, 64), Machines(128, 64, 64, 1, 1024))
CALLS, SPANS, OUTPUT, TRAINED = 4, 14, 1_024, 2_048  # of a rollout; OUTPUT and TRAINED are tokens
_BUCKETS = 8  # worked on at one time, here and on a cluster


def seconds(rollouts: int, on: Machines, costs: Costs) -> dict[str, float]:
    """What each part takes if it had the epoch for itself."""
    spans = rollouts * SPANS
    return {
        "generate": max(rollouts * OUTPUT / (costs.generated_a_second * on.serving), OUTPUT / costs.stream_a_second),
        "attempts": rollouts * costs.rollout_cpu_s / on.cores,
        "gateway": rollouts * (costs.server_cpu_s + (CALLS - 1) / costs.calls_a_second),
        "decode": spans / costs.decoded_a_second,
        "SQL": costs.statements_s + spans / costs.derived_a_second / min(on.cores, _BUCKETS),
        "train": rollouts * TRAINED / (costs.trained_a_second * on.training),
        "swap": costs.swap_s * on.replicas,
    }


def epoch_s(parts: dict[str, float], on: Machines) -> float:
    """An epoch: rollouts, decoding (which goes on meanwhile) and SQL, training, swap; or rollouts beside training."""
    rolled_out = max(parts[name] for name in ("generate", "attempts", "gateway", "decode"))
    both = max(rolled_out, parts["train"]) if on.overlapped else rolled_out + parts["train"]
    return both + parts["SQL"] + parts["swap"]


def plan(costs: Costs) -> str:
    """A Markdown table: seconds of each part, of the epoch, and the part that takes longest."""
    names = [*seconds(1, PLANS[0], costs)]
    lines = ["| GPUs | rollouts | " + " | ".join(names) + " | epoch | longest |"]
    lines.append("|" + "--:|" * (len(names) + 3) + "---|")
    for on in PLANS:
        for rollouts in SIZES:
            parts = seconds(rollouts, on, costs)
            cells = [str(on.gpus), f"{rollouts:,}", *map(_short, parts.values()), _short(epoch_s(parts, on))]
            lines.append("| " + " | ".join([*cells, max(parts, key=lambda name: parts[name])]) + " |")
    return "\n".join(lines)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def measure(rollouts: int) -> None:
    """One epoch of so many rollouts; prints the line that bench.orchestration makes of it. In a process of its own."""
    from bench.gateway import upstream
    from bench.orchestration import roll_out_and_derive, settings_for
    from lightning_core.gateway.handle import GatewayHandle
    from lightning_flows.flows.prefect_api import prefect_api

    with tempfile.TemporaryDirectory(prefix="bench-scale-") as name:
        settings = settings_for(Path(name) / "home", rollouts)
        with prefect_api(settings.home), upstream() as model:
            server = GatewayHandle.start(settings.home, settings.gateway, Path(name) / "gateway.log")
            try:
                roll_out_and_derive(settings, model.url.removesuffix("/v1"), former=False)
            finally:
                server.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", type=int, nargs="*", default=list(SIZES))
    parser.add_argument("--plan", action="store_true")
    parser.add_argument("--generated", type=float, default=Costs.generated_a_second, help="output tokens/s of a GPU")
    parser.add_argument("--stream", type=float, default=Costs.stream_a_second, help="output tokens/s of one reply")
    parser.add_argument("--trained", type=float, default=Costs.trained_a_second, help="trained tokens/s of a GPU")
    parser.add_argument("--swap", type=float, default=Costs.swap_s, help="seconds of one replica")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plan:
        given = {"generated_a_second": options.generated, "stream_a_second": options.stream}
        given |= {"trained_a_second": options.trained, "swap_s": options.swap}
        print(plan(replace(Costs(), **given)))
        return
    if options.alone:
        measure(options.sizes[0])
        return
    smallest: float | None = None
    for size in options.sizes:
        command = [sys.executable, "-m", "bench.scale", "--alone", str(size)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        line = next(
            json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"name": "rollouts_per_s"')
        )
        more = {
            name: value for name, value in line.items() if name in ("server_cpu_ms", "rollouts", "rewards", "sequences")
        }
        smallest = smallest or line["cpu_ms"]
        figure(
            "rollout_cost",
            line["cpu_ms"],
            "ms",
            smallest,
            line["n"],
            smaller_is_better=True,
            rate=line["value"],
            **more,
        )


if __name__ == "__main__":
    main()
