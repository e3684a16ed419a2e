"""Versions of a prompt in a run from the command line: evaluated, changed by hand, evaluated again. No vLLM is needed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lightning_core.lake import catalog
from lightning_core.lake.manifest import Manifests
from lightning_core.tracking.registry import connect
from tests.e2e.test_two_epochs import flow, write_settings
from tests.integration.agents_with_prompts import SEED

pytestmark = [pytest.mark.slow, pytest.mark.extra, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
AGENT = ROOT / "tests" / "integration" / "agents_with_prompts.py"


def evaluate(file: Path) -> dict[str, Any]:
    program = [sys.executable, "-c", "from tests.e2e.test_evaluate import run; run()", str(file)]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    own, beside = json.loads(done.stdout.splitlines()[-1])
    return {"own": own, "beside": beside, "log": done.stderr}


def rollouts(home: Path, run: str) -> list[tuple[Any, ...]]:
    question = """
        SELECT prompts, json_extract_string(input_messages, '$[0].content') AS sent,
            coalesce(json_extract_string(prompts_served, '$[0].content'), sent) AS served, count(DISTINCT rollout_id)
        FROM rollouts JOIN calls USING (run, rollout_id, attempt_id)
        WHERE run = ? AND state = 'counts'
        GROUP BY ALL
    """
    with catalog.connect(home / "lake") as con:
        return con.execute(question, [run]).fetchall()


def test_a_prompt_that_is_set_by_hand_is_what_the_next_evaluation_is_of(tmp_path: Path) -> None:
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "writer.md").write_text(f"{SEED}\n")
    (tmp_path / "train.jsonl").write_text('{"question": "a?"}\n')
    (tmp_path / "held_out.jsonl").write_text('{"question": "b?"}\n{"question": "c?"}\n')
    file = write_settings(
        tmp_path,
        agent={"callable": f"{AGENT}:unmodified", "timeout_s": 60, "preload": []},
        tasks={"train": str(tmp_path / "train.jsonl"), "evaluate": str(tmp_path / "held_out.jsonl")},
        prompts={"writer": {"file": "prompts/writer.md"}},
        reward={},
    )
    home = tmp_path / "home"
    first = evaluate(file)
    assert rollouts(home, "tiny") == [('{"writer": "p0000"}', SEED, SEED, 2)]

    (tmp_path / "better.md").write_text("Write very short stories.\n")
    done = flow("prompts", "set", "writer", str(tmp_path / "better.md"), "--home", str(home))
    assert (done.returncode, done.stdout) == (0, "writer: p0001 is what new epochs use\n")
    second = evaluate(file)
    assert "begins anew" in second["log"]
    assert rollouts(home, "tiny") == [('{"writer": "p0001"}', SEED, "Write very short stories.", 2)]
    # An evaluation beside the run is of its prompts, too, so it is another one.
    assert first["beside"]["run"] != second["beside"]["run"]
    manifests = Manifests(home / "lake").epochs("tiny")
    assert [manifest.prompt_versions for manifest in manifests] == [{"writer": "p0001"}]

    found = connect(f"sqlite:///{home / 'mlflow.db'}").search_prompt_versions("tiny.prompts.writer")
    assert sorted((v.tags["version"], v.template) for v in found) == [
        ("p0000", f"{SEED}\n"), ("p0001", "Write very short stories.\n"),
    ]  # fmt: skip
