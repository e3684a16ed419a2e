"""`algorithm: ppo`: loss and gradients against formulas written out in float64, and a critic that goes on like the policy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lightning_core.config import PolicySettings
from lightning_core.training import resident
from lightning_core.training.dataset import Sequence, read_sequences
from lightning_core.training.job import Job, Progress
from lightning_core.training.micro_batches import plan_steps
from lightning_core.training.state import name_state
from lightning_core.training.steps import StepPlan
from lightning_core.training.token_rows import token_scores, training_rows
from lightning_core.training.token_scores import put_trained
from lightning_core.training.train_job import run_job
from tests.tiny_model import make_tiny_llama
from tests.training_data import one_thread, random_group, with_critic
from tests.unit.test_training_resume import Dying, Killed, base, make_job, weights

__all__ = ["base", "make_job"]  # fixtures

pytestmark = pytest.mark.slow  # it trains


@pytest.fixture(scope="module", autouse=True)
def _trl() -> Iterator[None]:
    with one_thread():
        yield


@pytest.mark.parametrize("packing", ["tree", "none"])
@pytest.mark.parametrize("steps_before", [0, 5])
def test_loss_and_gradients_are_those_of_the_formulas_in_float64(
    tmp_path: Path, packing: str, steps_before: int
) -> None:
    """Two clips, of ratios and of values, both at work; tokens that sequences share count in each of them."""
    from lightning_core.training.scoring import why_not_packed
    from lightning_core.training.trainer import SequenceTrainer
    from lightning_core.training.weights import load_model, load_tokenizer

    folder = make_tiny_llama(tmp_path / "model")
    training = {"packing": packing, "steps_per_epoch": 2, "trl": {"epsilon": 0.2, "max_grad_norm": 1e9}}
    options = {"value_clip": 0.3, "warmup_steps": 3}
    policy = PolicySettings.model_validate({"algorithm": "ppo", "options": options, "training": training})
    rng = np.random.default_rng(3)
    sequences = [s for name, size in (("a", 5), ("b", 3)) for s in random_group(name, size, rng)]
    sequences = [_near(folder, s, rng) for s in sequences]
    scores = {
        name: {s.sequence_id: rng.normal(0, 0.4, s.trained_tokens).astype(np.float32) for s in sequences}
        for name in ("values", "returns", "advantages")
    }
    planned = plan_steps(
        sequences, steps=1, seed=0, packing=policy.training.packing, budget=60, loss_type="dapo", completion_limit=50,
        normalization="token",
    )  # fmt: skip
    model, tokenizer = load_model(folder), load_tokenizer(folder, 300)
    assert packing == "none" or why_not_packed(model, 100) is None
    plan = StepPlan()
    plan.taken_before = steps_before
    trainer = SequenceTrainer(model, tokenizer, planned, policy, scratch=tmp_path, step_plan=plan)
    head = torch.nn.init.normal_(trainer.part.head.weight, std=0.5).detach().clone()
    trainer.scores = scores
    width = len(trainer._queue)
    assert width > 2
    trainer.current_gradient_accumulation_steps = width
    trainer.accelerator.gradient_accumulation_steps = 1
    loss = sum(float(trainer.training_step(trainer.model, {"number": n}, None)) for n in range(width))

    expected, of_model, of_head = _in_float64(
        folder, sequences, scores, head, policy.options["value_clip"], steps_before >= 3
    )
    assert loss == pytest.approx(expected, abs=1e-5)
    for name, parameter in trainer.model.named_parameters():
        if name in of_model:
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            assert torch.allclose(gradient.double(), of_model[name], atol=1e-5), name
    assert torch.allclose(trainer.part.head.weight.grad.double(), of_head, atol=1e-6)
    assert (max(float(g.abs().max()) for g in of_model.values()) > 1e-3) == (steps_before >= 3), "else the critic alone"


def _near(folder: Path, sequence: Sequence, rng: np.random.Generator) -> Sequence:
    """The sequence with logprobs close to the model's own."""
    own = _logprobs(_float64(folder), sequence)[0].detach().numpy() + rng.normal(0, 0.3, sequence.trained_tokens)
    logprobs = np.zeros(len(sequence), np.float32)
    logprobs[sequence.loss_mask] = np.minimum(own, 0)
    return Sequence(**{k: v for k, v in vars(sequence).items() if k != "trained_tokens"} | {"logprobs": logprobs})


