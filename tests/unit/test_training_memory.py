"""What a training takes of a GPU, worked out beforehand: against the peak of the real model, run without memory.

No GPU is at hand: `FakeTensor` computes shapes and dtypes alone, on a device that says it is a CPU, with the autocast that a
GPU would have. FlexAttention is replaced by a function that keeps what it keeps. What CUDA itself takes is not seen.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface, AttentionMaskInterface, Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2Model

from bench.shapes import SHAPES
from lightning_core.config import PolicySettings, TrainingSettings
from lightning_core.gpus import Card
from lightning_core.settings_file import load_settings
from lightning_core.training import memory
from lightning_core.training.memory import Need, Shape, need, sized
from tests.tiny_model import make_tiny_llama

ROOT = Path(__file__).parents[2]
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class _KeepsAsFlex(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        output = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, output, query.new_empty(query.shape[:3], dtype=torch.float32))
        return output

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


def _attend(module: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> tuple[torch.Tensor, None]:
    lower = [tensor.to(torch.bfloat16) for tensor in (query, key, value)]
    return _KeepsAsFlex.apply(*lower).transpose(1, 2).contiguous(), None


AttentionInterface.register("counted", _attend)
AttentionMaskInterface.register("counted", lambda *_, **__: None)


class Tally(TorchDispatchMode):
    """Bytes of all storages that are alive, and the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.add(tensor)
        return out

    def add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.alive:
            self.alive[storage._cdata] = storage.nbytes()
            weakref.finalize(storage, self.alive.pop, storage._cdata)
            self.peak = max(self.peak, sum(self.alive.values()))


@pytest.fixture
def _as_on_a_gpu() -> Iterator[None]:
    with FakeTensorMode():
        torch.set_autocast_enabled("cpu", True)
        torch.set_autocast_dtype("cpu", torch.bfloat16)
        torch.autocast_increment_nesting()
        yield
        torch.autocast_decrement_nesting()
        torch.clear_autocast_cache()
        torch.set_autocast_enabled("cpu", False)


