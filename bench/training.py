"""Seconds of forward and backward of one optimizer step: prefix tries against stock TRL's padded batches.

Sequences are shaped like the calculator's: groups of 8 rollouts that share a prompt of 190 tokens, two turns of 16
sampled tokens with 12 tokens of tool output between. The model has SmolLM2-135M's shape and random weights. Both do
the same loss (the difference is in the line); AdamW is left out, being the same for both.

    .venv/bin/python bench/training.py [--groups 2] [--rounds 4] [--layers 30]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lightning_core.config import PolicySettings
from lightning_core.training.dataset import Sequence
from lightning_core.training.job import import_trainer
from lightning_core.training.plan import MicroBatch, plan_steps
from tests.tiny_model import make_tiny_tokenizer

VOCABULARY = 49152


def calculator_group(group: int, rng: np.random.Generator, size: int = 8) -> list[Sequence]:
    prompt = rng.integers(0, VOCABULARY, 190)
    rows = []
    for number in range(size):
        turns = [rng.integers(0, VOCABULARY, n) for n in (16, 12, 16)]
        mask = np.concatenate([np.zeros(190, bool), np.ones(16, bool), np.zeros(12, bool), np.ones(16, bool)])
        rows.append(
            Sequence(
                sequence_id=f"{group}.{number}",
                rollout_id=f"{group}.{number}",
                attempt_id="a",
                group_id=f"{group}",
                token_ids=np.concatenate([prompt, *turns]).astype(np.int32),
                prompt_length=190,
                loss_mask=mask,
                logprobs=np.where(mask, -10.0, 0).astype(np.float32),
                advantages=np.where(mask, rng.normal(), 0).astype(np.float32),
            )
        )
    return rows


def make_model(layers: int) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=576, intermediate_size=1536, num_hidden_layers=layers, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=8192, tie_word_embeddings=True, attn_implementation="sdpa",
    )  # fmt: skip
    return LlamaForCausalLM(config)


def ours(model: Any, sequences: list[Sequence], scratch: Path) -> tuple[list[Callable[[], float]], float]:
    """One pass a group (forward and backward, returning its share of the loss), and the share of tokens computed."""
    from lightning_core.training.trainer import SequenceTrainer

    steps = plan_steps(sequences, steps=1, seed=0, packing="tree", budget=4096, loss_type="dapo", completion_limit=64)
    trainer = SequenceTrainer(model, make_tiny_tokenizer(), steps, PolicySettings(), scratch=scratch, seed=0)
    width = len(steps[0].micro_batches)
    trainer.current_gradient_accumulation_steps = width
    trainer.accelerator.gradient_accumulation_steps = 1

    def one(number: int) -> float:
        return float(trainer.training_step(model, {"number": number}, None))

    return [partial(one, n) for n in range(width)], steps[0].unique_tokens / steps[0].tokens


def stock(model: Any, sequences: list[Sequence], scratch: Path) -> list[Callable[[], float]]:
    """The same of TRL's own trainer, one padded batch of 8 rows a group."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    from lightning_core.training.trainer import materialise

    arguments = GRPOConfig(
        output_dir=str(scratch), per_device_train_batch_size=8, num_generations=8, gradient_accumulation_steps=1,
        bf16=False, gradient_checkpointing=False, report_to="none",
    )  # fmt: skip
    trainer = GRPOTrainer(
        model, reward_funcs=lambda **_: [], args=arguments, train_dataset=Dataset.from_dict({"prompt": ["a"] * 8}),
        processing_class=make_tiny_tokenizer(),
    )  # fmt: skip
    trainer.current_gradient_accumulation_steps = 1
    trained = sum(s.trained_tokens for s in sequences)

    def one(rows: list[Sequence]) -> float:
        model.train()
        batch = materialise(MicroBatch([[s] for s in rows], [1.0] * len(rows), "none", 0), trained, False)
        del batch["layout"]
        loss = trainer.compute_loss(model, batch)
        loss.backward()
        return loss.item()

    return [partial(one, sequences[start : start + 8]) for start in range(0, len(sequences), 8)]


def best(seconds: list[list[float]]) -> float:
    """Sum over the groups of the shortest of their rounds: on a shared machine the rest is other people's work."""
    return sum(min(rounds) for rounds in zip(*seconds, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=4, help="both sides in turn, after one round to warm up")
    parser.add_argument("--layers", type=int, default=30)
    options = parser.parse_args()
    import_trainer()
    rng = np.random.default_rng(0)
    sequences = [row for group in range(options.groups) for row in calculator_group(group, rng)]
    with tempfile.TemporaryDirectory() as scratch:
        model = make_model(options.layers)
        tries, share = ours(model, sequences, Path(scratch))
        sides = {"ours": tries, "stock": stock(model, sequences, Path(scratch))}
        seconds: dict[str, list[list[float]]] = {"ours": [], "stock": []}
        losses = {}
        for turn in range(options.rounds + 1):
            for name, passes in sides.items():
                model.zero_grad()
                took, total = [], 0.0
                for one in passes:
                    began = time.perf_counter()
                    total += one()
                    took.append(time.perf_counter() - began)
                losses[name] = total
                if turn:
                    seconds[name].append(took)
    value, baseline = best(seconds["ours"]), best(seconds["stock"])
    line = {"name": "train_step_calculator", "value": round(value, 2), "unit": "s", "baseline": round(baseline, 2)}
    line |= {"ratio": round(baseline / value, 2), "n": len(sequences), "unique_share": round(share, 3)}
    print(json.dumps(line | {"loss_difference": abs(losses["ours"] - losses["stock"])}))


if __name__ == "__main__":
    main()
