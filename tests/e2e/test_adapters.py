"""One epoch of two adapters on one base: an agent that is a command and gives its own reward."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from lightning_core.policies.store import PolicyStore
from tests.e2e.test_two_epochs import HERE, ask, flow, mentioning, write_settings

pytestmark = [
    pytest.mark.slow,
    pytest.mark.extra,
    pytest.mark.timeout(600),
]  # test_vllm and test_several_policies have its parts


def test_two_adapters_are_trained_each_on_its_own_calls_and_served_beside_the_base(tmp_path: Path) -> None:
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text("".join(json.dumps({"id": f"t{i}", "question": f"Say {i}"}) + "\n" for i in range(4)))
    model = str(tmp_path / "tiny-llama")
    lora = {"rank": 8, "alpha": 16}
    settings = write_settings(
        tmp_path,
        epochs=1,
        agent={"command": [sys.executable, str(HERE / "reward_agent.py")], "timeout_s": 60},
        tasks={"train": str(tasks)},
        reward={},
        evaluation={"every": 0},
        policies=[
            {"name": "writer", "model": model, "agent_match": "^writer$", "lora": lora, "training": {"learning_rate": 1e-3}},
            {"name": "critic", "model": model, "agent_match": "^critic$", "lora": lora, "training": {"learning_rate": 1e-3}},
        ],
    )  # fmt: skip
    done = flow("train", str(settings))
    assert done.returncode == 0, done.stderr[-4000:] + done.stdout[-2000:]
    home = tmp_path / "home"
    for policy in ("writer", "critic"):
        store = PolicyStore(home, policy)
        assert store.current() == "v0001"
        assert "adapter_model.safetensors" in store.manifest("v0001").files
    trained = ask(home, "SELECT policy, count(*) FROM sequences GROUP BY ALL ORDER BY ALL")
    assert [policy for policy, _ in trained] == ["critic", "writer"]
    agents = ask(home, "SELECT DISTINCT policy, agent, method FROM policy_calls WHERE left_out IS NULL ORDER BY ALL")
    assert agents == [("critic", "critic", "time"), ("writer", "writer", "time")]
    outputs = ask(home, "SELECT DISTINCT json_keys(output) FROM rollouts")
    assert outputs == [(["text"],)]
    assert mentioning(home) == []
