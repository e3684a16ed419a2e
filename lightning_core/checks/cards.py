"""Whether the NVIDIA cards of this machine do for a run: driver, what compiles kernels, memory, cards that would stay idle."""

from __future__ import annotations

import shutil
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from lightning_core.checks.result import Check
from lightning_core.config import PolicySettings, Settings
from lightning_core.gpus import OLDEST_DRIVER, Card, cards, seen
from lightning_core.policies.sharing import gpus_of
from lightning_core.policies.space import gb, model_folder
from lightning_core.training.memory import need_of


def check_cards(settings: Settings, trains: bool) -> Iterator[Check]:
    """Yield one check a line; nothing where `nvidia-smi` shows no card."""
    here = seen(cards(), None, several=True)
    if not here:
        return
    yield _driver(here[0])
    yield _compiler()
    if trains:
        for policy in settings.policies:
            yield _memory(settings, policy, here)
    yield from _idle(settings, here)


def _driver(card: Card) -> Check:
    if int(card.driver.partition(".")[0]) < OLDEST_DRIVER:
        found = f"driver {card.driver} of {card.name} is too old for CUDA 13; install {OLDEST_DRIVER} or newer"
        return Check("error", "driver", found)
    return Check("ok", "driver", f"{card.driver}, {card.name}")


def _compiler() -> Check:
    """Look for a C compiler and Python.h: Triton compiles a launcher for each kernel against this Python, when it first
    runs."""
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not header.is_file():
        found = f"{header} is missing, which Triton's kernels are compiled with; install python{sys.version_info[0]}.{sys.version_info[1]}-dev"
        return Check("error", "compiler", found)
    if not any(map(shutil.which, ("gcc", "clang", "cc"))):
        return Check("error", "compiler", "Triton's kernels need a C compiler; install gcc")
    return Check("ok", "compiler", f"a C compiler and {header}")


def _memory(settings: Settings, policy: PolicySettings, here: list[Card]) -> Check:
    name, training = "GPU memory", policy.training
    folder = model_folder(settings.policies[0].model, settings.models)
    wanted = need_of(policy, folder) if folder else None
    mine = seen(here, next(iter(settings.training_devices), None), several=training.processes > 1)
    if wanted is None or not mine or training.accelerate_config is not None:
        return Check("ok", name, f"{here[0].name}, {gb(here[0].free)} free; what training takes is not known before")
    card = min(mine, key=lambda each: each.total)
    longest = max(training.tokens_per_micro_batch or 0, training.max_sequence_tokens)
    takes = f"training {policy.name!r} takes about {gb(wanted.at(longest))} with {longest} tokens in a pass"
    remedy = "train an adapter (`lora`), set `training.optimizer: adamw_8bit`, or use a smaller model"
    if wanted.fits(card.total) == 0:
        return Check("error", name, f"{takes}, and {card.name} has {gb(card.total)}; {remedy}")
    if wanted.at(longest) > card.total:
        remedy = f"lower `training.max_sequence_tokens` or `training.tokens_per_micro_batch`, or {remedy}"
        return Check("warning", name, f"{takes}, and {card.name} has {gb(card.total)}; {remedy}")
    if wanted.at(longest) > card.free:
        return Check("warning", name, f"{takes}, and {gb(card.free)} are free on {card.name}; end what else is on it")
    return Check("ok", name, f"{takes}; {gb(card.free)} are free on {card.name}")


def _idle(settings: Settings, here: list[Card]) -> Iterator[Check]:
    ours, theirs = gpus_of(settings)
    if ours is None or theirs is None or len(ours | theirs) >= len(here):
        return
    found = (
        f"{len(ours | theirs)} of {len(here)} cards would be used; sample on more with `vllm.replicas: {len(here) - 1}` and as many "
        "`vllm.devices`, train on one of its own with `training_devices`, or on several with `training.processes`"
    )
    yield Check("warning", "idle cards", found)
