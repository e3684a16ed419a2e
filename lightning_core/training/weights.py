"""Folders of weights: checked before they are loaded, written whole or not at all.

A folder is good when its config, its tokenizer and every tensor it promises are there. A file that ends early is
recognised by its own header, so a copy that was cut off is an error here and not garbage in the optimizer.
"""

from __future__ import annotations

import contextlib
import gc
import json
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lightning_core.config import LoraSettings
from lightning_core.files import is_full_disk, make_folder, put_in_place, rename
from lightning_core.policies.model import TOKENIZERS, safetensors_problem
from lightning_core.training.errors import WeightsError

_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
_SHAPE = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
# Settings of an adapter by peft's names.
_OF_PEFT = {"r": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout", "target_modules": "target_modules"}
_NOT_HANDED_ON = ("training.json", "manifest.json", "README.md")


@dataclass(frozen=True)
class ModelFacts:
    """What a model's config says about the sequences it can take."""

    vocabulary: int  # token ids are below
    positions: int | None  # longest sequence, tokens


def check_model_folder(folder: Path) -> ModelFacts:
    """Check a folder of full weights without loading it. Raises WeightsError naming the file at fault."""
    config = _text_config(folder)
    if config["vocab_size"] is None:
        raise WeightsError(f"{folder / 'config.json'}: no `vocab_size`; not the config of a language model")
    index = folder / "model.safetensors.index.json"
    if index.exists():
        shards = sorted(set(_read_json(index, folder).get("weight_map", {}).values()))
    else:
        shards = ["model.safetensors"]
    for shard in shards:
        check_safetensors(folder / shard)
    if not any((folder / name).exists() for name in TOKENIZERS):
        raise WeightsError(f"{folder}: no tokenizer ({', '.join(TOKENIZERS)}); copy the base model's files there")
    positions = config["max_position_embeddings"]
    return ModelFacts(int(config["vocab_size"]), int(positions) if positions else None)


def _text_config(folder: Path) -> dict[str, Any]:
    """Return what the config says of the text part: `_SHAPE` and `max_position_embeddings`, None where it has none."""
    config = _read_json(folder / "config.json", folder)
    inner = config.get("text_config") or config
    names = (*_SHAPE, "max_position_embeddings")
    if not all(name in inner for name in names):
        # Some kinds have other names for them, and some files leave out the defaults of their kind. It takes seconds to import.
        from transformers import AutoConfig

        try:
            whole = AutoConfig.from_pretrained(folder, local_files_only=True).get_text_config()
        except (OSError, ValueError, KeyError) as error:
            raise WeightsError(f"{folder / 'config.json'}: not the config of a language model: {error}") from error
        inner = {name: getattr(whole, name, None) for name in names}
    return {name: inner[name] for name in names}


def check_adapter_folder(folder: Path, lora: LoraSettings) -> None:
    """Check that a peft adapter is complete and as the settings ask for, since its own would be kept. Raises
    WeightsError."""
    config = _read_json(folder / "adapter_config.json", folder)
    for theirs, ours in _OF_PEFT.items():
        found, asked = (_last_names(value) for value in (config.get(theirs), getattr(lora, ours)))
        # peft writes down which modules "all-linear" stood for.
        if found != asked and asked != "all-linear":
            raise WeightsError(
                f"{folder}: the adapter has {ours} {found}, the settings ask for {asked}; "
                f"keep `lora.{ours}` within a run, or start a new run"
            )
    check_safetensors(folder / "adapter_model.safetensors")


def _last_names(value: Any) -> Any:
    """Return the own names of modules, which may be whole paths; anything else as it is."""
    return sorted({module.rsplit(".", 1)[-1] for module in value}) if isinstance(value, list) else value


def check_same_model(folder: Path, base: Path) -> None:
    """Raise WeightsError where the model in `folder` is of another shape than the run's base model."""
    here, there = _text_config(folder), _text_config(base)
    for name in _SHAPE:
        ours, theirs = here[name], there[name]
        if ours != theirs:
            raise WeightsError(
                f"{folder}: a checkpoint of another model: its `{name}` is {ours}, the base model's {theirs} ({base}); go on "
                "from a version of this run, or start a new run"
            )


def check_safetensors(path: Path) -> None:
    """Compare a file's size with what its header promises. Raises WeightsError where it is missing or cut off."""
    try:
        problem = safetensors_problem(path)
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such file; the folder of weights is incomplete") from None
    if problem:
        raise WeightsError(f"{path} {problem}; write the version again")


def _read_json(path: Path, folder: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise WeightsError(f"{folder}: no {path.name}; not a folder of weights, or half written") from None
    except ValueError as error:
        raise WeightsError(f"{path}: not valid JSON ({error}); half written?") from None
    if not isinstance(content, dict):
        raise WeightsError(f"{path}: expected a JSON object")
    return content


def load_model(folder: Path, kind: Literal["float32", "bfloat16"] = "float32") -> Any:
    """Load the model, on the CPU. What is trained is kept in float32 from version to version.

    Raises WeightsError where tensors are missing, which transformers would fill with random numbers.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        architecture = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        # transformers' SDPA has no soft-caps, and drops them.
        capped = getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None
        model, info = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(torch, kind),
            attn_implementation="sdpa" if architecture._supports_sdpa and not capped else "eager",
            output_loading_info=True,
            local_files_only=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise WeightsError(f"{folder}: transformers cannot load it: {error}") from error
    wrong = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if wrong:
        raise WeightsError(f"{folder}: {len(wrong)} tensors missing or of another shape, the first {wrong[0]}")
    return model


def free_memory() -> None:
    """Give back the memory of a model that nothing refers to: TRL's LM head makes it refer to itself."""
    import torch

    gc.collect()
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()


def load_tokenizer(folder: Path, vocabulary: int) -> Any:
    """Load the tokenizer. Raises WeightsError where it knows more tokens, without added ones, than the model does."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise WeightsError(f"{folder}: transformers cannot load the tokenizer: {error}") from error
    if tokenizer.vocab_size > vocabulary:
        raise WeightsError(
            f"{folder}: the tokenizer knows {tokenizer.vocab_size} tokens, the model {vocabulary}; they are not of one model"
        )
    return tokenizer


def load_adapter(model: Any, folder: Path) -> Any:
    """Return `model` with the adapter in `folder`, trainable. Raises WeightsError where the two do not fit."""
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import SafetensorError, safe_open

    try:
        # Where it is read to before it is copied: peft would take the first GPU, on every rank.
        adapted = PeftModel.from_pretrained(model, str(folder), is_trainable=True, torch_device="cpu")
        with safe_open(str(folder / "adapter_model.safetensors"), "pt") as file:
            stored = set(file.keys())
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise WeightsError(f"{folder}: peft cannot load the adapter: {error}") from error
    wrong = set(get_peft_model_state_dict(adapted, save_embedding_layers=False)) ^ stored
    if wrong:
        raise WeightsError(f"{folder}: the adapter does not fit the base model; first tensor at odds: {min(wrong)}")
    return adapted


def lora_config(lora: LoraSettings) -> Any:
    """Return peft's configuration of a fresh adapter, such as vLLM can serve (no bias, no LM head)."""
    from peft import LoraConfig

    return LoraConfig(
        **{theirs: getattr(lora, ours) for theirs, ours in _OF_PEFT.items()}, bias="none", task_type="CAUSAL_LM"
    )


def save_weights(
    model: Any, source: Path, folder: Path, whole: dict[str, Any] | None = None, base_model: str | None = None
) -> None:
    """Write a trained model into an empty `folder`: full weights with all small files of `source`, or an adapter.

    `whole`: its tensors, where the model itself holds parts of them. `base_model`: what an adapter says it belongs to,
    for peft to find elsewhere too.

    Config, generation config, tokenizer and chat template are copied as they are, so that nothing drifts from version
    to version. Tensors are float32 whatever the config's dtype, which is what the server loads them as.
    """
    if hasattr(model, "peft_config"):
        for config in model.peft_config.values():
            config.base_model_name_or_path = base_model
        model.save_pretrained(folder, save_embedding_layers=False, state_dict=whole)
        (folder / "README.md").unlink(missing_ok=True)
        return
    model.save_pretrained(folder, state_dict=whole)
    for file in source.iterdir():
        handed_on = file.is_file() and not file.name.startswith(".") and file.name not in _NOT_HANDED_ON
        if handed_on and not file.name.endswith((*_WEIGHT_SUFFIXES, ".index.json")):
            shutil.copyfile(file, folder / file.name)


@contextlib.contextmanager
def whole_folder(folder: Path, durable: bool = True) -> Iterator[Path]:
    """Yield a folder beside `folder` to write into; renamed to it at the end, replacing what was there, or removed.

    Without `durable` it outlives every process, but a machine that goes down may leave it half written. Raises
    WeightsError where the disk is full, whatever the writer made of it.
    """
    make_folder(folder.parent)
    for left_behind in folder.parent.glob(f".{folder.name}.*.partial"):
        shutil.rmtree(left_behind, ignore_errors=True)
    beside = folder.parent / f".{folder.name}.{secrets.token_hex(4)}.partial"
    beside.mkdir()
    try:
        yield beside
        old = folder.parent / f".{folder.name}.{secrets.token_hex(4)}.partial" if folder.exists() else None
        if old is not None:
            rename(folder, old)
        (put_in_place if durable else rename)(beside, folder)
        if old is not None:
            shutil.rmtree(old)
    except BaseException as error:
        # torch and safetensors raise errors of their own, so what is left there decides.
        full = is_full_disk(error) or (isinstance(error, Exception) and shutil.disk_usage(folder.parent).free < 2**14)
        shutil.rmtree(beside, ignore_errors=True)
        if full:
            raise WeightsError(f"{folder}: the disk is full; free some space and run again") from error
        raise
