"""Forward and backward of one optimizer step: forests of prefix tries against stock TRL's padded batches.

    train_step_calculator   two groups of 8 of a real epoch of the calculator (run first, once: minutes), default settings
    train_step_long         8 rollouts of 4 turns on 1,000 tokens of history, each call a sequence
    train_step_long_merged  the same, each rollout one sequence
    train_data_overhead     reading, checking, planning and laying out, as a share of the step's time
    train_rows_overhead     what is measured of each token for table `training_rows`, as a share of the step's time
    train_start_s           from the start of the training process to its first step

The model has SmolLM2-135M's shape and random weights; the long ones take `--long-layers` of its 30 layers, since stock
TRL needs minutes for one pass. On a GPU it has Qwen2.5's (`--shape 0.5B` or `1.5B`, all layers), both sides compute in
bf16, and `mfu` is ours (none has run yet: no GPU was at hand). Both sides come to the same gradient (`gradient_difference`:
of its norms, tensor by tensor, as a share of the largest); AdamW is left out, being the same for both. `asked` is 0.8 × raw
÷ unique tokens. Memory is the highest resident size within a pass, on a GPU the most that was allocated there. `cpu_ratio`
is that of the processor time, which a busy machine leaves alone (with OMP_NUM_THREADS=1: threads that wait for each other
count too).

    .venv/bin/python -m bench.training [calculator rows long long_merged start] [--groups 2] [--rounds 2] [--drawn] [--bf16]

Each of the five stands for itself: `make bench-training ARGS=long`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench.report import figure, say
from bench.shapes import SHAPES, Shape
from bench.training_sequences import VOCABULARY, calculator, long_calls, long_merged, real_calculator
from lightning_core.config import PolicySettings
from lightning_core.training.dataset import Sequence, read_sequences
from lightning_core.training.job import Job, import_trainer
from lightning_core.training.memory import ON_CPUS
from lightning_core.training.micro_batches import MicroBatch, plan_steps
from lightning_core.training.new_version import throughput
from lightning_core.training.steps import StepPlan
from lightning_core.training.token_rows import TokenRows
from tests.tiny_model import make_tiny_tokenizer
from tests.training_data import write_parquet

_LONG_BUDGET = 4096
_OVERHEAD_LIMIT, _ROWS_LIMIT, _START_LIMIT_S = 0.02, 0.03, 20.0


class Side:
    """The passes of one side: what they take, what they hold, and the norms of the gradient they sum to."""

    def __init__(self, model: Any, passes: list[Callable[[], Any]]) -> None:
        self.model, self.passes = model, passes
        self.seconds: list[list[float]] = []
        self.cpu: list[list[float]] = []
        self.peak = 0
        self.norms: list[float] = []

    def run(self) -> None:
        self.model.zero_grad()
        forget_peak()
        took, cpu = [], []
        for one in self.passes:
            began, cpu_began = time.perf_counter(), time.process_time()
            one()
            wait()
            took.append(time.perf_counter() - began)
            cpu.append(time.process_time() - cpu_began)
        self.seconds.append(took)
        self.cpu.append(cpu)
        self.peak = max(self.peak, peak())
        self.norms = [float(p.grad.norm()) for p in self.model.parameters() if p.grad is not None]

    @property
    def best(self) -> float:
        return best(self.seconds)


def best(seconds: list[list[float]]) -> float:
    """Sum over the passes of the shortest of their rounds: on a shared machine the rest is other people's work."""
    return sum(min(rounds) for rounds in zip(*seconds, strict=True))


