"""Small model folders and adapters that the policy store takes for what they are: real headers, a few numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from lightning_core.policies.store import Lineage, PolicyStore


def write_model(folder: Path, value: float = 0.0, dtype: str = "float32", columns: int = 2, **config: Any) -> Path:
    """A folder of full weights: config, tokenizer, one shard whose first tensor is `value` everywhere."""
    folder.mkdir(parents=True)
    facts = {"model_type": "llama", "vocab_size": 4, "hidden_size": columns, "dtype": dtype} | config
    (folder / "config.json").write_text(json.dumps(facts))
    (folder / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0, "b": 1}}}')
    (folder / "tokenizer_config.json").write_text('{"eos_token": "b"}')
    tensors = {"embed.weight": np.full((4, columns), value, dtype), "norm.weight": np.ones(columns, dtype)}
    save_file(tensors, folder / "model.safetensors")
    return folder


def write_adapter(folder: Path, value: float = 0.0, rank: int = 2) -> Path:
    """A folder as peft writes it."""
    folder.mkdir(parents=True)
    facts = {"r": rank, "lora_alpha": 4, "target_modules": ["v_proj", "q_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(facts))
    save_file({"q.lora_A.weight": np.full((rank, 4), value, "float32")}, folder / "adapter_model.safetensors")
    return folder


def store_with_base(home: Path, name: str = "policy") -> PolicyStore:
    """A store that has v0000, linked to `home/models/base`."""
    base = home / "models/base"
    if not base.exists():
        write_model(base)
    store = PolicyStore(home, name)
    store.publish_base(base, "base")
    return store


def output(home: Path, name: str = "out", value: float = 1.0, **more: Any) -> Path:
    """What a training leaves, with a folder in it."""
    folder = write_model(home / "training" / name, value, **more)
    (folder / "sub").mkdir()
    (folder / "sub/notes.json").write_text("{}")
    return folder


def lineage(epoch: int = 1, **more: Any) -> Lineage:
    return Lineage(run="r", epoch=epoch, base_model="base", **more)
