"""Flow `train` searches for prompts between its epochs; killed amid a search it goes on, and searches before no epoch twice. No vLLM is needed."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from lightning_core.lake import catalog
from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import Manifests
from lightning_core.prompts.store import PromptStore
from tests.e2e import without_vllm
from tests.e2e.polite import AGENT, Polite
from tests.e2e.test_two_epochs import write_settings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


class Varied(Polite):
    """Now and then with an exclamation mark, so that rollouts differ."""

    def answer(self, polite: bool) -> str:
        return super().answer(polite) + random.choice(["", "!"])


def run() -> None:
    from lightning_flows.flows.prefect_api import prefect_api

    without_vllm.MODELS.append(Varied)
    with prefect_api(Path(sys.argv[1]).parent / "home"):
        without_vllm.main("train", sys.argv[1])


def search_before_the_first_epoch() -> None:
    from lightning_flows.flows.prefect_api import prefect_api

    with prefect_api(Path(sys.argv[1]).parent / "home"):
        from lightning_core.settings_file import load_settings
        from lightning_flows.flows.optimize_prompts import optimize_prompts

        assert optimize_prompts(load_settings(Path(sys.argv[1]), {}), 0) == {}


def started(file: Path, log: Path, function: str = "run") -> subprocess.Popen[str]:
    program = [sys.executable, "-c", f"from tests.e2e.test_prompts_and_weights import {function} as f; f()", str(file)]
    with log.open("w") as said:
        return subprocess.Popen(
            program, cwd=Path(__file__).parents[2], stdout=said, stderr=said, text=True, start_new_session=True
        )


def settings_file(folder: Path) -> Path:
    seed = folder / "prompt.md"
    seed.write_text("You are a helpful assistant.\n")
    search = {"reflection_model": "policy", "rollouts": 16, "tries": 2, "compare": 4}
    return write_settings(
        folder,
        epochs=4,
        agent={"callable": f"{AGENT}:run", "timeout_s": 60},
        tasks={"train": f"{AGENT}:train_tasks", "evaluate": f"{AGENT}:heldout_tasks"},
        reward={"grader": f"{AGENT}:grade_with_form"},
        policies=[{"model": str(folder / "tiny-llama"), "train_every": 2, "training": {"learning_rate": 1e-3}}],
        prompts={"helper": {"file": str(seed)}},
        prompt_search=search | {"train_every": 2, "train_offset": 1},
    )


def test_prompts_alternate_with_weights_and_a_killed_search_goes_on(tmp_path: Path) -> None:
    file, home = settings_file(tmp_path), tmp_path / "home"
    killed = started(file, tmp_path / "1.log")
    while "batch 1" not in (tmp_path / "1.log").read_text():
        assert killed.poll() is None, (tmp_path / "1.log").read_text()[-3000:]
        time.sleep(0.1)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    again = started(file, tmp_path / "2.log")
    again.wait(timeout=800)
    said = (tmp_path / "2.log").read_text()
    assert again.returncode == 0, said[-3000:]

    epochs = Manifests(home / "lake").epochs("tiny", "train")
    assert [epoch.prompt_versions["helper"] for epoch in epochs] == ["p0000", "p0001", "p0001", "p0001"]
    assert ["prompts" in epoch.outputs for epoch in epochs] == [False, True, False, True]
    assert ["skipped" in epoch.outputs["train policy"] for epoch in epochs] == [False, True, False, True]
    first, second = (epochs[number].outputs["prompts"] for number in (1, 3))
    assert (first["before"], first["versions"], first["used"]) == ({"helper": "p0000"}, {"helper": "p0001"}, True)
    assert (second["before"], second["used"]) == ({"helper": "p0001"}, False)
    assert all(found["rollouts"] <= 20 for found in (first, second)), "the budget, and the batch that it ended in"
    assert PromptStore(home, "helper").marked("best") == "p0001"

    with catalog.connect(home / "lake") as con:

        def asked(question: str) -> list[tuple[Any, ...]]:
            return con.sql(question).fetchall()

        searches = asked("SELECT DISTINCT run FROM rollouts WHERE run LIKE 'tiny-prompts-%'")
        assert {run for (run,) in searches} == {first["run"], second["run"]}, "before no epoch twice"
        tried = asked(f"SELECT count(*), count(DISTINCT rollout_id) FROM rollouts WHERE run = '{first['run']}'")
        assert tried == [(first["rollouts"] + 24,) * 2], (
            "the kill cost no rollout: those of the budget, and the held-out tasks"
        )
        served = asked(
            "SELECT DISTINCT epoch, prompts FROM rollouts WHERE run = 'tiny' AND mode = 'train' ORDER BY ALL"
        )
        assert served == [(number, f'{{"helper": "p000{int(number > 0)}"}}') for number in range(4)]
        sampled = asked(f"SELECT DISTINCT policy_version FROM calls WHERE run = '{first['run']}'")
        assert sampled == [("v0001",)], "by what epoch 0 has trained"
        right = asked("SELECT epoch, value FROM signals WHERE run = 'tiny' AND signal = 'held_out_right' ORDER BY ALL")
        assert right == [(0, 0.0), (2, 1.0), (4, 1.0)]
        searched = asked("SELECT epoch FROM signals WHERE run = 'tiny' AND signal = 'seconds/prompts' ORDER BY ALL")
        assert searched == [(1,), (3,)]
    third = started(file, tmp_path / "3.log")
    third.wait(timeout=300)
    assert third.returncode == 0 and "batch" not in (tmp_path / "3.log").read_text(), "a finished run searches no more"


def test_an_epoch_whose_rollouts_have_begun_keeps_its_prompts(tmp_path: Path) -> None:
    """As where `train_every` is set in the middle of a run."""
    file, lake = settings_file(tmp_path), Lake(tmp_path / "home")
    epoch = lake.open_epoch("tiny", 0, "train", {"policy": "v0000"})
    epoch.rolled_out_with = "key"
    lake.manifests.put_epoch(epoch)
    search = started(file, tmp_path / "log", "search_before_the_first_epoch")
    search.wait(timeout=300)
    said = (tmp_path / "log").read_text()
    assert search.returncode == 0 and "no search for prompts before epoch 0, whose rollouts have begun" in said, said[
        -3000:
    ]
    assert not (tmp_path / "home" / "prompts").exists()
