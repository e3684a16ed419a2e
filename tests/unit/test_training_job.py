"""A training job, run in this process: what it writes, what it carries over, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_core.training import new_version
from lightning_core.training.errors import TrainingDataError, TrainingError, WeightsError
from lightning_core.training.job import Job, Progress
from lightning_core.training.train_job import run_job
from lightning_core.training.weights import check_model_folder
from tests.tiny_model import make_tiny_llama
from tests.training_data import make_sequence, one_thread, random_group, write_parquet

pytestmark = pytest.mark.slow  # it trains


@pytest.fixture(scope="module", autouse=True)
def _trl() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def sequences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(7)
    rows = [s for name in "abc" for s in random_group(name, 3, rng)]
    return write_parquet(rows, tmp_path_factory.mktemp("data") / "sequences.parquet")


@pytest.fixture
def make_job(tmp_path: Path, base: Path, sequences: Path) -> Any:
    def make(epoch: int, *, lora: bool = False, training: dict[str, Any] | None = None, **fields: Any) -> Job:
        settings: dict[str, Any] = {"training": {"learning_rate": 1e-3, "steps_per_epoch": 2, **(training or {})}}
        if lora:
            settings["lora"] = {"rank": 4, "alpha": 8, "dropout": 0.1}
        values: dict[str, Any] = {
            "run": "r",
            "epoch": epoch,
            "policy": "policy",
            "policy_settings": settings,
            "base_model": base,
            "weights": tmp_path / f"v{epoch - 1:04d}" if epoch else None,
            "made_in": epoch - 1 if epoch else None,
            "sequences": sequences,
            "output": tmp_path / f"v{epoch:04d}",
            "state": tmp_path / "state",
            "progress": tmp_path / "progress.jsonl",
        }
        return Job.model_validate(values | fields)

    return make


def run(job: Job) -> dict[str, Any]:
    return run_job(job, Progress(job.progress))


def digest(folder: Path, name: str = "model.safetensors") -> str:
    return hashlib.sha256((folder / name).read_bytes()).hexdigest()


def lines(job: Job) -> list[dict[str, Any]]:
    return [json.loads(line) for line in job.progress.read_text().splitlines()]


def test_a_job_writes_a_version_that_loads_and_keeps_config_and_tokenizer_as_they_were(
    make_job: Any, base: Path
) -> None:
    from lightning_core.training.weights import load_model, load_tokenizer

    job = make_job(0)
    result = run(job)
    assert json.loads((job.output / "training.json").read_text()) == result
    assert (result["steps"], result["sequences"], result["packing"], result["step"]) == (2, 9, "tree", 2)
    assert 0 < result["unique_share"] < 1 and result["trained_tokens"] < result["tokens"]
    assert set(result["seconds"]) >= {"importing", "loading", "packing", "training", "saving"}
    assert digest(job.output) != digest(base)
    for name in (
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    ):
        assert (job.output / name).read_bytes() == (base / name).read_bytes()
    assert load_model(job.output).config.vocab_size == len(load_tokenizer(job.output, 300))
    phases = [line["phase"] for line in lines(job) if "phase" in line]
    assert phases == ["checking", "importing", "loading", "packing", "preparing", "training", "saving"]
    assert [line["step"] for line in lines(job) if "step" in line] == [1, 2]


def test_an_epoch_that_is_tried_again_gives_the_same_weights_bit_for_bit(make_job: Any) -> None:
    run(make_job(0))
    run(make_job(1))
    first = digest(make_job(1).output)
    assert run(make_job(1))["step"] == 4
    assert digest(make_job(1).output) == first


def test_the_optimizer_goes_on_where_the_epoch_before_left_it(make_job: Any, tmp_path: Path) -> None:
    run(make_job(0))
    run(make_job(1))
    carried = digest(make_job(1).output)
    afresh = make_job(1, state=tmp_path / "other", output=tmp_path / "afresh")
    run(afresh)
    assert digest(afresh.output) != carried


def test_only_states_that_a_retry_can_need_are_kept_and_a_later_one_says_that_it_begins_anew(
    make_job: Any, tmp_path: Path
) -> None:
    once = {"steps_per_epoch": 1}
    for epoch in range(3):
        assert run(make_job(epoch, training=once))["step"] == epoch + 1
    assert sorted(path.name for path in (tmp_path / "state").glob("epoch-*")) == ["epoch-0001", "epoch-0002"]
    assert run(make_job(1, training=once))["step"] == 1
    (told,) = [line["warning"] for line in lines(make_job(1)) if "warning" in line]
    assert told.endswith(
        "that epoch 0 left with these weights is not kept any more (or is another optimizer's): AdamW starts afresh"
    )


def test_another_weight_of_the_entropy_counts_from_the_next_epoch_on(make_job: Any) -> None:
    """Only where it adapts does it go on from where it had come to."""
    first = run(make_job(0, training={"trl": {"entropy_coef": 0.1}}))
    assert (first["entropy_coef"], run(make_job(1, training={"trl": {"entropy_coef": 0.4}}))["entropy_coef"]) == (
        0.1,
        0.4,
    )
    adaptive = {"use_adaptive_entropy": True, "entropy_target": 9.0, "entropy_coef_delta": 0.1}
    came_to = [run(make_job(epoch, training={"trl": adaptive}))["entropy_coef"] for epoch in (2, 3)]
    assert came_to == pytest.approx([0.1, 0.3])  # each with two steps, told before the second moves it


def test_kl_is_to_the_base_model_and_not_to_the_version_before(make_job: Any) -> None:
    training = {"beta": 0.05, "learning_rate": 5e-3}
    run(make_job(0, training=training))
    job = make_job(1, training=training)
    job.progress.unlink()
    run(job)
    (first, _) = [line for line in lines(job) if "step" in line]
    assert first["kl"] > 1e-4


def test_an_adapter_is_trained_saved_and_resumed_and_its_kl_is_to_the_base(make_job: Any, base: Path) -> None:
    from safetensors import safe_open

    before = digest(base)
    training = {"beta": 0.05, "learning_rate": 1e-2}
    run(make_job(0, lora=True, training=training))
    job = make_job(1, lora=True, training=training)
    job.progress.unlink()
    run(job)
    assert sorted(path.name for path in job.output.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "training.json",
    ]
    config = json.loads((job.output / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == job.policy_settings.model, "as other machines know it"
    assert (config["r"], config["lora_alpha"], config["bias"]) == (4, 8, "none")
    with safe_open(str(job.output / "adapter_model.safetensors"), "pt") as file:
        names = set(file.keys())
        assert any(file.get_tensor(name).abs().max() > 0 for name in names if "lora_B" in name)
    # The names vLLM expects, and no trace of a second adapter that TRL would keep as reference.
    assert len(names) == 2 * 7 * 2 and all(name.startswith("base_model.model.model.layers.") for name in names)
    first = next(line for line in lines(job) if "step" in line)
    assert first["kl"] > 1e-5
    assert digest(base) == before
    again = digest(job.output, "adapter_model.safetensors")
    run(make_job(1, lora=True, training=training))
    assert digest(job.output, "adapter_model.safetensors") == again


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_activations_that_are_computed_again_give_the_same_weights(make_job: Any, tmp_path: Path, lora: bool) -> None:
    from safetensors.torch import load_file

    made = []
    for again in (False, True):
        aside = {name: tmp_path / f"{name}-{again}" for name in ("output", "state")}
        job = make_job(0, lora=lora, training={"gradient_checkpointing": again}, **aside)
        assert run(job)["packing"] == "tree"
        made.append(load_file(next(job.output.glob("*.safetensors"))))
    for name, tensor in made[0].items():
        assert float((tensor - made[1][name]).abs().max()) < 1e-6, name


def test_a_save_that_fails_leaves_nothing_under_the_final_name(make_job: Any, tmp_path: Path, monkeypatch: Any) -> None:
    def broken(model: Any, source: Path, folder: Path, *_: Any) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(new_version, "save_weights", broken)
    with pytest.raises(OSError, match="disk full"):
        run(make_job(0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["progress.jsonl", "state"]


def test_what_a_killed_save_left_behind_is_cleared_by_the_next(make_job: Any, tmp_path: Path) -> None:
    (tmp_path / ".v0000.dead.partial").mkdir()
    run(make_job(0))
    assert not list(tmp_path.glob("*.partial")) and not list(tmp_path.glob(".*.partial"))


def test_a_gradient_that_is_not_finite_ends_the_job_before_anything_is_saved(make_job: Any, tmp_path: Path) -> None:
    rows = [make_sequence(f"r{i}", "g", [([1, 2], [3, 4 + i])]) for i in range(2)]
    huge = [[3e38 * bool(m) for m in row.loss_mask] for row in rows]
    job = make_job(0, sequences=write_parquet(rows, tmp_path / "huge.parquet", advantages=huge))
    with pytest.raises(TrainingError, match=r"step 0: .*learning_rate"):
        run(job)
    assert not job.output.exists() and not job.state.exists()


def test_a_state_of_other_parameters_is_refused_with_the_remedy(make_job: Any, tmp_path: Path) -> None:
    run(make_job(0, lora=True, output=tmp_path / "adapter"))
    with pytest.raises(WeightsError, match="belongs to other parameters; remove the folder"):
        run(make_job(1, weights=None))


def test_a_half_written_state_is_refused_with_the_remedy(make_job: Any, tmp_path: Path) -> None:
    run(make_job(0))
    file = tmp_path / "state" / "epoch-0000" / "optimizer.pt"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(WeightsError, match="cannot read the optimizer state"):
        run(make_job(1))


def test_an_adapter_made_with_other_settings_is_refused(make_job: Any, tmp_path: Path) -> None:
    run(make_job(0, lora=True))
    job = make_job(1, lora=True)
    before = job.policy_settings
    for change, why in (
        ({"rank": 8}, "rank 4, the settings ask for 8"),
        ({"alpha": 16}, "alpha 8, the settings ask for 16"),
        ({"dropout": 0.2}, r"dropout 0\.1, the settings ask for 0\.2"),
        ({"target_modules": ["q_proj"]}, r"target_modules \['down_proj'.* the settings ask for \['q_proj'\]"),
    ):
        other = before.model_copy(update={"lora": before.lora.model_copy(update=change)})
        with pytest.raises(WeightsError, match=why):
            run(job.model_copy(update={"policy_settings": other}))


def test_another_precision_in_the_accelerate_file_is_refused(
    make_job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    job = make_job(0, training={"accelerate_config": str(tmp_path / "two.yaml"), "bf16": False})
    with pytest.raises(
        TrainingError, match=r"two.yaml: `mixed_precision: bf16`, while `training.bf16` is false; make it"
    ):
        run(job)
    assert not job.output.exists()


def _cut_off(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _cut_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x10\x00")


def _drop(name: str) -> Any:
    return lambda folder: (folder / name).unlink()


def _missing_shard(folder: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _missing_tensor(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def _small_vocabulary(folder: Path) -> None:
    smaller = make_tiny_llama(folder.parent / "smaller", vocab_size=290)
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(smaller / name, folder / name)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            _cut_off,
            r"model.safetensors has \d+ bytes where its header asks for \d+: it was not written to the end; write",
        ),
        (_cut_header, "model.safetensors has 2 bytes, too few for a header; write the version again"),
        (_drop("config.json"), "no config.json; not a folder of weights, or half written"),
        (_drop("model.safetensors"), "model.safetensors: no such file; the folder of weights is incomplete"),
        (_drop("tokenizer.json"), "no tokenizer"),
        (_missing_shard, "model-00001-of-00002.safetensors: no such file"),
        (_missing_tensor, "1 tensors missing or of another shape, the first model.layers.1.mlp.up_proj.weight"),
        (_small_vocabulary, r"outside the model's vocabulary|the tokenizer knows 300 tokens, the model 290"),
    ],
)
def test_a_damaged_folder_of_weights_is_refused_by_name(
    make_job: Any, base: Path, tmp_path: Path, damage: Any, message: str
) -> None:
    folder = shutil.copytree(base, tmp_path / "damaged")
    damage(folder)
    with pytest.raises((WeightsError, TrainingDataError), match=message):
        run(make_job(0, base_model=folder))


def test_what_a_model_can_take_is_read_from_its_config(base: Path) -> None:
    facts = check_model_folder(base)
    assert (facts.vocabulary, facts.positions) == (300, 2048)
