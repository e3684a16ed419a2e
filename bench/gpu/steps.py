"""Optimizer steps as the product takes them, on random weights of a model's shape, beside stock TRL on the same sequences.

Ours with packing, AdamW and all that a step does; stock's forward and backward alone. MFU counts unique tokens: 6 FLOP a
parameter and token (4 where it lies still), 12 a query number and pair of a token with one that it sees; nothing that is
computed again.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench import training_sequences as drawn
from bench.gpu.check import Check, Found
from bench.report import say
from bench.shapes import SHAPES, Shape
from lightning_core.config import PolicySettings
from lightning_core.training.dataset import Sequence
from lightning_core.training.memory import Shape as Sizes
from lightning_core.training.memory import need
from lightning_core.training.micro_batches import Step, plan_steps
from lightning_core.training.steps import StepPlan

_ROUNDS = 4  # the first compiles
_ROUNDS_SMALL = 2
_PEAK = 989e12  # an H100's, where the card has none that is known
_TINY = SHAPES["135M"] | {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
                          "num_key_value_heads": 1, "head_dim": 32}  # fmt: skip


def checks() -> list[Check]:
    return [
        Check("step-0.6B-full", partial(_rows, "0.6B", False, {"tokens_per_s": 11_900})),
        Check("step-1.5B-lora", partial(_rows, "1.5B", True, {"mfu": 0.2})),
        Check("step-4B-lora", partial(_rows, "4B", True, {"tokens_per_s": 6_200})),
        Check("tree-calculator", partial(_tree, drawn.calculator, 8, 3.0)),
        Check("tree-long", partial(_tree, drawn.long_calls, 3000, None)),
    ]


def _rows(name: str, adapter: bool, asked: dict[str, float], small: bool) -> Found:
    rows, tokens = (2, 64) if small else (8, 2048)
    sequences = drawn.unshared(np.random.default_rng(0), rows, tokens)
    return measure(SHAPES[name], sequences, adapter, asked, small)


def _tree(make: Any, size: int, asked: float | None, small: bool) -> Found:
    rng = np.random.default_rng(0)
    size = min(size, 60) if make is drawn.long_calls and small else size
    sequences = make(1 if small else size, rng) if make is drawn.calculator else make(rng, size)
    found = measure(SHAPES["0.5B"], sequences, False, {}, small)
    wanted = asked or 0.6 * found["raw_over_unique"]
    if found["stock_s"] is not None:
        found |= {"asked": {"times_stock": wanted}, "ok": small or found["times_stock"] >= wanted}
    return found


def measure(shape: Shape, sequences: list[Sequence], adapter: bool, asked: dict[str, float], small: bool) -> Found:
    """Figures of a step; in `small` what is asked of a card is not asked."""
    shape = _TINY if small else shape
    training = {"max_mismatch": None, "importance_correction": "none", "tokens_per_micro_batch": 16384}
    policy = PolicySettings.model_validate({"training": training} | ({"lora": {"rank": 16}} if adapter else {}))
    with tempfile.TemporaryDirectory() as scratch:
        rounds = _ROUNDS_SMALL if small else _ROUNDS
        found = _ours(shape, sequences, policy, Path(scratch), rounds)
        stock = _stock(shape, sequences, policy, Path(scratch), rounds)
    found |= {"stock_s": stock, "times_stock": stock and stock / found["seconds"], "asked": asked}
    return found | {"ok": small or all((found[name] or 0) >= least for name, least in asked.items())}


class _Timed(StepPlan):
    def __init__(self) -> None:
        self.taken: list[dict[str, Any]] = []

    def on_step(self, trainer: Any, metrics: dict[str, Any]) -> None:
        self.taken.append(metrics)


def _ours(shape: Shape, sequences: list[Sequence], policy: PolicySettings, scratch: Path, rounds: int) -> Found:
    from bench.training import forget_peak, peak
    from lightning_core.training.new_version import peak_flops
    from lightning_core.training.scoring import why_not_packed
    from lightning_core.training.trainer import SequenceTrainer
    from lightning_core.training.weights import lora_config
    from tests.tiny_model import make_tiny_tokenizer

    model, device = _model(shape, policy)
    why = why_not_packed(model, max(map(len, sequences)))
    if why is not None:
        raise RuntimeError(why)
    budget = policy.training.tokens_per_micro_batch
    assert budget is not None
    (step,) = plan_steps(
        sequences, steps=1, seed=0, packing="tree", budget=budget, loss_type="dapo", completion_limit=64
    )
    timed = _Timed()
    trainer = SequenceTrainer(
        model, make_tiny_tokenizer(), [step] * rounds, policy, scratch=scratch, step_plan=timed,
        peft_config=lora_config(policy.lora) if policy.lora else None,
    )  # fmt: skip
    forget_peak()
    trainer.train()
    held = peak()
    seconds = min(metrics["seconds"] for metrics in timed.taken[1:])
    sizes = Sizes.of_config(shape)
    trained = None if policy.lora is None else policy.lora.rank * sizes.adapted
    reckoned = need(sizes, trained, policy.training)
    name = _card(device)
    return {
        "seconds": seconds,
        "tokens_per_s": step.unique_tokens / seconds,
        "mfu": flops(shape, step, adapter=policy.lora is not None) / seconds / (peak_flops(name) or _PEAK),
        "raw_over_unique": step.tokens / step.unique_tokens,
        "unique_tokens": step.unique_tokens,
        "micro_batches": len(step.micro_batches),
        "peak_gb": held / 1e9,
        "reckoned_gb": (reckoned.fixed + max(b.unique_tokens for b in step.micro_batches) * reckoned.token) / 1e9,
        "loss": timed.taken[-1]["loss"],
        "card": name,
    }


def flops(shape: Shape, step: Step, adapter: bool) -> float:
    """Of forward and backward of a step's unique tokens."""
    sizes, layouts = Sizes.of_config(shape), [batch.layout() for batch in step.micro_batches]
    looked_up = 0 if shape["tie_word_embeddings"] else sizes.vocabulary * sizes.hidden
    pairs = sum(int((layout.depth + 1).sum()) for layout in layouts if layout.depth is not None)
    of_token = (4 if adapter else 6) * (sizes.parameters - looked_up)
    return float(step.unique_tokens * of_token + 12 * sizes.layers * sizes.queries * pairs)


