"""How much of a GPU's memory a training takes, worked out from the model's shape before anything is loaded.

Bytes of a dense decoder in bf16, with weights that are trained in float32 and a base model under an adapter in bf16.
tests/unit/test_training_memory.py runs the real model without memory (FakeTensor) and holds this against its peak. Left
out are experts that a token does not visit, and what other libraries take for themselves.
"""

from __future__ import annotations

import json
import logging
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_core.config import PolicySettings, TrainingSettings
from lightning_core.files import write_atomic
from lightning_core.gpus import cards, seen
from lightning_core.policies.space import trained_parameters
from lightning_core.policies.tensor_files import parameters

logger = logging.getLogger(__name__)

ON_CPUS = 2048  # tokens of a micro-batch where no card says what fits
MOST = 32_768  # tokens: beyond, a pass gets larger but a card no faster
_STEP = 256
# Of what is free: the allocator's rounding, and what CUDA and its libraries take when the process starts.
_USABLE, _CONTEXT = 0.92, 1.2e9
_MOMENTS = {
    "adamw": 8.0,
    "adamw_8bit": 2.04,
}  # bytes a trained parameter; one float32 scale for 256 numbers of one byte
_AT_WORK = 1.6  # a layer's peak over what it keeps for the backward pass: with the gradients that come and go beside it
_HEAD = 4096 * 32_768 * 2  # TRL's LM head computes logits in tiles of so many bytes


@dataclass(frozen=True)
class Shape:
    """What decides how much memory a model takes: numbers of parameters, layers, and widths."""

    parameters: int
    layers: int
    hidden: int
    intermediate: int
    queries: int  # heads × their width
    keys: int
    vocabulary: int

    @classmethod
    def of_config(cls, config: Mapping[str, Any], parameters: int | None = None) -> Shape:
        """Return the shape by the fields of a `config.json` (of its text part); without `parameters` they are counted
        as Llama's."""
        config = config.get("text_config") or config
        layers, hidden, between = (
            int(config[name]) for name in ("num_hidden_layers", "hidden_size", "intermediate_size")
        )
        heads = int(config["num_attention_heads"])
        width = int(config.get("head_dim") or hidden // heads)
        queries, keys = heads * width, int(config.get("num_key_value_heads") or heads) * width
        words = int(config["vocab_size"])
        if parameters is None:
            layer = hidden * (2 * queries + 2 * keys + 3 * between + 2)
            parameters = layers * layer + (1 if config.get("tie_word_embeddings") else 2) * words * hidden
        return cls(parameters, layers, hidden, between, queries, keys, words)

    @property
    def adapted(self) -> int:
        """Return how many numbers an adapter on every linear layer trains for each unit of its rank."""
        return self.layers * (7 * self.hidden + 3 * self.intermediate + 2 * self.queries + 2 * self.keys)


@dataclass(frozen=True)
class Need:
    """Bytes that a training takes: whatever the micro-batch, and for each of its tokens."""

    fixed: float
    token: float

    def at(self, tokens: int) -> float:
        """Return what has to be free on the card before a process starts, with what the rest of it takes."""
        return (self.fixed + tokens * self.token) / _USABLE + _CONTEXT

    def fits(self, free: float) -> int:
        """Return the tokens of a micro-batch for which so much free memory is enough, at most `MOST`; 0 where there is
        no room for `_STEP` of them beside the weights."""
        room = (free - _CONTEXT) * _USABLE - self.fixed
        return max(0, min(MOST, int(room / self.token) // _STEP * _STEP))


def need(shape: Shape, trained: int | None, settings: TrainingSettings) -> Need:
    """Return what a training on one card takes. trained: parameters of the adapter; None: all are trained."""
    of_trained = 4 + 4 + _MOMENTS[settings.optimizer]  # weights, gradients, moments
    table = (
        shape.vocabulary * shape.hidden
    )  # the embedding, or the head: the larger gradient beside those that are there
    if trained is None:
        # Autocast keeps a bf16 copy of each weight until the end of the forward pass.
        fixed, residual = shape.parameters * (of_trained + 2) + 4.0 * table, 4
    else:
        fixed, residual = shape.parameters * 2 + trained * of_trained, 2
    layer = 24 * shape.hidden + 8 * shape.intermediate + 6 * shape.queries + 4 * shape.keys
    kept = layer if settings.gradient_checkpointing is False else residual * shape.hidden
    return Need(fixed + _HEAD, (shape.layers - 1) * kept + _AT_WORK * layer + 12 * shape.hidden)


def need_of(policy: PolicySettings, folder: Path) -> Need | None:
    """Return what training a policy on the weights in `folder` takes; None where its files cannot be read, or its config
    has other names for its widths or several of a kind."""
    try:
        shape = Shape.of_config(json.loads((folder / "config.json").read_text()), parameters(folder))
    except (OSError, KeyError, ValueError, TypeError, struct.error):
        return None
    return need(shape, None if policy.lora is None else trained_parameters(policy, folder), policy.training)


def sized(policy: PolicySettings, folder: Path, device: str | None, kept: Path) -> PolicySettings:
    """Return the policy with `tokens_per_micro_batch` decided: on a GPU where the settings leave it open, by what is
    free there.

    Decided once for a run and noted in the file `kept`, so that a training that is resumed has the micro-batches it
    began with, whatever is free by then. Other settings or another card are decided anew.
    """
    training = policy.training
    if training.tokens_per_micro_batch is not None or training.accelerate_config is not None:
        return policy  # accelerate may split the weights, over other machines too
    here = seen(cards(), device, several=training.processes > 1)
    wanted = need_of(policy, folder) if here else None
    if wanted is None:
        return policy
    of = {"cards": [[card.name, card.total] for card in here], "fixed": wanted.fixed, "token": wanted.token}
    tokens = _noted(kept, of) or max(wanted.fits(min(card.free for card in here)), _STEP)
    write_atomic(kept, json.dumps({"tokens": tokens, "of": of}).encode())
    logger.info("%s: micro-batches of %d tokens, by what is free on %s", policy.name, tokens, here[0].name)
    return policy.model_copy(update={"training": training.model_copy(update={"tokens_per_micro_batch": tokens})})


def _noted(file: Path, of: dict[str, Any]) -> int | None:
    try:
        noted = json.loads(file.read_text())
        return int(noted["tokens"]) if noted["of"] == of else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
