"""The private hooks of TRL that the trainer stands on: these fail when TRL moves them.

And the numbers behind: on equal inputs, loss and gradients are those of TRL's own trainer on one whole batch.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_core.config import PolicySettings
from lightning_core.training.dataset import Sequence
from lightning_core.training.plan import MicroBatch, Step, plan_steps
from tests.tiny_model import make_tiny_llama
from tests.training_data import make_sequence, one_thread, random_group

LIMIT = 50

pytestmark = pytest.mark.slow  # it computes losses and gradients


@pytest.fixture(scope="module", autouse=True)
def _trl() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def sequences() -> list[Sequence]:
    rng = np.random.default_rng(5)
    return [s for name, size in (("a", 5), ("b", 2), ("c", 3)) for s in random_group(name, size, rng)]


def load(folder: Path) -> tuple[Any, Any]:
    from lightning_core.training.weights import load_model, load_tokenizer

    return load_model(folder), load_tokenizer(folder, 300)


def policy(**training: Any) -> PolicySettings:
    return PolicySettings.model_validate({"training": {"max_grad_norm": 1e9, **training}})


def plan(sequences: list[Sequence], settings: PolicySettings, **overrides: Any) -> list[Step]:
    training = settings.training
    options: dict[str, Any] = {"steps": 1, "seed": 0, "packing": training.packing, "budget": 120}
    options |= {"loss_type": training.loss_type, "completion_limit": LIMIT}
    return plan_steps(sequences, **(options | overrides))


def ours(folder: Path, tmp_path: Path, steps: list[Step], settings: PolicySettings, reference: bool = False) -> Any:
    from lightning_core.training.trainer import SequenceTrainer

    model, tokenizer = load(folder)
    trainer = SequenceTrainer(model, tokenizer, steps, settings, scratch=tmp_path, seed=0)
    if reference:
        trainer.reference = [scores - 0.3 for scores in trainer.score_all()]
    return trainer


def stock(folder: Path, tmp_path: Path, settings: PolicySettings) -> Any:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    model, tokenizer = load(folder)
    arguments = GRPOConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=2, num_generations=2, gradient_accumulation_steps=1,
        loss_type=settings.training.loss_type, epsilon=settings.training.epsilon, epsilon_high=settings.training.epsilon_high,
        max_completion_length=LIMIT, bf16=False, gradient_checkpointing=False, report_to="none", use_cpu=True,
    )  # fmt: skip
    trainer = GRPOTrainer(
        model, reward_funcs=lambda **_: [], args=arguments, train_dataset=Dataset.from_dict({"prompt": ["a"] * 4}),
        processing_class=tokenizer,
    )  # fmt: skip
    trainer.current_gradient_accumulation_steps = 1
    trainer.beta = settings.training.beta
    model.train()
    return trainer


def accumulate(trainer: Any) -> float:
    """Loss summed over the micro-batches of the only step; gradients are left on the model."""
    width = len(trainer._queue)
    trainer.current_gradient_accumulation_steps = width
    trainer.accelerator.gradient_accumulation_steps = 1
    trainer.model.zero_grad()
    return sum(float(trainer.training_step(trainer.model, {"number": n}, None)) for n in range(width))


@pytest.mark.parametrize("packing", ["tree", "none"])
@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo", "bnpo"])
@pytest.mark.parametrize(("beta", "off_policy"), [(0.0, False), (0.2, True)])
def test_loss_and_gradients_over_uneven_micro_batches_are_those_of_stock_trl_on_one_batch(
    folder: Path, tmp_path: Path, sequences: list[Sequence], packing: str, loss_type: str, beta: float, off_policy: bool
) -> None:
    from lightning_core.training.trainer import materialise

    settings = policy(
        packing=packing, loss_type=loss_type, beta=beta, epsilon=0.3, epsilon_high=0.6,
        steps_per_epoch=2 if off_policy else 1,
    )  # fmt: skip
    trainer = ours(folder, tmp_path, plan(sequences, settings), settings, reference=beta > 0)
    assert len(trainer._queue) > 2
    loss = accumulate(trainer)

    reference = stock(folder, tmp_path, settings)
    whole = MicroBatch([[s] for s in sequences], [1.0] * len(sequences), "none", 0)
    inputs = materialise(whole, sum(s.trained_tokens for s in sequences), off_policy)
    del inputs["layout"]
    if beta:
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        with torch.no_grad():
            logps, _, _ = reference._get_per_token_logps_and_entropies(
                reference.model, ids, mask, inputs["completion_ids"].size(1)
            )
        inputs["ref_per_token_logps"] = logps - 0.3
    expected = reference._compute_loss(reference.model, inputs)
    expected.backward()

    assert loss == pytest.approx(expected.item(), abs=1e-5)
    theirs = dict(reference.model.named_parameters())
    for name, parameter in trainer.model.named_parameters():
        scale = max(float(theirs[name].grad.abs().max()), 1e-3)
        assert float((parameter.grad - theirs[name].grad).abs().max()) <= 1e-5 * max(scale, 1.0), name


def test_the_loss_of_a_uniform_policy_is_what_a_hand_computes(folder: Path, tmp_path: Path) -> None:
    """All logits 0: every token has probability 1/300. Ratios to what sampled it, clipped at 1.2, by hand."""
    uniform = -math.log(300)
    row = make_sequence("r", "g", [([1, 2], [3, 4]), ([5], [6])])
    arrays = {
        "logprobs": np.array([0, 0, uniform - 0.5, uniform - 0.5, 0, uniform], np.float32),
        "advantages": np.array([0, 0, 2.0, -1.0, 0, 3.0], np.float32),
    }
    row = Sequence(**{**{k: v for k, v in vars(row).items() if k != "trained_tokens"}, **arrays})
    settings = policy(steps_per_epoch=2, beta=0.1)
    trainer = ours(folder, tmp_path, plan([row], settings), settings)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.zero_()
    trainer.reference = [scores + 0.7 for scores in trainer.score_all()]
    ratio = math.exp(0.5)
    clipped_gain, unclipped_loss, on_policy = -1.2 * 2.0, ratio * 1.0, -3.0
    # TRL weighs the KL estimate by the ratio, since the tokens were drawn by another policy.
    kl = (math.exp(0.7) - 0.7 - 1) * (ratio + ratio + 1) / 3
    expected = (clipped_gain + unclipped_loss + on_policy) / 3 + 0.1 * kl
    assert accumulate(trainer) == pytest.approx(expected, abs=1e-5)
    assert trainer._mismatch == [pytest.approx((0.5 + 0.5 + 0) / 3, abs=1e-5)]


def test_a_rollout_of_several_rows_weighs_as_much_as_one_of_a_single_row_even_with_kl(
    folder: Path, tmp_path: Path
) -> None:
    """Scaling advantages could not do this: the KL term has none."""
    rows = [make_sequence(f"r{i}", "g", [([1, 2], [3] * n)]) for i, n in enumerate((1, 4, 6))]
    merged = [Sequence(**{**{k: v for k, v in vars(s).items() if k != "trained_tokens"}, "rollout_id": r, "advantages": 0 * s.advantages})
              for s, r in zip(rows, ("one", "two", "two"), strict=True)]  # fmt: skip
    settings = policy(loss_type="grpo", beta=1.0)
    trainer = ours(folder, tmp_path, plan(merged, settings), settings)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.zero_()
    # The KL of rollout `one` is k(1), of both rows of `two` k(0): so the mean over rollouts is k(1) / 2.
    (batch,) = [batch for _, batch in trainer._queue]
    of_one = torch.tensor([[float(s.rollout_id == "one")] for s in batch.sequences])
    trainer.reference = [scores + of_one for scores in trainer.score_all()]
    assert accumulate(trainer) == pytest.approx((math.e - 2) / 2, abs=1e-5)


def test_the_hooks_have_the_signatures_they_are_overridden_with() -> None:
    import trl
    from trl import GRPOTrainer

    assert trl.__version__ == "1.16.0", "look at every override in trainer.py and scoring.py, then move this pin"
    scoring = list(inspect.signature(GRPOTrainer._get_per_token_logps_and_entropies).parameters)
    assert scoring[:5] == ["self", "model", "input_ids", "attention_mask", "logits_to_keep"]
    assert list(inspect.signature(GRPOTrainer._prepare_inputs).parameters) == ["self", "generation_batch"]
    assert list(inspect.signature(GRPOTrainer._compute_loss).parameters) == ["self", "model", "inputs"]
    assert list(inspect.signature(GRPOTrainer.training_step).parameters) == [
        "self",
        "model",
        "inputs",
        "num_items_in_batch",
    ]
    assert list(inspect.signature(GRPOTrainer.log).parameters) == ["self", "logs", "start_time"]
    assert hasattr(trl.trainer.utils, "_CHUNKED_LOGPROB_CHUNK_SIZE")


def test_trl_reads_no_input_that_the_trainer_does_not_give(
    folder: Path, tmp_path: Path, sequences: list[Sequence]
) -> None:
    class Recorded(dict[str, Any]):
        asked: set[str] = set()  # noqa: RUF012

        def __getitem__(self, key: str) -> Any:
            self.asked.add(key)
            return super().__getitem__(key)

    settings = policy()
    trainer = ours(folder, tmp_path, plan(sequences, settings), settings)
    inputs = Recorded(trainer._prepare_inputs({"number": 0}))
    trainer.current_gradient_accumulation_steps = 1
    trainer._compute_loss(trainer.model, inputs)
    assert Recorded.asked == {
        "prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "tool_mask", "advantages", "num_items_in_batch",
    }  # fmt: skip


def test_trls_loop_takes_its_inputs_from_the_plan_and_every_micro_batch_once(
    folder: Path, tmp_path: Path, sequences: list[Sequence], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = policy(steps_per_epoch=3)
    steps = plan(sequences, settings, steps=3)
    trainer = ours(folder, tmp_path, steps, settings)
    lines: list[dict[str, Any]] = []
    trainer.on_step = lines.append
    seen: list[int] = []
    prepare = type(trainer)._prepare_inputs
    monkeypatch.setattr(type(trainer), "_prepare_inputs", lambda self, b: seen.append(b["number"]) or prepare(self, b))
    trainer.train()
    assert seen == [n for n, (_, batch) in enumerate(trainer._queue) if batch is not None]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert [line["trained_tokens"] for line in lines] == [step.trained_tokens for step in steps]
    for line in lines:
        assert all(math.isfinite(line[name]) for name in ("loss", "grad_norm", "entropy", "clip_ratio", "mismatch"))
        assert line["kl"] is None
