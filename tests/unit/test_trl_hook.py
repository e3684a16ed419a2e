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
from lightning_core.config.trl import PASSED
from lightning_core.training.dataset import Sequence
from lightning_core.training.micro_batches import MicroBatch, Step, plan_steps
from lightning_core.training.steps import StepPlan
from tests.tiny_model import make_tiny_llama
from tests.training_data import one_thread, random_group

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


@pytest.fixture(scope="module")
def near(folder: Path, sequences: list[Sequence]) -> list[Sequence]:
    """The sequences with logprobs close to the model's own, so that ratios fall on both sides of every bound; an
    advantage for each token."""
    from trl.trainer.utils import add_fused_lm_head

    from lightning_core.training.trainer import score_queue

    model, _ = load(folder)
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    rng = np.random.default_rng(2)
    rows = []
    for s in sequences:
        batch = MicroBatch([[s]], [1.0], "none", 0)
        ((logps, _),) = score_queue(model, [batch], torch.device("cpu"))
        own = np.concatenate([np.zeros(s.prompt_length), logps[0].numpy()])
        logprobs = np.minimum(own + rng.normal(0, 0.4, len(s)) + rng.normal(0, 0.3), 0.0)
        advantages = rng.normal(0, 1) + rng.normal(0, 0.1, len(s))
        rows.append(
            changed(s, logprobs=np.where(s.loss_mask, logprobs, 0), advantages=np.where(s.loss_mask, advantages, 0))
        )
    return rows


def changed(sequence: Sequence, **arrays: Any) -> Sequence:
    arrays = {
        name: value.astype(np.float32) if isinstance(value, np.ndarray) else value for name, value in arrays.items()
    }
    return Sequence(**{k: v for k, v in vars(sequence).items() if k != "trained_tokens"} | arrays)


def load(folder: Path) -> tuple[Any, Any]:
    from lightning_core.training.weights import load_model, load_tokenizer

    return load_model(folder), load_tokenizer(folder, 300)


def policy(**training: Any) -> PolicySettings:
    """Settings of TRL's (epsilon, …) may stand beside the others here."""
    trl = {"max_grad_norm": 1e9} | {name: value for name, value in training.items() if name in PASSED}
    ours = {name: value for name, value in training.items() if name not in PASSED}
    return PolicySettings.model_validate({"training": ours | {"trl": trl}})


def plan(sequences: list[Sequence], settings: PolicySettings, **overrides: Any) -> list[Step]:
    training = settings.training
    options: dict[str, Any] = {"steps": 1, "seed": 0, "packing": training.packing, "budget": 60}
    options |= {"loss_type": training.loss_type, "completion_limit": LIMIT, "normalization": training.normalization}
    return plan_steps(sequences, **(options | overrides))


def ours(folder: Path, tmp_path: Path, steps: list[Step], settings: PolicySettings) -> Any:
    """Our trainer; where there is a KL, its reference is what the model says, less 0.3."""
    from lightning_core.training.correction import look
    from lightning_core.training.scoring import why_not_packed
    from lightning_core.training.trainer import SequenceTrainer

    model, tokenizer = load(folder)
    if settings.training.packing != "none":
        assert why_not_packed(model, 100) is None
    trainer = SequenceTrainer(model, tokenizer, steps, settings, scratch=tmp_path, step_plan=StepPlan())
    reference = [logps - 0.3 for logps, _ in trainer.score_all()] if settings.training.beta else None
    trainer.starts, trainer.informative = look(trainer, reference, False)
    return trainer