def _stock(shape: Shape, sequences: list[Sequence], policy: PolicySettings, scratch: Path, rounds: int) -> float | None:
    """Seconds of TRL's own trainer on the same sequences; None where the card's memory is too small for it."""
    import torch

    from bench.training import Stock
    from lightning_core.training.hardware import checkpoints_gradients, computes_in_bf16
    from lightning_core.training.weights import free_memory, lora_config

    free_memory()
    model, _ = _model(shape, policy)
    settings = policy.training
    config = lora_config(policy.lora) if policy.lora else None
    again = checkpoints_gradients(settings)
    try:
        stock = Stock(model, sequences, scratch, computes_in_bf16(settings), again, config)
        for _ in range(rounds):
            stock.run()
    except torch.OutOfMemoryError as error:
        say(f"stock TRL: {error}")
        return None
    return sum(min(rounds) for rounds in list(zip(*stock.seconds[1:], strict=True)))


def _model(shape: Shape, policy: PolicySettings) -> tuple[Any, Any]:
    """As a training loads it: on the device, under an adapter in bf16 where that is computed in."""
    import torch

    from bench.training import make_model
    from lightning_core.training.hardware import computes_in_bf16, own_device

    device = own_device()
    with torch.device(device):
        model = make_model(shape)
    lower = policy.lora is not None and computes_in_bf16(policy.training)
    return (model.to(torch.bfloat16) if lower else model).to(device), device


def _card(device: Any) -> str:
    import torch

    return torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
