"""An epoch that was ended after any step goes on after it, and comes to the same weights; bad input ends before the first."""

from __future__ import annotations

import gc
import itertools
import json
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_core.policies.probe import ASKED
from lightning_core.training import checkpoint as checkpoint_module
from lightning_core.training import resident, steps, train_job
from lightning_core.training.checkpoint import Checkpoints, forget_other_boots
from lightning_core.training.dataset import Sequence
from lightning_core.training.errors import TrainingDataError, TrainingError, WeightsError
from lightning_core.training.hardware import settled
from lightning_core.training.job import Job, Progress
from lightning_core.training.token_rows import training_rows
from lightning_core.training.train_job import run_job
from lightning_core.training.weights import load_model
from tests.tiny_model import make_tiny_llama
from tests.training_data import make_sequence, one_thread, random_group, write_parquet

pytestmark = pytest.mark.slow  # it trains


@pytest.fixture(scope="module", autouse=True)
def _trl() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("model"), positions=256)


@pytest.fixture
def make_job(tmp_path: Path, base: Path) -> Callable[..., Job]:
    rng = np.random.default_rng(7)
    rows = [s for size, name in enumerate("abcd", 2) for s in random_group(name, size, rng)]
    sequences = write_parquet(rows, tmp_path / "sequences.parquet")

    def make(
        *, lora: bool = False, training: dict[str, Any] | None = None, sft: dict[str, Any] | None = None, **fields: Any
    ) -> Job:
        always = {"learning_rate": 1e-3, "steps_per_epoch": 4, "checkpoint_seconds": 0, "tokens_per_micro_batch": 64}
        settings: dict[str, Any] = {"training": always | (training or {})}
        if sft is not None:
            settings |= {"algorithm": "sft", "sft": sft}
        if lora:
            settings["lora"] = {"rank": 4, "alpha": 8, "dropout": 0.2}
        values: dict[str, Any] = {
            "run": "r", "epoch": 0, "policy": "policy", "policy_settings": settings, "base_model": base, "epochs": 2,
            "sequences": sequences, "output": tmp_path / "v0001", "state": tmp_path / "state",
            "progress": tmp_path / "progress.jsonl",
        }  # fmt: skip
        return Job.model_validate(values | fields)

    return make


class Killed(BaseException):
    pass


class Dying(Progress):
    """Ends the job when it says that step `at` is taken: what it would do after that is not done."""

    def __init__(self, path: Path, at: int) -> None:
        super().__init__(path)
        self.at = at
        self.resumed: int | None = None

    def write(self, line: dict[str, Any]) -> None:
        self.resumed = line.get("resumed_at", self.resumed)
        if line.get("step") == self.at:
            raise Killed
        super().write(line)


def weights(folder: Path) -> bytes:
    (file,) = folder.glob("*.safetensors")
    return file.read_bytes()


