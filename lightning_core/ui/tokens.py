"""Sampled tokens as text: what each added, and how likely it was."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

_BEFORE = 4  # tokens that decide how the next one is written
_LIKELY = (0.05, 0.2, 0.5, 0.8, 0.95)  # bounds between the classes of a token's probability


@dataclass(frozen=True)
class Token:
    """A sampled token. `likely`: from 0, hardly, to 5, nearly certain; None where no probability was recorded."""

    text: str
    probability: float | None
    likely: int | None


def tokens_of(tokenizer: Any | None, ids: list[int] | None, logprobs: list[float] | None) -> list[Token]:
    """The tokens of a reply; without a tokenizer their ids stand for them."""
    found = []
    for place in range(len(ids or [])):
        logprob = logprobs[place] if logprobs and place < len(logprobs) else None
        probability = None if logprob is None or math.isnan(logprob) else math.exp(min(logprob, 0.0))
        likely = None if probability is None else sum(probability >= bound for bound in _LIKELY)
        found.append(Token(_added(tokenizer, ids or [], place), probability, likely))
    return found


def _added(tokenizer: Any | None, ids: list[int], place: int) -> str:
    if tokenizer is None:
        return f"{ids[place]} "
    before = ids[max(0, place - _BEFORE) : place]
    former = tokenizer.decode(before, skip_special_tokens=False) if before else ""
    text: str = tokenizer.decode([*before, ids[place]], skip_special_tokens=False)
    return text[len(former) :] if text.startswith(former) else text


def tokenizer_of(home: Path, policy: str) -> Any | None:
    """The tokenizer of a policy's model, from the first of its versions that has one; None where none is there."""
    for folder in sorted((home / "policies" / policy).glob("v[0-9]*")):
        if (folder / "tokenizer.json").is_file():
            return _loaded(folder / "tokenizer.json")
    return None


@cache
def _loaded(file: Path) -> Any | None:
    try:
        from tokenizers import Tokenizer
    except ImportError:  # of the `train` extra
        return None
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # noqa: BLE001 - the library raises nothing narrower
        logger.warning("%s: not read, so token ids are shown: %s", file, error)
        return None
