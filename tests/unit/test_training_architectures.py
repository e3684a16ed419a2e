"""Models of other architectures than Llama: which take tries, and which are trained with padded rows and say why."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_core.settings_file import load_settings
from lightning_core.training.errors import WeightsError
from lightning_core.training.weights import ModelFacts, check_model_folder, load_tokenizer
from tests.training_data import random_group, write_parquet
from tests.unit.test_training_job import _trl, base, lines, make_job, run, sequences

ROOT = Path(__file__).parents[2]

__all__ = ["_trl", "base", "make_job", "sequences"]  # fixtures

pytestmark = pytest.mark.slow  # it trains


def saved(model: Any, tmp_path: Path, base: Path) -> Path:
    """A folder of the model's weights, with the tokenizer of `base`."""
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(base / name, folder / name)
    return folder


def test_padded_rows_are_trained_where_the_model_takes_no_tries(
    make_job: Any, base: Path, tmp_path: Path, caplog: Any
) -> None:
    """A sliding window shorter than the sequences: a trie's depth-first order would let branches see each other."""
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, sliding_window=16, tie_word_embeddings=True,
    )  # fmt: skip
    folder = saved(MistralForCausalLM(config), tmp_path, base)
    for packing in ("tree", "concat"):
        job = make_job(0, base_model=folder, training={"packing": packing})
        result = run(job)
        assert result["packing"] == "none" and result["unique_share"] == 1.0
        assert "sliding attention window of 16" in caplog.text
        assert f"packing `{packing}` is not possible" in result["packing_why"]
        assert {"warning": result["packing_why"]} in lines(job)


def test_a_model_whose_config_has_names_of_its_own_is_looked_over_like_any(
    make_job: Any, base: Path, tmp_path: Path
) -> None:
    """GPT-2's positions are `n_positions`: too long a sequence would end the training instead of being left out."""
    from transformers import GPT2Config, GPT2LMHeadModel

    rows = [s for size in (2, 3) for s in random_group(f"g{size}", size, np.random.default_rng(size))]
    positions = sorted(map(len, rows))[2]
    long = sum(len(row) > positions for row in rows)
    assert long
    folders = []
    for width in (16, 32):
        config = GPT2Config(vocab_size=300, n_positions=positions, n_embd=width, n_layer=1, n_head=2)
        folders.append(saved(GPT2LMHeadModel(config), tmp_path / str(width), base))
    assert check_model_folder(folders[0]) == ModelFacts(vocabulary=300, positions=positions)
    result = run(make_job(0, base_model=folders[0], sequences=write_parquet(rows, tmp_path / "rows.parquet")))
    assert (result["sequences"], result["left_out"]) == (len(rows) - long, {"too_long": long})
    with pytest.raises(
        WeightsError, match="a checkpoint of another model: its `hidden_size` is 16, the base model's 32"
    ):
        run(make_job(1, base_model=folders[1], weights=folders[0]))


def test_a_token_that_was_added_past_the_models_embeddings_does_not_matter(base: Path, tmp_path: Path) -> None:
    """As in Gemma 3's text models, whose tokenizer knows an image's token."""
    folder = shutil.copytree(base, tmp_path / "added")
    tokenizer = load_tokenizer(folder, 300)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.save_pretrained(folder)
    assert len(load_tokenizer(folder, 300)) == 301


def test_a_mixture_of_experts_is_trained_on_tries_and_by_examples(make_job: Any, base: Path, tmp_path: Path) -> None:
    """Its load-balancing loss stays out: the two packings come to one loss."""
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=4, num_experts_per_tok=2, sliding_window=None, tie_word_embeddings=True,
    )  # fmt: skip
    folder = saved(MixtralForCausalLM(config), tmp_path, base)
    losses = {}
    for packing in ("tree", "none"):
        aside = {"output": tmp_path / packing, "state": tmp_path / f"{packing}-state"}
        result = run(make_job(0, base_model=folder, training={"packing": packing}, **aside))
        assert result["packing"] == packing
        losses[packing] = result["loss"]
    assert losses["tree"] == pytest.approx(losses["none"], abs=1e-5)
    examples = {"algorithm": "sft", "training": {"steps_per_epoch": 2}}
    aside = {"output": tmp_path / "examples", "state": tmp_path / "examples-state"}
    job = make_job(0, base_model=folder, policy_settings=examples, **aside)
    assert run(job)["loss"] == pytest.approx(np.log(300), rel=0.05)


