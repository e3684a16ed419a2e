"""What a version is verified by: the trainer's logprobs, and numbers that are finite."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from lightning_core.policies.probe import ASKED, CONTEXT, Probe, difference, tolerance
from lightning_core.policies.redeploy import agreement
from lightning_core.policies.store import Lineage, PolicyStore, StoreError
from lightning_core.policies.tensor_files import nonfinite_tensor
from lightning_core.policies.vllm_client import VllmError
from tests.policy_files import store_with_base, write_model
from tests.training_data import make_sequence


def test_without_a_measure_an_answer_is_held_against_the_trainers_within_what_the_dtype_resolves() -> None:
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


def test_the_error_of_logits_is_that_of_the_first_version_while_both_compute_as_then() -> None:
    def probe(logprobs: tuple[float, ...] = (-1.0, -2.0), **fields: Any) -> Probe:
        return Probe(token_ids=[1, 2, 3], logprobs=list(logprobs), **fields)

    def differed(mismatch: float | None) -> dict[str, float]:
        return {"unlikely": 0.5} | ({} if mismatch is None else {"mismatch": mismatch})

    first = probe().measured(None, differed(1e-3), "auto")
    assert first.logit_error == 2e-3
    assert probe().measured(first, differed(7e-3), "auto").logit_error == 2e-3
    assert probe().measured(first, differed(1e-5), "float32").logit_error == 2e-5, "vLLM was started with another dtype"
    assert probe(dtype="bfloat16").measured(first, differed(1e-2), "auto").logit_error == 2e-2
    assert tolerance(first, "float32") == tolerance(probe(), "float32") == 1e-3  # restarted since
    assert tolerance(probe().measured(None, differed(1e-6), "float32"), "float32") == 3e-4
    # Other weights sampled what was trained on, or nothing was sampled.
    for unknown in (0.5, None):
        assert tolerance(probe().measured(None, differed(unknown), "float32"), "float32") == 1e-3
    # What a token's logprob is off by grows with how unlikely it is, up to the whole of the logit's error.
    likely, unlikely = (probe((p, p), logit_error=2e-2, served_in="auto") for p in (-0.1, -5.0))
    assert tolerance(likely, "auto") == pytest.approx(5 * 2e-2 * (0.0952 + (2 * 0.0952) ** 0.5 / 2), rel=1e-3)
    assert tolerance(unlikely, "auto") == pytest.approx(5 * 2e-2 * (0.9933 + (2 * 0.9933) ** 0.5 / 2), rel=1e-3)


def test_a_lineage_of_an_older_version_is_read_without_its_measure() -> None:
    assert Probe.model_validate({"token_ids": [1, 2], "logprobs": [-1.0], "noise": 1e-5}).logit_error is None


def cut(tensor: Any, bits: int = 10) -> Any:
    """Float32 with so many bits of mantissa, rounded: TF32."""
    import torch

    drop = 23 - bits
    return ((tensor.contiguous().view(torch.int32) + (1 << (drop - 1))) & -(1 << drop)).view(torch.float32)


@pytest.mark.slow  # it imports transformers
@pytest.mark.parametrize(("kind", "sure", "step"), [("tf32", 3, 1e-3), ("bf16", 2, 3e-3)])
def test_what_a_server_rounds_is_let_through_and_the_version_before_is_not(
    kind: str, sure: int, step: float, tmp_path: Path
) -> None:
    """A server that rounds as TF32 does, or computes in bf16, emulated. `sure`: how much larger the weights are than at first."""
    import copy

    import torch
    from torch.overrides import TorchFunctionMode
    from transformers import AutoModelForCausalLM

    from lightning_core.training.new_version import take_probe
    from tests.tiny_model import make_tiny_llama

    class Tf32(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is torch.nn.functional.linear:
                args = (*map(cut, args[:2]), *args[2:])
            elif function is torch.nn.functional.scaled_dot_product_attention:
                args = (*map(cut, args[:3]), *args[3:])
            return function(*args, **(kwargs or {}))

    def served(model: Any, ids: list[int]) -> list[float]:
        inputs = torch.tensor([ids])
        serves = copy.deepcopy(model).bfloat16() if kind == "bf16" else model
        with torch.no_grad(), Tf32() if kind == "tf32" else contextlib.nullcontext():
            logps = torch.log_softmax(serves(inputs).logits[0, :-1].float(), -1)
        found: list[float] = logps.gather(-1, inputs[0, 1:, None])[:, 0].tolist()
        return found

    def sampled(model: Any) -> list[int]:
        prompt = torch.randint(0, 300, (1, 20))
        length = {"min_new_tokens": ASKED, "max_new_tokens": ASKED}
        ids = model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=True, top_k=0, **length)
        return list(map(int, ids[0]))

    def noted(model: Any, ids: list[int]) -> Probe:
        return Probe.model_validate(take_probe(model, ids, ASKED, bf16=kind == "bf16"))

    def off(model: Any, probe: Probe) -> float:
        return difference(served(model, probe.token_ids)[-ASKED:], probe.logprobs)

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(make_tiny_llama(tmp_path))
    with torch.no_grad():
        for weight in model.parameters():
            weight *= sure if weight.dim() > 1 else 1
    dtype = {"tf32": "auto", "bf16": "bfloat16"}[kind]
    first = [noted(model, sampled(model)) for _ in range(3)]
    measured = {
        "mismatch": float(np.mean([off(model, probe) for probe in first])),
        "unlikely": float(np.mean([1 - np.exp(probe.logprobs) for probe in first])),
    }
    before, right, stale = None, [], []
    for _ in range(3):
        former = copy.deepcopy(model)
        with torch.no_grad():
            for weight in model.parameters():
                weight += step * torch.randn_like(weight).sign()
        before = probe = noted(model, sampled(former)).measured(before, measured, dtype)
        agreement(served(model, probe.token_ids), probe, dtype)
        with pytest.raises(VllmError, match="does not compute what was trained"):
            agreement(served(former, probe.token_ids), probe, dtype)
        right.append(off(model, probe))
        stale.append(off(former, probe))
    # Bounds that are the same for every model: one refused what was right, the other let the version before through.
    assert min(right) > 1e-3 if kind == "tf32" else min(stale) < 0.1


def test_the_trainer_notes_what_its_weights_make_of_the_tokens_that_were_sampled() -> None:
    pytest.importorskip("torch")
    import torch

    from lightning_core.training.new_version import probed, take_probe

    long = make_sequence("long", "g", [(list(range(600)), [7] * 9)])
    turns = make_sequence("turns", "g", [([1, 2], [3, 4, 5]), ([6], [7] * 50)])
    assert probed([turns]) == ([1, 2, 3, 4], 2)  # one less than were sampled at once: a server samples another
    assert probed([turns, long]) == ([*range(600 - CONTEXT, 600), *[7] * 8], 8)
    assert probed([make_sequence("one", "g", [([1, 2], [3])])]) == ([1, 2, 3], 1)
    assert probed([make_sequence("most", "g", [([1], [2] * 500)])])[1] == ASKED

    class Uniform(torch.nn.Linear):
        """Every token is as likely as any other; with dropout on, none is."""

        device = torch.device("cpu")

        def forward(self, input_ids: Any, logits_to_keep: int, use_cache: bool, **_: Any) -> SimpleNamespace:
            assert not self.training and not use_cache
            return SimpleNamespace(logits=torch.zeros(*input_ids[:, -logits_to_keep:].shape, 8))

    model = Uniform(1, 1)
    taken = Probe.model_validate(take_probe(model, [1, 2, 3, 4], 2))
    assert taken.token_ids == [1, 2, 3, 4] and model.training
    assert taken.logprobs == [round(-float(np.log(8)), 6)] * 2
    model.weight.full_tensor = lambda: None  # as a tensor has that is split over processes
    assert take_probe(model, [1, 2], 1) is None


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
