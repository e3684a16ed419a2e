"""An exported version answers as the policy did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from lightning_core.config import LoraSettings
from lightning_core.policies.store import Lineage, PolicyStore
from lightning_core.policies.version_manifest import digest_files
from lightning_core.training.weights import load_adapter, load_model, lora_config, save_weights
from lightning_flows.flows.cli import main
from tests.policy_files import store_with_base
from tests.tiny_model import make_tiny_llama

pytestmark = [pytest.mark.slow]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("model") / "tiny")


def logits(model: Any) -> Any:
    import torch

    with torch.no_grad():
        return model.eval()(torch.arange(5, 25)[None]).logits


def export(home: Path, *arguments: object) -> Result:
    return CliRunner().invoke(main, ["policies", "--home", str(home), "export", *map(str, arguments)])


def test_a_merged_adapter_answers_as_base_and_adapter_do(base: Path, tmp_path: Path) -> None:
    import torch
    from peft import get_peft_model

    store = PolicyStore(tmp_path, "adapter")
    store.publish_base(base, str(base), "lora")
    torch.manual_seed(0)
    adapted = get_peft_model(load_model(base), lora_config(LoraSettings(rank=4, alpha=8)))
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    (tmp_path / "training").mkdir()
    save_weights(adapted, base, tmp_path / "training")
    version = store.publish(tmp_path / "training", Lineage(base_model=str(base), kind="lora", parent="v0000"))

    done = export(tmp_path, "adapter", version, "--merged", "--into", tmp_path / "merged")
    assert done.exit_code == 0, done.output
    answer = logits(load_model(tmp_path / "merged"))
    assert torch.allclose(answer, logits(adapted), atol=1e-4)
    assert not torch.allclose(answer, logits(load_model(base)), atol=1e-2)
    for name in ("config.json", "tokenizer.json"):
        assert (tmp_path / "merged" / name).read_bytes() == (base / name).read_bytes()
    assert not (tmp_path / "merged/adapter_config.json").exists()

    assert export(tmp_path, "adapter", version, "--into", tmp_path / "adapter").exit_code == 0
    assert digest_files(tmp_path / "adapter") == store.manifest(version).files
    assert torch.allclose(logits(load_adapter(load_model(base), tmp_path / "adapter")), logits(adapted), atol=1e-5)

    assert export(tmp_path, "adapter", "v0000", "--merged", "--into", tmp_path / "plain").exit_code == 0
    assert torch.equal(logits(load_model(tmp_path / "plain")), logits(load_model(base)))
    refused = export(tmp_path, "adapter", "v0000", "--into", tmp_path / "nothing")
    assert (refused.exit_code, "export it merged" in refused.stderr) == (1, True)


def test_full_weights_are_copied_and_nothing_is_overwritten_nor_exported_damaged(tmp_path: Path) -> None:
    store = store_with_base(tmp_path)
    assert export(tmp_path, "policy", "v0000", "--into", tmp_path / "out").exit_code == 0
    assert digest_files(tmp_path / "out") == store.manifest("v0000").files
    assert not (tmp_path / "out/manifest.json").exists()
    again = export(tmp_path, "policy", "v0000", "--into", tmp_path / "out")
    assert (again.exit_code, "is there already" in again.stderr) == (1, True)
    (store.path("v0000") / "config.json").write_text("{}")
    damaged = export(tmp_path, "policy", "v0000", "--into", tmp_path / "other")
    assert (damaged.exit_code, "config.json" in damaged.stderr) == (1, True)
    assert not (tmp_path / "other").exists()
