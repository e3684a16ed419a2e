"""Runs of examples/several_agents on a tiny model, one after another on one vLLM: `python -m tests.e2e.crew_runs HOME MODEL`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from lightning_core.config import Settings
from lightning_core.epoch.epoch import Run
from lightning_core.settings_file import load_settings
from lightning_flows.flows.prefect_api import prefect_api

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "several_agents"
# Example → what is other than in its settings, beside the model and the size.
RUNS: dict[str, dict[str, Any]] = {
    "two_algorithms": {"epochs": 1, "evaluation.every": 0},
    "alternating": {"epochs": 2, "evaluation.every": 0},
    "one_agent": {"epochs": 1},
    "discovered": {"epochs": 2, "evaluation.every": 0},
}


def settings(home: Path, model: Path, example: str) -> Settings:
    policies = len(load_settings(EXAMPLES / f"{example}.yaml").policies)
    changes: dict[str, Any] = {
        "home": str(home),
        "rollout": {"tasks_per_epoch": 4, "group_size": 3, "concurrency": 12, "shards": 1},
        "vllm": {"kv_cache_gb": 0.1, "max_model_len": 256, "max_num_seqs": 16},
        **RUNS[example],
    }
    for number in range(policies):
        changes |= {f"policies.{number}.model": str(model), f"policies.{number}.training.learning_rate": 1e-3}
    return load_settings(EXAMPLES / f"{example}.yaml", changes)


def main(home: Path, model: Path) -> None:
    with prefect_api(home):
        from lightning_core.epoch.services import running
        from lightning_flows.flows.train import train

        with running(Run(settings(home, model, "two_algorithms"))):
            for example in RUNS:
                train(settings(home, model, example))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