def stock(folder: Path, tmp_path: Path, settings: PolicySettings) -> Any:
    """TRL's own trainer with the settings under TRL's names."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    model, tokenizer = load(folder)
    training = settings.training
    arguments = GRPOConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=2, num_generations=2, gradient_accumulation_steps=1,
        max_completion_length=LIMIT, bf16=False, gradient_checkpointing=False, report_to="none", use_cpu=True,
        loss_type=training.loss_type, **training.trl | {"importance_sampling_level": training.ratio_level},
    )  # fmt: skip
    trainer = GRPOTrainer(
        model, reward_funcs=lambda **_: [], args=arguments, train_dataset=Dataset.from_dict({"prompt": ["a"] * 4}),
        processing_class=tokenizer,
    )  # fmt: skip
    trainer.current_gradient_accumulation_steps = 1
    trainer.beta = training.beta
    model.train()
    return trainer


def accumulate(trainer: Any) -> float:
    """Loss summed over the micro-batches of the only step; gradients are left on the model."""
    width = len(trainer._queue)
    trainer.current_gradient_accumulation_steps = width
    trainer.accelerator.gradient_accumulation_steps = 1
    trainer.model.zero_grad()
    return sum(float(trainer.training_step(trainer.model, {"number": n}, None)) for n in range(width))


def stock_loss(trainer: Any, sequences: list[Sequence], training: Any) -> torch.Tensor:
    """The same sequences as one batch of TRL's own, with logprobs, ratios and reference by TRL's rules."""
    from lightning_core.training.inputs import materialise

    whole = MicroBatch([[s] for s in sequences], [1.0] * len(sequences), "none", 0)
    inputs = materialise(whole, sum(s.trained_tokens for s in sequences), training.steps_per_epoch > 1)
    del inputs["layout"]
    sampled = inputs["sampling_per_token_logps"]
    if training.beta or training.corrected:
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        with torch.no_grad():
            logps, _, _ = trainer._get_per_token_logps_and_entropies(
                trainer.model, ids, mask, inputs["completion_ids"].size(1)
            )
        inputs["ref_per_token_logps"] = logps - (0.3 if training.kl_reference == "base" else 0.0)
        if training.corrected:
            level, bound = training.importance_correction.split("_")
            difference = (logps - sampled) * inputs["tool_mask"]
            ratio = torch.exp(difference.sum(-1, keepdim=True) if level == "rollout" else difference)
            low, high = training.importance_clip_min or 0.0, training.importance_clip_max
            outside = (ratio < low) | (ratio > high)
            ratio = ratio.clamp(low, high) if bound == "truncate" else ratio.masked_fill(outside, 0.0)
            inputs["importance_sampling_ratio"] = ratio
            trainer.use_vllm = trainer.vllm_importance_sampling_correction = True
            if "old_per_token_logps" in inputs:
                inputs["old_per_token_logps"] = logps
    loss: torch.Tensor = trainer._compute_loss(trainer.model, inputs)
    return loss


def assert_equal_to_stock(folder: Path, tmp_path: Path, sequences: list[Sequence], settings: PolicySettings) -> None:
    trainer = ours(folder, tmp_path, plan(sequences, settings), settings)
    assert len(trainer._queue) > 2
    loss = accumulate(trainer)
    reference = stock(folder, tmp_path, settings)
    expected = stock_loss(reference, sequences, settings.training)
    expected.backward()
    assert loss == pytest.approx(expected.item(), abs=1e-5)
    theirs = dict(reference.model.named_parameters())
    largest = max(float(p.grad.abs().max()) for p in theirs.values())
    assert largest > 1e-3
    for name, parameter in trainer.model.named_parameters():
        assert float((parameter.grad - theirs[name].grad).abs().max()) <= 1e-5 * largest, name


LOSSES: dict[str, dict[str, Any]] = {
    "grpo": {"epsilon": 0.3, "epsilon_high": 0.6},
    "dr_grpo": {"epsilon": 0.3, "epsilon_high": 0.6},
    "dapo": {"epsilon": 0.3, "epsilon_high": 0.6, "delta": 2.0},
    "bnpo": {"epsilon": 0.3},
    "cispo": {"epsilon_high": 2.0},
    "sapo": {"sapo_temperature_pos": 0.8, "sapo_temperature_neg": 1.3},
    "luspo": {"epsilon": 0.3},
    "vespo": {"vespo_k_pos": 1.5, "vespo_lambda_pos": 1.0, "vespo_k_neg": 0.5, "vespo_lambda_neg": 0.7},
    "gspo": {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.3},
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    ("packing", "beta", "off_policy"),
    [("tree", 0.0, False), ("tree", 0.2, True), ("concat", 0.2, True), ("none", 0.2, True)],
)
def test_loss_and_gradients_over_uneven_micro_batches_are_those_of_stock_trl_on_one_batch(
    folder: Path, tmp_path: Path, near: list[Sequence], packing: str, loss: str, beta: float, off_policy: bool
) -> None:
    kind = {"loss_type": loss} | LOSSES[loss]
    if not off_policy:  # the ratio is 1: what bends it alone is refused
        kind = {name: value for name, value in kind.items() if name in ("loss_type", "importance_sampling_level")}
        kind |= {"epsilon_high": 0.5} if loss == "cispo" else {}  # a limit below 1 is none of that
    settings = policy(**kind, packing=packing, beta=beta, steps_per_epoch=2 if off_policy else 1)
    assert_equal_to_stock(folder, tmp_path, near, settings)


@pytest.mark.parametrize(
    "training",
    [
        {"importance_correction": "token_truncate", "importance_clip_max": 1.5},
        {"importance_correction": "token_mask", "importance_clip_min": 0.5, "importance_clip_max": 1.5, "loss_type": "grpo"},
        {"importance_correction": "rollout_truncate", "importance_clip_max": 1.2, "beta": 0.1},
        {"importance_correction": "rollout_mask", "importance_clip_max": 1.5, "importance_clip_min": 0.2, "loss_type": "sapo"},
        {"importance_correction": "token_truncate", "loss_type": "vespo", "steps_per_epoch": 2},
        {"importance_correction": "rollout_truncate", "loss_type": "cispo", "epsilon_high": 2.0, "steps_per_epoch": 2},
        {"off_policy_mask_threshold": 0.05, "loss_type": "grpo", "steps_per_epoch": 2},
        {"top_entropy_quantile": 0.3, "beta": 0.1, "steps_per_epoch": 2},
        {"top_entropy_quantile": 0.3, "entropy_coef": 0.5, "loss_type": "dr_grpo"},
        {"entropy_coef": 0.5, "loss_type": "grpo"},
        {"entropy_coef": 0.5, "loss_type": "sapo", "steps_per_epoch": 2},
        {"beta": 0.3, "use_bias_correction_kl": False, "loss_type": "luspo"},
        {"beta": 0.3, "kl_reference": "previous", "steps_per_epoch": 2},
    ],
    ids=lambda training: "-".join(str(value) for value in training.values()),
)  # fmt: skip
def test_what_bends_a_loss_bends_it_as_in_stock_trl(
    folder: Path, tmp_path: Path, near: list[Sequence], training: dict[str, Any]
) -> None:
    assert_equal_to_stock(folder, tmp_path, near, policy(**training))


@pytest.mark.parametrize(
    "training",
    [
        {"importance_correction": "token_truncate", "importance_clip_max": 1.5},
        {"importance_correction": "token_mask", "importance_clip_max": 1.5, "loss_type": "cispo"},
        {"importance_correction": "token_mask", "importance_clip_max": 1.5, "loss_type": "vespo"},
        {"importance_correction": "token_truncate", "importance_clip_max": 1.5, "bf16": True},
    ],
    ids=lambda training: "-".join(str(value) for value in training.values()),
)
def test_the_first_step_weighs_by_its_own_logprobs_as_by_those_of_a_pass_before_it(
    folder: Path, tmp_path: Path, near: list[Sequence], monkeypatch: pytest.MonkeyPatch, training: dict[str, Any]
) -> None:
    from lightning_core.training import trainer as trainer_module
    from lightning_core.training.inputs import Start

    settings = policy(**training)

    def gradients(trainer: Any) -> torch.Tensor:
        return torch.cat([p.grad.flatten() for p in trainer.model.parameters()])

    before = ours(folder, tmp_path, plan(near, settings), settings)
    before.starts = [Start(logps=logps) for logps, _ in before.score_all()]
    expected = accumulate(before)
    monkeypatch.setattr(trainer_module, "score_queue", lambda *_: pytest.fail("a pass of its own"))
    within = ours(folder, tmp_path, plan(near, settings), settings)
    assert accumulate(within) == pytest.approx(expected, abs=1e-6)
    largest = float(gradients(before).abs().max())
    assert largest > 1e-3
    assert float((gradients(within) - gradients(before)).abs().max()) <= 1e-6 * largest
    assert within._sums == pytest.approx(before._sums, rel=1e-6)
    trained = sum(s.trained_tokens for s in near)
    assert 0.5 < within._sums["importance_ratio"] / trained < 1.5
    assert 0.05 < within._sums["importance_bounded"] / trained < 0.5


def test_only_steps_after_the_first_have_stored_logprobs(
    folder: Path, tmp_path: Path, near: list[Sequence], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = policy(bf16=True, importance_correction="token_truncate", steps_per_epoch=2)
    trainer = ours(folder, tmp_path, plan(near, settings, steps=2), settings)
    stored = [start.logps is not None for start in trainer.starts]
    assert stored == [step is not trainer.planned[0] for step, _ in trainer._queue]
    seen: list[torch.Tensor] = []
    measure = trainer._measure

    def measured(logps: torch.Tensor, *args: Any) -> None:
        seen.append(logps)
        measure(logps, *args)

    trainer._measure = measured
    # As nothing is learned, the second step finds what was stored: in bf16 too.
    monkeypatch.setattr(trainer.step_plan, "rate", lambda *_: 0.0)
    trainer.train()
    later = [
        start.logps
        for start, (_, batch) in zip(trainer.starts, trainer._queue, strict=True)
        if start.logps is not None and batch is not None
    ]
    assert later
    for before, within in zip(later, seen[-len(later) :], strict=True):
        torch.testing.assert_close(within, before, atol=1e-6, rtol=0)


def test_the_hooks_have_the_signatures_they_are_overridden_with() -> None:
    import trl
    from trl import GRPOTrainer

    assert trl.__version__ == "1.16.0", (
        "look at every override in trl_bridge.py, trainer.py and steps.py, then move this pin"
    )
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
    assert list(inspect.signature(GRPOTrainer.create_accelerator_and_postprocess).parameters) == ["self"]
    assert list(inspect.signature(GRPOTrainer.get_optimizer_cls_and_kwargs).parameters) == ["args", "model"]
    assert list(inspect.signature(GRPOTrainer.get_high_entropy_mask).parameters) == [
        "self",
        "entropies",
        "mask",
        "threshold",
    ]
    for weighed in (GRPOTrainer.get_off_policy_mask, GRPOTrainer.get_gamma_weights):
        assert "mask" in inspect.signature(weighed).parameters
    assert "_entropy_bonus_enabled" in inspect.getsource(GRPOTrainer)
    assert hasattr(trl.trainer.utils, "_CHUNKED_LOGPROB_CHUNK_SIZE")
    assert hasattr(trl.trainer.utils, "add_fused_lm_head")


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
    trainer.step_plan.on_step = lambda _, line: lines.append(line)
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
