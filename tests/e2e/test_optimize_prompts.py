"""Flow `optimize-prompts`: a search that was killed goes on, finds the prompt that helps, and uses it. No vLLM is needed.

The model is a stand-in that can do one thing: it says Sir where its system message asks for politeness, and asks for politeness
where it is asked to write a new instruction.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lightning_core.lake import catalog
from lightning_core.prompts.store import PromptStore
from tests.e2e import without_vllm
from tests.e2e.polite import AGENT, BETTER, Polite
from tests.e2e.test_two_epochs import write_settings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


class Shown(Polite):
    def instruction(self, asked: str) -> str:
        assert "You are a helpful assistant." in asked and "Say " in asked and "it does not say Sir" in asked
        return super().instruction(asked)


def run() -> None:
    from lightning_flows.flows.prefect_api import prefect_api

    without_vllm.MODELS.append(Shown)
    with prefect_api(Path(sys.argv[1]).parent / "home"):
        without_vllm.main("optimize-prompts", sys.argv[1])


def started(file: Path, log: Path) -> subprocess.Popen[str]:
    program = [sys.executable, "-c", "from tests.e2e.test_optimize_prompts import run; run()", str(file)]
    with log.open("w") as said:
        return subprocess.Popen(
            program,
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            start_new_session=True,
        )


def test_a_search_that_was_killed_goes_on_and_its_better_prompt_is_used(tmp_path: Path) -> None:
    seed, home = tmp_path / "prompt.md", tmp_path / "home"
    seed.write_text("You are a helpful assistant.\n")
    file = write_settings(
        tmp_path,
        agent={"callable": f"{AGENT}:run", "timeout_s": 60},
        tasks={"train": f"{AGENT}:train_tasks", "evaluate": f"{AGENT}:heldout_tasks"},
        reward={"grader": f"{AGENT}:grade"},
        prompts={"helper": {"file": str(seed)}},
        prompt_search={"reflection_model": "policy", "rollouts": 16, "tries": 2, "compare": 4},
    )
    killed = started(file, tmp_path / "1.log")
    while "batch 1" not in (tmp_path / "1.log").read_text():
        assert killed.poll() is None, (tmp_path / "1.log").read_text()[-3000:]
        time.sleep(0.1)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    again = started(file, tmp_path / "2.log")
    out, _ = again.communicate(timeout=500)
    said = (tmp_path / "2.log").read_text()
    assert again.returncode == 0, said[-3000:]
    found = json.loads(out.splitlines()[-1])
    assert (found["before"], found["versions"], found["used"]) == ({"helper": "p0000"}, {"helper": "p0001"}, True)
    assert found["gain"] == {"tasks": 12, "gained": 1.0, "low": 1.0, "high": 1.0}
    assert found["rollouts"] <= 20, "the budget, and at most the batch that it ended in"
    store = PromptStore(home, "helper")
    assert (store.marked("current"), store.marked("best")) == ("p0001", "p0001")
    made = store.version("p0001")
    assert (made.text, made.parent, made.made_by) == (BETTER, "p0000", f"search {found['run']}")
    with catalog.connect(home / "lake") as con:
        rows = con.sql(
            "SELECT epoch, count(*), count(DISTINCT prompts), avg(reward) FROM rollouts WHERE run = $run GROUP BY epoch ORDER BY epoch",
            params={"run": found["run"]},
        ).fetchall()
        attempts = con.sql("SELECT count(*), count(DISTINCT rollout_id) FROM attempts WHERE epoch = 0").fetchall()
    assert all(prompts == 1 for _, _, prompts, _ in rows), "a batch is of one candidate"
    assert [row[3] for row in rows[-2:]] == [0.0, 1.0], "the prompts in use and the best one, on the held-out tasks"
    assert attempts[0][0] == attempts[0][1], "what was finished was not rolled out again"
