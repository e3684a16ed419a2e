"""`lightning-flows import`: demonstrations from elsewhere become rollouts, and `finetune` trains on them with the real trainer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_core.lake.catalog import connect
from tests.tiny_model import make_tiny_llama

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[2]
# The tiny model's template does not write tool calls; models for tools do.
TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t | tojson }}{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function.name }} {{ c.function.arguments.expression }}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def lightning(*command: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "lightning_flows.flows.cli", *command]
    return subprocess.run(program, cwd=ROOT, capture_output=True, text=True)


def imported(file: Path, home: Path, source: str = "chat", *more: str) -> subprocess.CompletedProcess[str]:
    return lightning("import", str(file), "--from", source, "--home", str(home), *more)


def finetuned(tmp_path: Path, runs: list[str], **sft: Any) -> Any:
    """What `finetune` on these runs prints; a tiny model with a template for tools."""
    model = make_tiny_llama(tmp_path / "tiny")
    for file in (model / "chat_template.jinja",):
        file.write_text(TEMPLATE)
    content = {
        "run": "taught",
        "home": str(tmp_path / "home"),
        "agent": {"command": "true"},
        "tasks": {"train": str(tmp_path / "none.jsonl")},
        "finetune": {"runs": runs},
        "policies": [{"model": str(model), "algorithm": "sft", "sft": sft, "training": {"learning_rate": 1e-3}}],
    }
    settings = tmp_path / "settings.yaml"
    settings.write_text(yaml.safe_dump(content))
    done = lightning("finetune", str(settings))
    assert done.returncode == 0, done.stderr[-3000:]
    return yaml.safe_load(done.stdout)


def test_chats_become_rollouts_once_and_a_version_is_trained_on_them(tmp_path: Path) -> None:
    home, file = tmp_path / "home", tmp_path / "demos.jsonl"
    lines = (ROOT / "tests" / "data" / "imports" / "demonstrations.jsonl").read_text().splitlines()
    file.write_text("\n".join([lines[0], "{broken", lines[1], lines[0], '{"messages": [{"role": "user"}]}']) + "\n")
    first = imported(file, home)
    assert first.returncode == 0, first.stderr
    assert first.stdout == (
        "epoch 0 of run demos: 2 rollouts with 3 spans; 1 were there already; 2 dropped (see above)\n"
    )
    assert f"{file}:2: no JSON" in first.stderr and "write one chat a line" in first.stderr
    assert f"{file}:5: messages[0]: neither `content` nor `tool_calls`" in first.stderr
    again = imported(file, home)
    assert again.stdout == "nothing new: 0 rollouts with 0 spans; 3 were there already; 2 dropped (see above)\n"

    printed = finetuned(tmp_path, ["demos"])
    assert printed["rollouts"] == 2 and printed["trained"]["policy"]["metrics"]["sequences"] == 2
    with connect(home / "lake") as con:
        found = con.execute(
            "SELECT tokenized, len(call_ids), token_ids, loss_mask FROM sequences WHERE run = 'taught' ORDER BY len(call_ids)"
        ).fetchall()
        calls = con.execute("SELECT count(*) FROM spans WHERE op = 'llm'").fetchall()
        fates = con.execute(
            "SELECT run, epoch, reward, state, demonstration FROM rollouts WHERE run = 'demos'"
        ).fetchall()
    assert calls == [(3,)] and fates == [("demos", 0, 1.0, "counts", True)] * 2
    assert [row[:2] for row in found] == [(True, 1), (True, 2)]
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tiny")

    def trained(row: Any) -> str:
        return str(tokenizer.decode([token for token, mask in zip(row[2], row[3], strict=True) if mask]))

    assert trained(found[0]) == "4<|im_end|>"
    assert trained(found[1]) == "<call>calc 12*7<|im_end|>84<|im_end|>", "a reply of weight 0 is context"
    assert "wrong" in tokenizer.decode(found[1][2]) and '"name": "calc"' in tokenizer.decode(found[1][2])


def test_traces_of_mlflow_and_phoenix_are_trained_on_where_the_settings_say_so(tmp_path: Path) -> None:
    home = tmp_path / "home"
    for source, file in (("mlflow", "mlflow.json"), ("openinference", "phoenix.json")):
        done = imported(ROOT / "tests" / "data" / "imports" / file, home, source, "--run", source)
        assert done.stdout == f"epoch 0 of run {source}: 1 rollouts with 4 spans\n", done.stderr
    printed = finetuned(tmp_path, ["mlflow", "openinference"], without_ids="tokenize")
    assert printed["rollouts"] == 2 and printed["trained"]["policy"]["metrics"]["steps"] == 1
    with connect(home / "lake") as con:
        found = con.execute("SELECT tokenized, len(call_ids) FROM sequences WHERE run = 'taught'").fetchall()
        assert found == [(True, 2)] * 2, "both calls of a trace are one sequence"
        assert con.execute("SELECT count(*) FROM exclusions WHERE run = 'taught'").fetchall() == [(0,)]