@pytest.mark.parametrize("example", ["calc_x", "spider"])
def test_a_small_copy_of_llama_3_2_is_trained_as_the_examples_settings_for_a_gpu_say(
    make_job: Any, base: Path, tmp_path: Path, example: str
) -> None:
    """Full weights and an adapter; the shape and the scaled rotations of Llama-3.2-3B, an eighth as wide, four layers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=300, hidden_size=384, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=12, num_key_value_heads=4,
        head_dim=32, max_position_embeddings=131072, tie_word_embeddings=True, rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0, "low_freq_factor": 1.0,
                         "high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
    )  # fmt: skip
    folder = saved(LlamaForCausalLM(config), tmp_path, base)
    (policy,) = load_settings(ROOT / "examples" / example / "gpu.yaml").policies
    given = policy.model_dump(include={"training", "lora"}, exclude_defaults=True)
    result = run(make_job(0, base_model=folder, policy_settings=given))
    assert result["packing"] == "tree" and 0 < result["steps"] <= policy.training.steps_per_epoch
    assert result["grad_norm"] > 0


def test_an_attention_dropout_keeps_a_model_from_tries() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    from lightning_core.training.scoring import why_not_packed

    def model(dropout: float) -> Any:
        return GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=32, n_layer=1, n_head=2, attn_pdrop=dropout))

    assert "attention dropout of 0.1" in str(why_not_packed(model(0.1), 10))
    assert why_not_packed(model(0.0), 10) is None


@pytest.mark.parametrize("loaded_in", ["float32", "bfloat16"])
def test_the_rounding_of_bf16_does_not_keep_trained_weights_from_tries(loaded_in: str) -> None:
    """Sharp attention, as training makes it, turns a rounding into another token: hidden states differ by tenths."""
    import torch
    from transformers import BloomConfig, BloomForCausalLM, LlamaConfig, LlamaForCausalLM

    from lightning_core.training.scoring import why_not_packed

    torch.manual_seed(0)
    llama = LlamaForCausalLM(LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=16, num_attention_heads=4,
    ))  # fmt: skip
    bloom = BloomForCausalLM(BloomConfig(vocab_size=300, hidden_size=32, n_layer=2, n_head=2))
    for name, module in llama.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data.mul_(80 if name.endswith(("q_proj", "k_proj")) else 20)
    kind = getattr(torch, loaded_in)
    before = {name: weight.clone() for name, weight in llama.to(kind).state_dict().items()}
    with torch.autocast("cpu", torch.bfloat16):
        assert why_not_packed(llama, 100) is None
        assert "not follow the attention mask" in str(why_not_packed(bloom.to(kind), 100))
    assert all(torch.equal(weight, before[name]) for name, weight in llama.state_dict().items())


def _mamba() -> Any:
    from transformers import MambaConfig, MambaForCausalLM

    return MambaForCausalLM(MambaConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2, state_size=8))


def _bloom() -> Any:
    from transformers import BloomConfig, BloomForCausalLM

    return BloomForCausalLM(BloomConfig(vocab_size=300, hidden_size=32, n_layer=2, n_head=2))


def _gemma() -> Any:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    return Gemma2ForCausalLM(Gemma2Config(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, attn_logit_softcapping=0.1, query_pre_attn_scalar=16, initializer_range=0.3,
    ))  # fmt: skip


def _gpt_oss() -> Any:
    from transformers import GptOssConfig, GptOssForCausalLM

    return GptOssForCausalLM(GptOssConfig(
        vocab_size=300, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, num_local_experts=2, num_experts_per_tok=1, sliding_window=512,
    ))  # fmt: skip


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (_mamba, "layers that mix neighbours whatever the mask says"),
        (_bloom, "not follow the attention mask"),
        (_gemma, "does not know its `softcap`"),
        (_gpt_oss, "does not know its `s_aux`"),
    ],
)
def test_architectures_without_an_attention_that_can_be_told_are_trained_with_padded_rows(
    make_job: Any, base: Path, tmp_path: Path, make: Any, why: str
) -> None:
    import torch
    from transformers import AutoModelForCausalLM
    from trl.trainer.utils import add_fused_lm_head

    from lightning_core.training.micro_batches import MicroBatch
    from lightning_core.training.trainer import score_queue
    from lightning_core.training.weights import load_model

    folder = saved(make(), tmp_path, base)
    result = run(make_job(0, base_model=folder))
    assert result["packing"] == "none" and why in result["packing_why"]
    model, eager = load_model(folder), AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    add_fused_lm_head(model)
    add_fused_lm_head(eager)
    rows = random_group("a", 3, np.random.default_rng(1))
    batches: list[Any] = [
        MicroBatch([[s] for s in some], [1.0] * len(some), "none", 0) for some in (rows, *([s] for s in rows))
    ]
    (together, _), *alone = score_queue(model, batches, torch.device("cpu"))
    torch.testing.assert_close(together, score_queue(eager, batches[:1], torch.device("cpu"))[0][0])
    for row, (scores, _) in zip(together, alone, strict=True):
        torch.testing.assert_close(row[: scores.shape[1]], scores[0], atol=1e-5, rtol=1e-5)