def peak(config: dict[str, Any], layers: int, tokens: int, lora: int | None, again: bool) -> tuple[int, int]:
    """Most bytes of the backbone's forward and backward pass with gradients in place, and those of parameters that are trained."""
    settings = Qwen2Config(**config | {"num_hidden_layers": layers})
    settings._attn_implementation = "counted"
    torch.set_default_dtype(torch.float32 if lora is None else torch.bfloat16)
    try:
        with torch.device("meta"):
            model = Qwen2Model(settings)
            model = model if lora is None else get_peft_model(model, LoraConfig(r=lora, target_modules=LINEAR))
    finally:
        torch.set_default_dtype(torch.float32)
    tally = Tally()
    for module in model.modules():
        for kind in (module._parameters, module._buffers):
            for name, tensor in kind.items():
                if tensor is not None:
                    made = torch.empty(tensor.shape, dtype=tensor.dtype)
                    is_parameter = isinstance(tensor, torch.nn.Parameter)
                    kind[name] = torch.nn.Parameter(made, tensor.requires_grad) if is_parameter else made
                    tally.add(kind[name])
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.empty_like(parameter)
            tally.add(parameter.grad)
    if again:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if lora is not None:
            model.enable_input_require_grads()
    model.train()
    ids = torch.zeros(1, tokens, dtype=torch.int64)
    with tally:
        mask = torch.zeros(1, 1, 1, 1)
        out = model(input_ids=ids, position_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        torch.clear_autocast_cache()
        out.float().sum().backward()
    return tally.peak, sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.usefixtures("_as_on_a_gpu")
@pytest.mark.parametrize(
    ("model", "lora", "again", "tokens"),
    [
        ("1.5B", None, True, 16384),
        ("1.5B", None, True, 2048),
        ("1.5B", None, False, 4096),
        ("1.5B", 32, True, 16384),
        ("1.5B", 32, False, 4096),
        ("0.5B", None, True, 16384),
    ],
)
def test_what_is_worked_out_is_the_peak_of_the_real_model_and_not_much_more(
    model: str, lora: int | None, again: bool, tokens: int
) -> None:
    config = SHAPES[model] | {"num_hidden_layers": 4}
    found, trained = peak(config, 4, tokens, lora, again)
    shape = Shape.of_config(config)
    assert lora is None or trained == lora * shape.adapted
    settings = TrainingSettings(gradient_checkpointing=again)
    said = need(shape, None if lora is None else trained, settings)
    moments = 8 * trained  # which the passes do not hold
    assert found + moments <= said.fixed + tokens * said.token < 1.35 * (found + moments) + 1e9


ADAPTER = {"policies.0.lora": {"rank": 32, "alpha": 64}, "policies.0.training.learning_rate": 2e-5}


@pytest.mark.parametrize(
    ("example", "card", "changes"),
    [
        ("calc_x", 80, {}),
        ("musique", 80, {}),
        ("spider", 24, {}),
        ("calc_x", 24, ADAPTER),
        ("musique", 24, ADAPTER),
    ],
)
def test_each_examples_settings_fit_the_cards_that_they_name(example: str, card: int, changes: dict[str, Any]) -> None:
    file = ROOT / "examples" / example / "gpu.yaml"
    assert f"{'24 GB: --set' if changes else f'one card of {card} GB'}" in file.read_text()
    for name, value in changes.items():
        assert f"{name}={json.dumps(value)}" in file.read_text().replace("'", "").replace("2e-5", "2e-05")
    (policy,) = load_settings(file, changes).policies
    assert policy.model == "meta-llama/Llama-3.2-3B-Instruct"
    shape = Shape.of_config(SHAPES["Llama-3.2-3B"])
    trained = None if policy.lora is None else policy.lora.rank * shape.adapted
    said = need(shape, trained, policy.training)
    tokens = policy.training.tokens_per_micro_batch or said.fits(0.95 * card * 1e9)
    assert tokens >= policy.training.max_sequence_tokens  # the longest is one pass
    assert said.at(tokens) < 0.96 * card * 1e9


def test_full_weights_of_1_5b_fit_24_gb_with_small_moments_alone() -> None:
    shape = Shape.of_config(SHAPES["1.5B"])
    fits = {kind: need(shape, None, TrainingSettings(optimizer=kind)).fits(25e9) for kind in ("adamw", "adamw_8bit")}
    assert fits["adamw"] == 0 and fits["adamw_8bit"] >= 4096


def test_the_size_is_decided_once_and_kept_whatever_is_free_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    base, kept = tmp_path / "model", tmp_path / "micro-batches.json"
    make_tiny_llama(base)
    wanted = memory.need_of(PolicySettings(), base)
    assert wanted is not None

    def size(free: int, **training: Any) -> int | None:
        monkeypatch.setattr(memory, "cards", lambda: [Card("0", "GPU-a", "H100", 80 * 10**9, free, "580.1")])
        policy = PolicySettings.model_validate({"training": training})
        return sized(policy, base, None, kept).training.tokens_per_micro_batch

    first = size(1_500_000_000)
    assert first == wanted.fits(1_500_000_000) and 0 < first < memory.MOST
    assert size(10**10) == first, "resumed, it has what it began with"
    assert size(10**10, optimizer="adamw_8bit") == memory.MOST, "other settings are decided anew"
    assert size(10**10, tokens_per_micro_batch=512) == 512
    monkeypatch.setattr(memory, "cards", list)
    assert sized(PolicySettings(), base, None, kept).training.tokens_per_micro_batch is None  # a CPU: 2048
    assert json.loads(kept.read_text())["tokens"] == memory.MOST


def test_nothing_is_worked_out_of_widths_of_each_layer_or_of_a_file_that_was_cut_off(tmp_path: Path) -> None:
    folder = make_tiny_llama(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    assert memory.need_of(PolicySettings(), folder) is not None
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": [64, 128]}))  # as Gemma 3n has it
    assert memory.need_of(PolicySettings(), folder) is None
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"half")
    assert memory.need_of(PolicySettings(), folder) is None


def test_nothing_fits_where_the_weights_alone_do_not() -> None:
    assert Need(fixed=10e9, token=1e5).fits(9e9) == 0