@pytest.mark.parametrize(
    "kind",
    [
        {"training": {"lr_schedule": "linear", "warmup_steps": 2, "normalization": "rollout"}},
        {
            "lora": True,
            "training": {
                "trl": {"use_adaptive_entropy": True, "entropy_coef": 0.1, "entropy_target": 9.0},
                "importance_correction": "token_truncate",
            },
        },
        {"training": {"beta": 0.1, "kl_reference": "previous", "importance_correction": "rollout_truncate"}},
        {"training": {"min_groups_per_step": 2, "max_passes": 2, "importance_correction": "rollout_truncate"}},
        {"training": {"trl": {"top_entropy_quantile": 0.5}, "beta": 0.1, "packing": "none"}},
        {"sft": {"passes": 2}, "training": {"steps_per_epoch": 2, "lr_schedule": "cosine", "warmup_steps": 3}},
        {"sft": {}, "lora": True},
        {"training": {"optimizer": "adamw_8bit"}},
    ],
    ids=[
        "full",
        "adapter-with-dropout",
        "corrected",
        "passes",
        "uncertain-tokens",
        "sft",
        "sft-adapter-with-dropout",
        "8-bit",
    ],
)
def test_an_epoch_ended_after_any_step_comes_to_the_same_weights_bit_for_bit(
    make_job: Callable[..., Job], tmp_path: Path, kind: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # torchao compiles its step for each shape, nearly a minute on a CPU; the function itself is the same.
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    calm = make_job(**kind, output=tmp_path / "calm", state=tmp_path / "calm-state")
    expected = run_job(calm, Progress(calm.progress))
    job = make_job(**kind)
    for at, resumed in ((2, None), (3, 1), (4, 2)):
        progress = Dying(job.progress, at)
        with pytest.raises(Killed):
            run_job(job, progress)
        assert progress.resumed == resumed
        assert not job.output.exists()
    last = Dying(job.progress, 99)
    result = run_job(job, last)
    assert last.resumed == 3
    assert weights(job.output) == weights(calm.output)
    rows, of_calm = training_rows(job.state), training_rows(calm.state)
    assert rows == of_calm and (rows is None) == ("sft" in kind)
    same: tuple[str, ...] = (
        "loss",
        "grad_norm",
        "kl",
        "entropy",
        "entropy_coef",
        "mismatch",
        "learning_rate",
        "step",
        "trained_tokens",
    )
    same += ("importance_ratio", "importance_bounded", "ratio", "clip_ratio")
    assert {name: result.get(name) for name in same} == {name: expected.get(name) for name in same}


@pytest.mark.parametrize("change", ["settings", "checkpoint.json", "optimizer.pt", "weights.safetensors"])
def test_a_checkpoint_of_other_settings_or_half_written_is_left_and_told(
    make_job: Callable[..., Job], caplog: Any, change: str
) -> None:
    job = make_job()
    with pytest.raises(Killed):
        run_job(job, Dying(job.progress, 3))
    (checkpoint,) = (job.state / "unfinished").iterdir()
    assert checkpoint.name == "step-0002"
    if change == "settings":
        job = make_job(training={"trl": {"weight_decay": 0.1}})
    else:
        file = checkpoint / change
        file.write_bytes(file.read_bytes()[:50])
    progress = Dying(job.progress, 2)
    with pytest.raises(Killed):
        run_job(job, progress)
    assert progress.resumed is None
    assert "a checkpoint of another job, or half written" in caplog.text


def test_a_checkpoint_from_before_the_machine_was_started_is_not_trusted(
    make_job: Callable[..., Job], caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job()
    with pytest.raises(Killed):
        run_job(job, Dying(job.progress, 3))
    (checkpoint,) = (job.state / "unfinished").iterdir()
    forget_other_boots(job.state)
    assert checkpoint.exists()
    monkeypatch.setattr(checkpoint_module, "boot", lambda: "another")
    assert Checkpoints(settled(job), 4).newest() is not None, "ranks on several machines all go on from it"
    forget_other_boots(job.state)
    assert not checkpoint.exists() and "from before this machine was started" in caplog.text


@pytest.mark.parametrize(("seconds", "found"), [(25, ["step-0003"]), (5, ["step-0001"]), (None, [])])
def test_checkpoints_are_as_far_apart_as_asked_and_take_a_twentieth_of_the_time(
    make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch, seconds: float | None, found: list[str]
) -> None:
    clock = itertools.count(step=10.0)  # each step looks at it once, and so does a checkpoint: it takes 10 s
    monkeypatch.setattr(steps, "monotonic", lambda: next(clock))
    job = make_job(training={"checkpoint_seconds": seconds})
    with pytest.raises(Killed):
        run_job(job, Dying(job.progress, 4))
    assert [p.name for p in (job.state / "unfinished").glob("*")] == found


def test_a_checkpoint_is_gone_on_from_on_another_device_and_whatever_is_asked_of_the_next(
    make_job: Callable[..., Job],
) -> None:
    job = make_job(device="0", beside=1)
    with pytest.raises(Killed):
        run_job(job, Dying(job.progress, 3))
    progress = Dying(job.progress, 4)
    with pytest.raises(Killed):
        run_job(make_job(device="1", beside=2, training={"checkpoint_seconds": 5}), progress)
    assert progress.resumed == 2


def test_what_a_kill_within_a_checkpoint_left_behind_is_removed(make_job: Callable[..., Job]) -> None:
    job = make_job()
    half = job.state / "unfinished" / ".step-0002.dead.partial"
    half.mkdir(parents=True)
    assert Checkpoints(settled(job), 4).newest() is None
    assert not half.exists()


def test_a_run_made_longer_keeps_its_checkpoint_unless_the_rate_is_scheduled_over_it(
    make_job: Callable[..., Job],
) -> None:
    def of(epochs: int, schedule: str) -> str:
        return Checkpoints(make_job(epochs=epochs, training={"lr_schedule": schedule}), 4).belongs_to

    assert of(2, "constant") == of(8, "constant")
    assert of(2, "linear") != of(8, "linear")


def rows(*lengths: int, tokens: int = 3) -> list[Sequence]:
    return [make_sequence(f"r{i}", "g", [([1] * n, [tokens, 4])]) for i, n in enumerate(lengths)]


def test_one_sequence_is_trained_on(make_job: Callable[..., Job], tmp_path: Path) -> None:
    job = make_job(sequences=write_parquet(rows(5), tmp_path / "one.parquet"))
    result = run_job(job, Progress(job.progress))
    assert (result["sequences"], result["steps"], result["trained_tokens"]) == (1, 1, 2)


def test_the_reference_is_gone_before_the_weights_come(
    make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    before: list[weakref.ref[Any]] = []

    def alone(*arguments: Any) -> Any:
        assert not [model for model in before if model() is not None]
        model = load_model(*arguments)
        before.append(weakref.ref(model))
        return model

    for module in (resident, train_job):
        monkeypatch.setattr(module, "load_model", alone)
    gc.disable()
    try:
        job = make_job(training={"beta": 0.1})
        run_job(job, Progress(job.progress))
    finally:
        gc.enable()
    assert len(before) == 2


@pytest.mark.parametrize(
    ("sequences", "replaced", "message"),
    [
        ([], {}, "no sequences; nothing of this epoch can be trained on"),
        (rows(300, 400), {}, "all 2 sequences were left out.*`too_long` means more than 256 tokens"),
        (rows(5, tokens=300), {}, "token id 300 is outside the model's vocabulary .0..299.; was it sampled by another"),
        (rows(5), {"advantages": [[float("nan")] * 7]}, "`advantages` is nan at token 5"),
        (rows(5), {"logprobs": [[float("-inf")] * 7]}, "`logprobs` is -inf at token 5"),
        (rows(5), {"logprobs": [[0.0] * 7]}, r"[56]\.\d nats less likely to these weights than their logprobs say: another model"),
    ],
    ids=["empty", "too long", "beyond the vocabulary", "NaN advantages", "infinite logprobs", "another tokenizer"],
)  # fmt: skip
def test_bad_sequences_are_told_before_the_first_step_and_leave_nothing(
    make_job: Callable[..., Job], tmp_path: Path, sequences: list[Sequence], replaced: dict[str, Any], message: str
) -> None:
    job = make_job(sequences=write_parquet(sequences, tmp_path / "bad.parquet", **replaced))
    with pytest.raises(TrainingDataError, match=message):
        run_job(job, Progress(job.progress))
    assert not job.output.exists() and not job.state.exists()
    assert '"step"' not in job.progress.read_text()


def test_sequences_longer_than_the_model_are_left_out_and_counted(make_job: Callable[..., Job], tmp_path: Path) -> None:
    job = make_job(sequences=write_parquet(rows(5, 6, 300), tmp_path / "some.parquet"))
    result = run_job(job, Progress(job.progress))
    assert (result["sequences"], result["left_out"]) == (2, {"too_long": 1})


def test_an_epoch_whose_scheduled_rate_has_fallen_to_nothing_is_refused(make_job: Callable[..., Job]) -> None:
    job = make_job(epoch=2, epochs=2, training={"lr_schedule": "cosine"})
    with pytest.raises(TrainingError, match=r"`lr_schedule: cosine` .* 0 at the end of `epochs` 2, .*epoch 2"):
        run_job(job, Progress(job.progress))
    assert '"step"' not in job.progress.read_text()


def rates(job: Job) -> list[float]:
    run_job(job, Progress(job.progress))
    lines = map(json.loads, job.progress.read_text().splitlines())
    return [line["learning_rate"] for line in lines if "step" in line]


@pytest.mark.parametrize("sft", [None, {}], ids=["grpo", "sft"])
def test_epochs_that_had_nothing_to_train_on_do_not_use_up_the_warm_up(
    make_job: Callable[..., Job], tmp_path: Path, sft: dict[str, Any] | None
) -> None:
    warming = {"warmup_steps": 5, "learning_rate": 1.0e-3}
    first = make_job(epoch=2, epochs=8, training=warming, sft=sft)
    assert rates(first) == pytest.approx([0.2e-3, 0.4e-3, 0.6e-3, 0.8e-3])
    later = make_job(epoch=5, made_in=2, epochs=8, training=warming, sft=sft, progress=tmp_path / "later.jsonl")
    assert rates(later) == pytest.approx([1.0e-3] * 4)


def test_a_checkpoint_of_another_model_is_refused(make_job: Callable[..., Job], tmp_path: Path) -> None:
    other = make_tiny_llama(tmp_path / "other", layers=1)
    with pytest.raises(
        WeightsError, match="a checkpoint of another model: its `num_hidden_layers` is 1, the base model's 2"
    ):
        run_job(make_job(weights=other, epoch=1), Progress(tmp_path / "progress.jsonl"))


def test_an_adapter_of_another_model_is_refused(make_job: Callable[..., Job], tmp_path: Path) -> None:
    other = make_tiny_llama(tmp_path / "other", hidden=32)
    adapter = make_job(lora=True, base_model=other, output=tmp_path / "adapter", state=tmp_path / "other-state")
    run_job(adapter, Progress(adapter.progress))
    job = make_job(lora=True, weights=adapter.output, epoch=1)
    with pytest.raises(TrainingError, match=r"peft cannot load the adapter|does not fit the base model"):
        run_job(job, Progress(job.progress))
    assert not job.output.exists()


@pytest.mark.parametrize("kind", [{}, {"sft": {}}], ids=["policy-gradients", "examples"])
def test_logits_are_never_whole(
    make_job: Callable[..., Job], kind: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 150,000 words, those of a micro-batch of 16,000 tokens would be 10 GB."""
    rows = []
    forward = torch.nn.Linear.forward

    def noted(module: torch.nn.Linear, hidden: torch.Tensor) -> torch.Tensor:
        if module.out_features == 300:  # the vocabulary
            rows.append(hidden.numel() // hidden.shape[-1])
        return forward(module, hidden)

    monkeypatch.setattr(torch.nn.Linear, "forward", noted)
    job = make_job(**kind, training={"tokens_per_micro_batch": 4096, "steps_per_epoch": 1})
    run_job(job, Progress(job.progress))
    assert rows and max(rows) <= ASKED + 1, "the probe alone"