class Ours(Side):
    def __init__(self, model: Any, sequences: list[Sequence], scratch: Path, policy: PolicySettings) -> None:
        from lightning_core.training.scoring import why_not_packed
        from lightning_core.training.trainer import SequenceTrainer

        assert why_not_packed(model, max(map(len, sequences))) is None
        file = write_parquet(sequences, scratch / "sequences.parquet")
        began = time.perf_counter()
        rows = read_sequences(file, policy="policy", vocabulary=VOCABULARY, max_tokens=8192).rows
        budget = policy.training.tokens_per_micro_batch or ON_CPUS
        (step,) = plan_steps(
            rows, steps=1, seed=0, packing="tree", budget=budget, loss_type="dapo", completion_limit=64
        )
        self.computed = step.unique_tokens
        self.before = time.perf_counter() - began
        plan = StepPlan()
        plan.rows = self.rows = TokenRows(scratch, "policy")
        trainer = SequenceTrainer(model, make_tiny_tokenizer(), [step], policy, scratch=scratch, step_plan=plan)
        width = len(step.micro_batches)
        trainer.current_gradient_accumulation_steps = width
        trainer.accelerator.gradient_accumulation_steps = 1
        self.share = step.unique_tokens / step.tokens
        self.preparing: list[float] = []
        prepare = trainer._prepare_inputs

        def timed(batch: dict[str, Any]) -> dict[str, Any]:
            began = time.perf_counter()
            inputs = prepare(batch)
            self.preparing.append(time.perf_counter() - began)
            return inputs

        trainer._prepare_inputs = timed  # type: ignore[method-assign, assignment]
        self.measuring: list[float] = []
        add = self.rows.add

        def measured(*arguments: Any) -> None:
            wait()
            began = time.perf_counter()
            add(*arguments)
            self.measuring.append(time.perf_counter() - began)

        self.rows.add = measured  # type: ignore[method-assign, assignment]
        passes: list[Callable[[], Any]] = [
            partial(trainer.training_step, model, {"number": n}, None) for n in range(width)
        ]
        super().__init__(model, passes)

    def run(self) -> None:
        super().run()
        began = time.perf_counter()
        self.rows.write(1)
        self.measuring.append(time.perf_counter() - began)


class Stock(Side):
    """TRL's own trainer, padded batches of 8 rows."""

    def __init__(
        self,
        model: Any,
        sequences: list[Sequence],
        scratch: Path,
        bf16: bool | None,
        again: bool = False,
        peft_config: Any = None,
    ) -> None:
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer

        from lightning_core.training.inputs import materialise

        arguments = GRPOConfig(
            output_dir=str(scratch), per_device_train_batch_size=8, num_generations=8, gradient_accumulation_steps=1,
            bf16=bf16, gradient_checkpointing=again, report_to="none", use_cpu=not _on_gpu(),
        )  # fmt: skip
        trainer = GRPOTrainer(
            model, reward_funcs=lambda **_: [], args=arguments, train_dataset=Dataset.from_dict({"prompt": ["a"] * 8}),
            processing_class=make_tiny_tokenizer(), peft_config=peft_config,
        )  # fmt: skip
        model = trainer.model
        trainer.current_gradient_accumulation_steps = 1
        trained = sum(s.trained_tokens for s in sequences)

        def one(rows: list[Sequence]) -> None:
            model.train()
            batch = materialise(MicroBatch([[s] for s in rows], [1.0] * len(rows), "none", 0), trained, False)
            del batch["layout"]
            with trainer.accelerator.autocast():
                loss = trainer.compute_loss(model, trainer._prepare_input(batch))
            loss.backward()

        batches = [sequences[start : start + 8] for start in range(0, len(sequences), 8)]
        super().__init__(model, [lambda rows=rows: one(rows) for rows in batches])  # type: ignore[misc]


def compare(
    name: str, sequences: list[Sequence], shape: Shape, rounds: int, policy: PolicySettings, source: str
) -> Ours:
    sequences = sorted(sequences, key=len)  # stock pads least so
    with tempfile.TemporaryDirectory() as scratch:
        model = make_model(shape)
        stock = Stock(model, sequences, Path(scratch), policy.training.bf16)
        ours = Ours(model, sequences, Path(scratch), policy)
        ours.passes[0]()  # to warm up
        stock.passes[0]()
        for turn in range(rounds):
            for side in (ours, stock):
                side.run()
                took, cpu = sum(side.seconds[-1]), sum(side.cpu[-1])
                say(f"{name}, round {turn + 1}: {type(side).__name__} {took:.1f} s, {cpu:.1f} s of processors")
    taken = {"tokens": sum(map(len, sequences)), "unique_tokens": ours.computed, "seconds": ours.best}
    speed = throughput(model, [taken])
    apart = max(abs(a - b) for a, b in zip(ours.norms, stock.norms, strict=True)) / max(stock.norms)
    figure(
        name, ours.best, "s", stock.best, n=len(sequences), smaller_is_better=True, asked=0.8 / ours.share,
        unique_share=ours.share, tokens_per_s=speed["tokens_per_s"], peak_mb=ours.peak / 1e6,
        stock_peak_mb=stock.peak / 1e6, cpu_ratio=best(stock.cpu) / best(ours.cpu), gradient_difference=apart,
        layers=shape["num_hidden_layers"], source=source, **{"mfu": speed["mfu"]} if "mfu" in speed else {},
    )  # fmt: skip
    return ours