def _float64(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)


def _logprobs(model: Any, sequence: Sequence) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each trained token, and the hidden states that predict it."""
    ids = torch.tensor(sequence.token_ids.astype(np.int64))
    out = model(ids[None], output_hidden_states=True)
    places = torch.from_numpy(np.flatnonzero(sequence.loss_mask))
    scored = out.logits[0, places - 1].log_softmax(-1).gather(-1, ids[places, None]).squeeze(-1)
    return scored, out.hidden_states[-1][0, places - 1]


def _in_float64(
    folder: Path, sequences: list[Sequence], scores: Any, head: torch.Tensor, value_clip: float, policy_learns: bool
) -> tuple[float, dict[str, torch.Tensor], torch.Tensor]:
    """PPO's loss, a mean over all tokens: equations 7 (clip 0.2) and 9 of arXiv:1707.06347 without entropy, the critic's part times 0.1."""
    model = _float64(folder)
    weight = head.double().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    clipped = 0
    for s in sequences:
        logprobs, hidden = _logprobs(model, s)
        of = {name: torch.from_numpy(by[s.sequence_id]).double() for name, by in scores.items()}
        ratio = torch.exp(logprobs - torch.from_numpy(s.logprobs[s.loss_mask]).double())
        gain = torch.minimum(ratio * of["advantages"], ratio.clamp(0.8, 1.2) * of["advantages"])
        hidden = hidden.detach()
        values = (hidden / hidden.norm(dim=-1, keepdim=True)) @ weight[0]
        moved = of["values"] + (values - of["values"]).clamp(-value_clip, value_clip)
        wrong = torch.maximum((values - of["returns"]) ** 2, (moved - of["returns"]) ** 2)
        clipped += int((moved != values).sum()) + int((gain != ratio * of["advantages"]).sum())
        total = total + (wrong * 0.05 - (gain if policy_learns else 0 * gain)).sum()
    assert clipped > 5
    total = total / sum(s.trained_tokens for s in sequences)
    total.backward()
    assert weight.grad is not None
    gradients = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}
    return float(total), gradients, weight.grad


@pytest.fixture
def make_ppo(make_job: Callable[..., Job]) -> Callable[..., Job]:
    def make(algorithm: str = "ppo", options: dict[str, Any] | None = None, **fields: Any) -> Job:
        return with_critic(make_job(**fields), algorithm, options)

    return make


@pytest.mark.parametrize("lora", [False, True])
def test_an_epoch_ended_after_any_step_comes_to_the_same_weights_critic_and_scores(
    make_ppo: Callable[..., Job], tmp_path: Path, lora: bool
) -> None:
    calm = make_ppo(lora=lora, output=tmp_path / "calm", state=tmp_path / "calm-state")
    expected = run_job(calm, Progress(calm.progress))
    job = make_ppo(lora=lora)
    for at in (2, 4):
        with pytest.raises(Killed):
            run_job(job, Dying(job.progress, at))
    result = run_job(job, Progress(job.progress))
    assert weights(job.output) == weights(calm.output)
    assert _critic(job) == _critic(calm)
    assert token_scores(job.state) == token_scores(calm.state)
    assert result["value_loss"] == expected["value_loss"] > 0


def test_what_a_killed_try_wrote_is_no_row_of_a_training_by_another_algorithm(
    make_ppo: Callable[..., Job], make_job: Callable[..., Job]
) -> None:
    others: list[dict[str, Any]] = [{}, {"sft": {}}]
    for settings in others:
        job = make_ppo()
        with pytest.raises(Killed):
            run_job(job, Dying(job.progress, 3))
        assert training_rows(job.state) is not None and token_scores(job.state) is not None
        other = make_job(**settings)
        run_job(other, Progress(other.progress))
        assert token_scores(other.state) is None
        assert (training_rows(other.state) is None) == ("sft" in settings)


def test_the_critic_goes_on_from_epoch_to_epoch_and_is_in_no_version(
    make_ppo: Callable[..., Job], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the process of the last job, in a new one: the same. Its values come to say what a rollout will get."""
    options = {"value_learning_rate": 0.02, "value_clip": None, "normalize": False}
    found: list[Any] = []
    for number, stays in enumerate((False, True)):
        monkeypatch.setattr(resident, "stays", stays)
        errors: list[float] = []
        source: Path | None = None
        for epoch in range(3):
            fields: dict[str, Any] = {"output": tmp_path / f"{number}-{epoch}", "state": tmp_path / f"state-{number}"}
            fields |= {"epoch": epoch, "epochs": 3, "weights": source, "made_in": epoch - 1 if epoch else None}
            job = make_ppo(options=options, version=f"v{epoch:04d}", **fields)
            run_job(job, Progress(job.progress))
            resident.finish()
            name_state(job.state, epoch, f"v{epoch + 1:04d}")
            errors.append(_error(job))
            source = job.output
            assert (
                load_file(next(job.output.glob("*.safetensors"))).keys()
                == load_file(next(base.glob("*.safetensors"))).keys()
            )
        found.append((weights(job.output), _critic(job), errors))
    assert found[0] == found[1]
    assert errors[0] > errors[1] > errors[2]
    scores = token_scores(job.state)
    assert scores is not None
    assert {(row["name"], row["by_sql"]) for row in scores.to_pylist()} == {
        ("logprobs", False), ("values", False), ("advantages", True), ("returns", True),
    }  # fmt: skip


