"""How long an epoch takes that is as small as one optimizer step: the calculator with a real vLLM and a real LLM of 135M.

short_epoch_s      from one version's training to the next one's, of 32 rollouts: sampled, recorded, derived, trained in one step,
                   served; what is written beside the next rollouts counts where they wait for it. Beside: the 11 s that are
                   allowed. `rollouts_s`, `rewards_s`, `sequences_s`, `train_s`, `record_s`: seconds of its stages, of which
                   `record_s` and the rollouts run side by side

.venv/bin/python -m bench.short_epochs [--epochs 12] [--settings FILE]
"""

from __future__ import annotations

import argparse
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.report import figure
from lightning_core.lake.lake import Lake

_ALLOWED_S, _WARM = 11.0, 2  # epochs at first: vLLM and the trainer compile
_SETTINGS = Path(__file__).parents[1] / "examples/calculator/settings.yaml"
_SHORT = {
    "run": "short",
    "rollout.tasks_per_epoch": 8,
    "rollout.group_size": 4,
    "policies": "[{model: HuggingFaceTB/SmolLM2-135M-Instruct, training: {steps_per_epoch: 1, max_sequence_tokens: 1024}}]",
    "evaluation.every": 0,
}


def measure(epochs: int, settings: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="bench-short-epochs-") as home:
        asked = _SHORT | {"home": home, "epochs": epochs + _WARM}
        options = [option for name, value in asked.items() for option in ("--set", f"{name}={value}")]
        command = [sys.executable, "-m", "lightning_flows.flows.cli", "train", str(settings), "-v", *options]
        subprocess.run(command, check=True, stdout=sys.stderr)
        done = Lake(Path(home)).manifests.epochs("short", "train")
    ended = [epoch.stages["train policy"].finished_ns / 1e9 for epoch in done]
    took = [after - before for before, after in zip(ended[_WARM - 1 :], ended[_WARM:], strict=False)]
    parts = {
        f"{stage.partition(' ')[0]}_s": statistics.median(epoch.stages[stage].seconds for epoch in done[_WARM:])
        for stage in ("rollouts", "rewards", "sequences", "train policy", "record")
    }
    figure(
        "short_epoch_s", statistics.median(took), "s", _ALLOWED_S, len(took), smaller_is_better=True,
        slowest=max(took), **parts,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=12, help="that are measured")
    parser.add_argument("--settings", type=Path, default=_SETTINGS)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # or vLLM would outlive this
    measure(arguments.epochs, arguments.settings)


if __name__ == "__main__":
    main()
