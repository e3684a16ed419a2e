"""Sampled tokens as text: what each added, and how likely it was."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from lightning_core.policies.model import config_files
from lightning_core.policies.store import PolicyStore, StoreError

logger = logging.getLogger(__name__)

_BEFORE = 4  # tokens that decide how the next one is written
# Bounds between the classes of a token's probability, entropy (nats) and ratio.
_LIKELY, _OPEN, _MOVED = (0.05, 0.2, 0.5, 0.8, 0.95), (0.05, 0.2, 0.5, 1.0, 2.0), (0.8, 0.95, 1.05, 1.25)


_MEASURED = {"entropies": "entropy", "ratios": "ratio", "clipped": "clipped"}  # by the trainer; column → field


@dataclass(frozen=True)
class Token:
    """A sampled token. `likely`: from 0, hardly, to 5, nearly certain; None where no probability was recorded.

    `entropy`, `ratio` and `clipped` are what the trainer measured, where it trained it; `advantage` is its own, where it has one.
    """

    text: str
    probability: float | None
    likely: int | None
    entropy: float | None = None
    ratio: float | None = None
    clipped: bool = False
    advantage: float | None = None

    @property
    def classes(self) -> str:
        """Return the token's classes of the style sheet.

        By probability `px`, `p0` to `p5`, by entropy `e0` to `e5`, by ratio `m0` to `m4`, `clipped`, by its own
        advantage `up0` to `up4` and `down1` to `down4`.
        """
        found = ["px" if self.likely is None else f"p{self.likely}"]
        if self.entropy is not None and self.ratio is not None:
            found += [f"e{_class(self.entropy, _OPEN)}", f"m{_class(self.ratio, _MOVED)}"]
        if self.advantage is not None:
            found.append(pushed(self.advantage))
        return " ".join(found + ["clipped"] * self.clipped)


def pushed(advantage: float) -> str:
    """Return the class of an advantage: `up1` (up to 0.5) to `up4`, `down1` to `down4`, and `up0` for 0."""
    return f"{'down' if advantage < 0 else 'up'}{min(math.ceil(abs(advantage) * 2), 4)}"


def tokens_of(
    tokenizer: Any | None,
    ids: list[int] | None,
    logprobs: list[float] | None,
    trained: dict[str, Any] | None = None,
    advantages: list[float] | None = None,
) -> list[Token]:
    """Return the tokens of a reply; without a tokenizer their ids stand for them.

    `trained`: its row of `sql/page/trained_tokens`; `advantages`: of each token, where it has one of its own.
    """
    found = []
    for place in range(len(ids or [])):
        logprob = logprobs[place] if logprobs and place < len(logprobs) else None
        probability = None if logprob is None or math.isnan(logprob) else math.exp(min(logprob, 0.0))
        likely = None if probability is None else _class(probability, _LIKELY)
        measured = trained if trained is not None and place < len(trained["ratios"]) else {}
        of_training = {of: measured[name][place] for name, of in _MEASURED.items() if name in measured}
        own = advantages[place] if advantages and place < len(advantages) else None
        found.append(Token(_added(tokenizer, ids or [], place), probability, likely, **of_training, advantage=own))
    return found


def _class(value: float, bounds: tuple[float, ...]) -> int:
    return sum(value >= bound for bound in bounds)


def _added(tokenizer: Any | None, ids: list[int], place: int) -> str:
    if tokenizer is None:
        return f"{ids[place]} "
    before = ids[max(0, place - _BEFORE) : place]
    former = tokenizer.decode(before, skip_special_tokens=False) if before else ""
    text: str = tokenizer.decode([*before, ids[place]], skip_special_tokens=False)
    return text[len(former) :] if text.startswith(former) else text


def tokenizer_of(home: Path, policy: str) -> Any | None:
    """Return the tokenizer of a policy's model; None where none is there.

    It is that of the first of its versions that has one; for adapters, that of their base, if this machine has it.
    """
    versions = sorted((home / "policies" / policy).glob("v[0-9]*"))
    for folder in versions:
        if (folder / "tokenizer.json").is_file():
            return _loaded(folder / "tokenizer.json")
    try:
        return _of_base(PolicyStore(home, policy).manifest(versions[0].name).base_model) if versions else None
    except StoreError as error:
        logger.warning("%s, so token ids are shown", error)
        return None


@cache
def _of_base(model: str) -> Any | None:
    try:
        files = [file.with_name("tokenizer.json") for file in config_files(model)]
    except ImportError:  # of the `train` extra
        return None
    return next((_loaded(file) for file in files if file.is_file()), None)


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
