"""A trainer that stays for a run: what its last job made is still in its memory when the next one goes on from it.

One process that is handed jobs one after another (launch.py); where the settings ask for several processes a training,
each training starts afresh. What is kept gives the bits that reading the published version would give.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lightning_core.training.job import Job
from lightning_core.training.state import noted_version
from lightning_core.training.weights import free_memory

# What differs from epoch to epoch; with anything else that differs, the next job reads its weights.
_OF_AN_EPOCH = ("epoch", "weights", "made_in", "version", "sequences", "output", "progress")


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


def keep(made: Made) -> None:
    """Keep what a job made for the next one, where this process gets one."""
    global _made
    if stays:
        from lightning_core.training.trl_bridge import remove_head

        remove_head(made.model)
        _made = made


def take(job: Job) -> Made | None:
    """Hand over what the last job made, where `job` goes on from exactly that; else its memory is given back."""
    global _made
    made, _made = _made, None
    if made is None:
        return None
    if not _goes_on(job, made.job):
        made = None
    free_memory()  # of the last trainer, too
    return made


def _goes_on(job: Job, last: Job) -> bool:
    same = job.model_dump(exclude=set(_OF_AN_EPOCH)) == last.model_dump(exclude=set(_OF_AN_EPOCH))
    return same and job.made_in == last.epoch and job.version == noted_version(job.state, last.epoch)
