"""Seconds of forward and backward of one optimizer step: prefix tries against stock TRL's padded batches.

Sequences are shaped like the calculator's: groups of 8 rollouts that share a prompt of 190 tokens, two turns of 16
sampled tokens with 12 tokens of tool output between. The model has SmolLM2-135M's shape and random weights. Both do
the same loss (the difference is in the line); AdamW is left out, being the same for both.

    .venv/bin/python bench/training.py [--groups 4] [--layers 30]
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
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


def ours(model: Any, sequences: list[Sequence], scratch: Path) -> tuple[float, float, float]:
    """Seconds, loss, and the share of tokens that is computed."""
    from lightning_core.training.trainer import SequenceTrainer

    policy = PolicySettings()
    steps = plan_steps(
        sequences, steps=1, seed=0, packing="tree", budget=4096, loss_type="dapo", completion_limit=64
    )  # fmt: skip
    trainer = SequenceTrainer(model, make_tiny_tokenizer(), steps, policy, scratch=scratch, seed=0)
    width = len(steps[0].micro_batches)
    trainer.current_gradient_accumulation_steps = width
    trainer.accelerator.gradient_accumulation_steps = 1
    trainer.training_step(model, {"number": 0}, None)
    model.zero_grad()
    began = time.perf_counter()
    loss = sum(float(trainer.training_step(model, {"number": n}, None)) for n in range(width))
    return time.perf_counter() - began, loss, steps[0].unique_tokens / steps[0].tokens


def stock(model: Any, sequences: list[Sequence], scratch: Path) -> tuple[float, float]:
    """Seconds and loss of TRL's own trainer, one padded batch of 8 rows a group."""
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
    model.train()
    trained = sum(s.trained_tokens for s in sequences)
    batches = []
    for start in range(0, len(sequences), 8):
        rows = sequences[start : start + 8]
        batch = materialise(MicroBatch([[s] for s in rows], [1.0] * len(rows), "none", 0), trained, False)
        del batch["layout"]
        batches.append(batch)
    trainer.compute_loss(model, batches[0]).backward()
    model.zero_grad()
    began = time.perf_counter()
    total = 0.0
    for batch in batches:
        loss = trainer.compute_loss(model, batch)
        loss.backward()
        total += loss.item()
    return time.perf_counter() - began, total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=4)
    parser.add_argument("--layers", type=int, default=30)
    options = parser.parse_args()
    import_trainer()
    rng = np.random.default_rng(0)
    sequences = [row for group in range(options.groups) for row in calculator_group(group, rng)]
    with tempfile.TemporaryDirectory() as scratch:
        model = make_model(options.layers)
        seconds, loss, share = ours(model, sequences, Path(scratch))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        model = make_model(options.layers)
        baseline, expected = stock(model, sequences, Path(scratch))
    line = {"name": "train_step_calculator", "value": round(seconds, 2), "unit": "s", "baseline": round(baseline, 2)}
    line |= {"ratio": round(baseline / seconds, 2), "n": len(sequences), "unique_share": round(share, 3)}
    line |= {"loss_difference": abs(loss - expected), "peak_rss_gb": round(peak, 2)}
    print(json.dumps(line))


if __name__ == "__main__":
    main()