def test_advantages_that_the_sql_made_are_what_is_trained_with(make_ppo: Callable[..., Job]) -> None:
    job = make_ppo(options={"normalize": False})
    rows = read_sequences(job.sequences, policy="policy", vocabulary=300, max_tokens=512).rows
    run_job(job, Progress(job.progress))
    scores = token_scores(job.state)
    assert scores is not None
    made = {row["sequence_id"]: row["numbers"] for row in scores.to_pylist() if row["name"] == "advantages"}
    # At first all values are 0, so each token's advantage is the reward.
    assert made == {s.sequence_id: [float(s.token_ids[s.prompt_length] % 2 == 0)] * s.trained_tokens for s in rows}


def test_numbers_go_to_the_places_of_the_trained_tokens() -> None:
    rng = np.random.default_rng(1)
    sequences = random_group("a", 3, rng)
    (step,) = plan_steps(
        sequences,
        steps=1,
        seed=0,
        packing="none",
        budget=1000,
        loss_type="dapo",
        completion_limit=50,
        normalization="token",
    )
    (batch,) = step.micro_batches
    target = torch.zeros(3, max(len(s) - s.prompt_length for s in sequences))
    put_trained(batch, {s.sequence_id: np.arange(1, s.trained_tokens + 1, dtype=np.float32) for s in sequences}, target)
    for row, s in zip(target, batch.sequences, strict=True):
        trained = s.loss_mask[s.prompt_length :]
        assert row[: len(trained)][torch.from_numpy(trained)].tolist() == list(range(1, s.trained_tokens + 1))
        assert float(row.sum()) == s.trained_tokens * (s.trained_tokens + 1) / 2


def _error(job: Job) -> float:
    """Mean squared difference of values and returns."""
    scores = token_scores(job.state)
    assert scores is not None
    found: dict[str, list[float]] = {"values": [], "returns": []}
    for row in scores.to_pylist():
        found.setdefault(row["name"], []).extend(row["numbers"])
    return float(np.square(np.subtract(found["values"], found["returns"])).mean())


def _critic(job: Job) -> bytes:
    return (job.state / f"epoch-{job.epoch:04d}" / "part.safetensors").read_bytes()