def overhead(ours: Ours, n: int) -> None:
    preparing = sum(ours.preparing[1:]) / len(ours.seconds)
    share = (ours.before + preparing) / (ours.before + ours.best)
    figure("train_data_overhead", share, "of a step", _OVERHEAD_LIMIT, n=n, smaller_is_better=True)


def rows(sequences: list[Sequence], shape: Shape, rounds: int, policy: PolicySettings) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        ours = Ours(make_model(shape), sequences, Path(scratch), policy)
        ours.passes[0]()  # to warm up
        for _ in range(rounds):
            ours.run()
    share = sum(ours.measuring[1:]) / sum(map(sum, ours.seconds))
    figure("train_rows_overhead", share, "of a step", _ROWS_LIMIT, n=len(sequences), smaller_is_better=True)


def start(sequences: list[Sequence], shape: Shape) -> None:
    from lightning_core.training.launch import train

    class Started(Exception):
        pass

    def at_the_first_step(line: dict[str, Any]) -> None:
        if line.get("phase") == "training":
            raise Started

    with tempfile.TemporaryDirectory() as scratch:
        here = Path(scratch)
        make_model(shape).save_pretrained(here / "model")
        make_tiny_tokenizer().save_pretrained(here / "model")
        file = write_parquet(sequences, here / "sequences.parquet")
        job = Job(
            run="r", epoch=0, policy="policy", policy_settings=PolicySettings(), base_model=here / "model", sequences=file,
            output=here / "v0001", state=here / "state", progress=here / "progress.jsonl",
        )  # fmt: skip
        took = []
        for _ in range(2):  # the first may find nothing in the page cache
            began = time.perf_counter()
            try:
                train(job, at_the_first_step, here / "log")
            except Started:
                took.append(time.perf_counter() - began)
    figure("train_start_s", min(took), "s", _START_LIMIT_S, n=len(took), smaller_is_better=True)


def make_model(shape: Shape) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(**shape, max_position_embeddings=8192, attn_implementation="sdpa")
    return LlamaForCausalLM(config)


def _on_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def wait() -> None:
    """A GPU is handed work; this returns when it has done it."""
    import torch

    if _on_gpu():
        torch.cuda.synchronize()


def forget_peak() -> None:
    import torch

    if _on_gpu():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    import torch

    if _on_gpu():
        return torch.cuda.max_memory_allocated()
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ("calculator", "rows", "long", "long_merged", "start")
    parser.add_argument("what", nargs="*", default=names, help=f"of {', '.join(names)}")
    parser.add_argument("--groups", type=int, default=2)
    parser.add_argument(
        "--rounds", type=int, default=2, help="of the calculator, both sides in turn; of the long ones there is one"
    )
    parser.add_argument("--shape", choices=SHAPES, default="0.5B" if _on_gpu() else "135M")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=_on_gpu())
    parser.add_argument("--layers", type=int, help="so many of the shape's layers; default: all")
    parser.add_argument("--long-layers", type=int, default=None if _on_gpu() else 6, help="the same of the long ones")
    parser.add_argument("--history", type=int, default=1000, help="tokens that the rollouts of the long ones share")
    parser.add_argument("--home", type=Path, default=Path("var/bench-training"), help="of the calculator's epoch")
    parser.add_argument("--drawn", action="store_true", help="no epoch: sequences drawn in the calculator's shape")
    options = parser.parse_args()
    import_trainer()
    rng = np.random.default_rng(0)
    if options.drawn or not {"calculator", "rows", "start"} & set(options.what):
        sequences = calculator(options.groups, rng)
    else:
        sequences = real_calculator(options.home.absolute(), options.groups)
    # Random weights did not sample them.
    both = {"max_mismatch": None, "bf16": options.bf16}
    usual = PolicySettings.model_validate({"training": both})

    def cut(layers: int | None) -> Shape:
        return SHAPES[options.shape] | ({"num_hidden_layers": layers} if layers else {})

    if "calculator" in options.what:
        source = "its shape" if options.drawn else "an epoch of the example"
        ours = compare("train_step_calculator", sequences, cut(options.layers), options.rounds, usual, source)
        overhead(ours, len(sequences))
    if "rows" in options.what:
        rows(sequences, cut(options.layers), options.rounds, usual)
    long = PolicySettings.model_validate({"training": {"tokens_per_micro_batch": _LONG_BUDGET, **both}})
    for what, make in (("long", long_calls), ("long_merged", long_merged)):
        if what in options.what:
            compare(f"train_step_{what}", make(rng, options.history), cut(options.long_layers), 1, long, "drawn")
    if "start" in options.what:
        start(sequences, cut(options.layers))


if __name__ == "__main__":
    main()
