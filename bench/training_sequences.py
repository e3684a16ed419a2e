"""Sequences of bench/training.py: a real epoch of the calculator, and shapes of it and of long agents."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from bench.report import say
from bench.runs import ROOT, flow_command, run_for
from lightning_core.training.dataset import Sequence, read_sequences

VOCABULARY = 49152
GROUP = 8


def real_calculator(home: Path, groups: int) -> list[Sequence]:
    """The first `groups` groups of an epoch of the calculator in groups of 8, which is run in `home` if it was not yet.

    Raises RuntimeError where the epoch fails, or has fewer groups to train on.
    """
    files = _sequences(home)
    if not files:
        say(f"an epoch of the calculator in groups of {GROUP}, minutes: {home}/run.log")
        changes = {
            "home": str(home),
            "epochs": 1,
            "rollout.group_size": GROUP,
            "rollout.tasks_per_epoch": 4 * groups,  # some are all wrong, and train nothing
            "evaluation.every": 0,
        }
        home.mkdir(parents=True, exist_ok=True)
        command = flow_command("train", ROOT / "examples/calculator/settings.yaml", changes)
        run_for(command, home / "run.log", math.inf, "the calculator's epoch")
        files = _sequences(home)
    rows = read_sequences(files[-1], policy="policy", vocabulary=VOCABULARY, max_tokens=1024).rows
    names = sorted({row.group_id for row in rows})[:groups]
    if len(names) < groups:
        raise RuntimeError(f"{home}: {len(names)} groups are trained on, {groups} asked for; another home, or fewer")
    return [row for row in rows if row.group_id in names]


def _sequences(home: Path) -> list[Path]:
    return sorted((home / "lake/derived").glob("*/0000/sequences-*.parquet"))


def calculator(groups: int, rng: np.random.Generator) -> list[Sequence]:
    """As the calculator's: 150 tokens that all share, 30 of the task, an answer of 14, sometimes a second turn."""
    system = _draw(rng, 150)
    rows = []
    for group in range(groups):
        prompt = np.concatenate([system, _draw(rng, 30)])
        for number in range(GROUP):
            turns = [_draw(rng, 14)] if number % 2 else [_draw(rng, 14), _draw(rng, 10), _draw(rng, 14)]
            rows.append(_row(f"{group}.{number}", f"{group}", prompt, turns, rng))
    return rows


def long_calls(rng: np.random.Generator, history: int) -> list[Sequence]:
    """A group whose 8 rollouts share a history of so many tokens: 4 turns, each call a sequence of its own.

    So it is where an agent writes its history anew each time, or with `merge: per_call`.
    """
    shared, rows = _draw(rng, history), []
    for number in range(GROUP):
        prompt = shared
        for call in range(4):
            answer = _draw(rng, 16)
            rows.append(_row(f"{number}.{call}", "g", prompt, [answer], rng, rollout=str(number)))
            prompt = np.concatenate([prompt, answer, _draw(rng, 12)])
    return rows


def long_merged(rng: np.random.Generator, history: int) -> list[Sequence]:
    """The same, with the 4 turns of a rollout merged into one sequence."""
    shared, rows = _draw(rng, history), []
    for number in range(GROUP):
        turns = [_draw(rng, n) for n in (16, 12, 16, 12, 16, 12, 16)]
        rows.append(_row(str(number), "g", shared, turns, rng))
    return rows


def unshared(rng: np.random.Generator, rows: int, tokens: int, words: int = VOCABULARY) -> list[Sequence]:
    """Rows of so many tokens each that share nothing: a quarter is the prompt, the rest was sampled."""
    prompt = tokens // 4
    ids = rng.integers(0, words, (rows, tokens))
    return [_row(str(n), str(n), ids[n, :prompt], [ids[n, prompt:]], rng) for n in range(rows)]


def _draw(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.integers(0, VOCABULARY, n)


def _row(
    name: str, group: str, prompt: np.ndarray, turns: list[np.ndarray], rng: np.random.Generator, rollout: str = ""
) -> Sequence:
    """Turns are sampled and given tokens in turn."""
    sampled = [np.full(len(turn), at % 2 == 0) for at, turn in enumerate(turns)]
    mask = np.concatenate([np.zeros(len(prompt), bool), *sampled])
    return Sequence(
        sequence_id=name,
        rollout_id=rollout or name,
        attempt_id="a",
        group_id=group,
        token_ids=np.concatenate([prompt, *turns]).astype(np.int32),
        prompt_length=len(prompt),
        loss_mask=mask,
        logprobs=np.where(mask, -10.0, 0).astype(np.float32),
        advantages=np.where(mask, rng.normal(), 0).astype(np.float32),
    )
