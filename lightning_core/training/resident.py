"""A trainer that stays for a run: what its last job made is still in its memory when the next one goes on from it.

One process that is handed jobs one after another (launch.py); where the settings ask for several processes a training,
each training starts afresh. What is kept gives the bits that reading the published version would give.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lightning_core.training.hardware import weights_kind
from lightning_core.training.job import Job
from lightning_core.training.state import noted_version
from lightning_core.training.weights import free_memory, load_adapter, load_model, load_tokenizer

# What differs from epoch to epoch; with anything else that differs, the next job reads its weights.
_OF_AN_EPOCH = ("epoch", "weights", "made_in", "version", "sequences", "calls", "output", "progress")


@dataclass
class Made:
    """What a job left: the model, its tokenizer, the optimizer's state and what is noted beside it (state.py)."""

    job: Job
    model: Any
    tokenizer: Any
    optimizer: dict[str, Any]
    noted: dict[str, Any]


stays = False  # whether this process is given other jobs after this one
_made: Made | None = None
_left: list[Callable[[], None]] = []  # to be written when the job is said to be done


def keep(made: Made) -> None:
    """Keep what a job made for the next one, where this process gets one."""
    global _made
    if stays:
        from lightning_core.training.trl_bridge import remove_head

        remove_head(made.model)
        _made = made


def write_behind(write: Callable[[], None]) -> None:
    """Write something at once or, where this process stays, after its job is reported done (`finish`), when nobody
    waits for it."""
    if stays:
        _left.append(write)
    else:
        write()


def finish() -> None:
    """Write what the last job left to be written. Raises WeightsError."""
    while _left:
        _left.pop(0)()


def model_of(job: Job, vocabulary: int) -> tuple[Any, Any, Made | None]:
    """Return the tokenizer and the model that `job` begins with, and what the last job made where it goes on from
    exactly that.

    Else the memory of that is given back, and both are read; where the KL's reference is a model of its own, the model
    is that. Raises WeightsError.
    """
    global _made
    made, _made = _made, None
    if made is not None:
        made = made if _goes_on(job, made.job) else None
        free_memory()  # of the last trainer, too
    if made is not None:
        return made.tokenizer, made.model, made
    tokenizer = load_tokenizer(job.source, vocabulary)
    model = load_model(job.base_model if job.other_reference else job.source, weights_kind(job))
    if job.policy_settings.lora and job.weights is not None:
        model = load_adapter(model, job.weights)
    return tokenizer, model, None


def _goes_on(job: Job, last: Job) -> bool:
    same = job.model_dump(exclude=set(_OF_AN_EPOCH)) == last.model_dump(exclude=set(_OF_AN_EPOCH))
    return (
        same
        and not job.other_reference
        and job.made_in == last.epoch
        and job.version == noted_version(job.state, last.epoch)
    )
