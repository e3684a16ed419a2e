"""What a version is verified by: the trainer's logprobs, and numbers that are finite."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from lightning_core.policies.probe import PROBE_LENGTH, Probe, difference, tolerance
from lightning_core.policies.redeploy import agreement
from lightning_core.policies.store import Lineage, PolicyStore, StoreError
from lightning_core.policies.vllm_client import VllmError
from lightning_core.policies.weights import nonfinite_tensor
from tests.policy_files import store_with_base, write_model


def test_an_answer_is_held_against_the_trainers_within_what_the_dtype_resolves() -> None:
    probe = Probe(token_ids=[1, 2, 3], logprobs=[-1.0, -2.0])
    assert "off the trainer's" in agreement([-1.0005, -2.0], probe, "float32")
    with pytest.raises(VllmError, match=r"0\.01 nats off the trainer's, more than 0\.001"):
        agreement([-1.02, -2.0], probe, "float32")
    assert "off the trainer's" in agreement([-1.02, -2.0], probe, "bfloat16")
    with pytest.raises(VllmError, match="inf nats off"):
        agreement([-1.0], probe, "float32")
    assert "no logprobs of a trainer" in agreement([-1.0], None, "float32")


def test_a_difference_is_the_mean_of_the_absolute_ones() -> None:
    assert difference([-1.0, -2.0], [-1.5, -1.0]) == 0.75
    assert tolerance("auto") == tolerance("float16") > tolerance("float32")


def test_the_trainer_notes_what_its_weights_make_of_the_first_ids() -> None:
    pytest.importorskip("torch")
    import torch

    from lightning_core.training.outcome import take_probe

    class Uniform(torch.nn.Linear):
        """Every token is as likely as any other; with dropout on, none is."""

        device = torch.device("cpu")

        def forward(self, input_ids: Any, attention_mask: Any, use_cache: bool) -> SimpleNamespace:
            assert not self.training and not use_cache
            return SimpleNamespace(logits=torch.zeros(*input_ids.shape, 8))

    model = Uniform(1, 1)
    taken = Probe.model_validate(take_probe(model, list(range(8)) * 10))
    assert taken.token_ids == (list(range(8)) * 10)[:PROBE_LENGTH] and model.training
    assert taken.logprobs == [round(-float(np.log(8)), 6)] * (PROBE_LENGTH - 1)
    assert take_probe(model, [1]) is None
    model.weight.full_tensor = lambda: None  # as a tensor has that is split over processes
    assert take_probe(model, [1, 2]) is None


@given(
    numbers=st.lists(st.floats(width=32, allow_nan=True, allow_infinity=True), min_size=1, max_size=20),
    dtype=st.sampled_from(["float32", "float16", "float64"]),
)
def test_no_number_that_is_not_finite_goes_unseen(
    tmp_path_factory: pytest.TempPathFactory, numbers: list[float], dtype: str
) -> None:
    folder = tmp_path_factory.mktemp("weights")
    with np.errstate(over="ignore"):
        array = np.array(numbers, dtype)
    save_file({"a": np.zeros(3, "float32"), "b": array}, folder / "model.safetensors")
    assert (nonfinite_tensor(folder) is None) == bool(np.isfinite(array).all())


def test_numbers_whose_sum_overflows_are_finite_all_the_same(tmp_path: Path) -> None:
    save_file({"a": np.full(1000, 3e38, "float32")}, tmp_path / "model.safetensors")
    assert nonfinite_tensor(tmp_path) is None


def test_weights_that_diverged_are_not_published(tmp_path: Path) -> None:
    store = store_with_base(tmp_path)
    output = write_model(tmp_path / "out", float("nan"))
    with pytest.raises(StoreError, match=r"not published.*not finite \(model\.safetensors: embed.*learning_rate"):
        store.publish(output, Lineage(run="r", epoch=0, base_model="base", parent="v0000"))
    assert store.versions() == ["v0000"]


def test_a_version_keeps_its_probe_and_one_that_is_none_is_a_lie(tmp_path: Path) -> None:
    store = store_with_base(tmp_path)
    probe = Probe(token_ids=[3, 1, 2], logprobs=[-1.5, -0.25])
    lineage = Lineage(run="r", epoch=0, base_model="base", parent="v0000", probe=probe)
    store.publish(write_model(tmp_path / "out", 1.0), lineage)
    assert PolicyStore(tmp_path, "policy").manifest("v0001").probe == probe
    file = store.path("v0001") / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"probe": {"token_ids": [1]}}))
    with pytest.raises(StoreError, match="not a manifest"):
        store.manifest("v0001")
