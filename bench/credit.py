"""Who earned the reward: advantages of a planner, two workers and a critic beside what each is known to have added. No model, no data.

    credit_shares_end     each call's output adds its share to the reward, which a grader gives at the end
    credit_shares_own     likewise, and each call is given its own share as it ends (`reward.weights` sums them)
    credit_pair_end, credit_pair_own     what the workers say last has a further part that depends on both
    credit_led_end, credit_led_own       nine times of ten the workers say what the planner said, whose own share is 0
    credit_shares_end_4, credit_shares_end_64    groups of 4 and 64 rollouts; the others have 16

Outputs are sampled, one of two a call, and written as spans; the lake and the SQL make advantages of them. Planted is what a call
added: what the reward is expected to be after its output, less what it was before, given what had been said (Q - V, exactly).
`value` is the correlation of the advantages with it, of `counterfactual` with `assign: discounted`, `baseline` that of `rloo`.
`by` has for each assign/estimator the correlation, and the variance of the advantages of calls of a task that added the same, in units
of what is added (advantages scaled to rise as fast); `agents` the correlation for planner, workers, critic. What is left out has advantage 0. `all_others` is no
estimator of ours: as `counterfactual`, but all that other agents said has to be the same, also what they said later.

    .venv/bin/python -m bench.credit [credit_shares_end …] [--tasks 60] [--quick]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from bench.report import figure, say
from lightning_core import names
from lightning_core.config import PolicySettings
from lightning_core.epoch.derive import derive
from lightning_core.epoch.epoch import Epoch
from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import EpochManifest
from lightning_core.otlp.spans import SpanData, encode_request, float32_bytes, int32_bytes
from lightning_core.spool.spool import Record
from tests.lake_maker import settings
from tests.spool_maker import record, store

CALLS = (("planner", 1), ("worker_a", 1), ("worker_a", 2), ("worker_b", 1), ("worker_b", 2), ("critic", 1))
AGENTS = {"planner": [0], "workers": [1, 2, 3, 4], "critic": [5]}
ESTIMATORS = ("reinforce", "reinforce_pp", "grpo", "dr_grpo", "rloo", "counterfactual")
ASSIGN: dict[str, dict[str, Any]] = {
    "final": {"assign": "final"},
    "nearest": {"assign": "nearest"},
    "discounted": {"assign": "discounted", "gamma": 1.0},
}
NOISE = 0.5  # standard deviation of what nobody added
FOLLOWED = 0.9
# Name → what is planted, who gives the rewards, rollouts a group.
RUNS = {
    "credit_shares_end": ("shares", "end", 16),
    "credit_shares_own": ("shares", "own", 16),
    "credit_pair_end": ("pair", "end", 16),
    "credit_pair_own": ("pair", "own", 16),
    "credit_led_end": ("led", "end", 16),
    "credit_led_own": ("led", "own", 16),
    "credit_shares_end_4": ("shares", "end", 4),
    "credit_shares_end_64": ("shares", "end", 64),
}
_BEGIN_NS = 1_790_000_000_000_000_000


@dataclass(frozen=True)
class Sampled:
    """Rollouts: task, output and reward of each call (N, 6), what each call added (N, 6)."""

    task: np.ndarray
    said: np.ndarray
    rewards: np.ndarray
    added: np.ndarray


def sample(kind: str, tasks: int, group: int) -> Sampled:
    """Draw tasks with their shares, and rollouts of each."""
    rng, shape = np.random.default_rng(0), (2,) * len(CALLS)
    found: list[tuple[int, list[int], np.ndarray, list[float]]] = []
    for task in range(tasks):
        shares = rng.normal(size=(len(CALLS), 2))
        pair = rng.normal(size=(2, 2)) * (1.5 if kind == "pair" else 0)
        if kind == "led":
            shares[0] = 0

        def parts(said: tuple[int, ...], shares: np.ndarray = shares, pair: np.ndarray = pair) -> np.ndarray:
            own = shares[range(len(CALLS)), said].copy()
            own[4] += pair[said[2], said[4]]
            return own

        values = [np.array([parts(said).sum() for said in np.ndindex(*shape)]).reshape(shape)]
        for call in reversed(range(len(CALLS))):  # expected rewards, from the last call to before the first
            chance = np.stack([_chance(kind, call, said) for said in np.ndindex(*shape[:call])]).reshape(
                *shape[:call], 2
            )
            values.insert(0, (chance * values[0]).sum(axis=-1))
        for _ in range(group):
            said: list[int] = []
            while len(said) < len(CALLS):
                said.append(int(rng.random() < _chance(kind, len(said), tuple(said))[1]))
            noise = rng.normal(size=len(CALLS)) * NOISE / len(CALLS) ** 0.5
            after = [float(values[n][tuple(said[:n])]) for n in range(len(CALLS) + 1)]
            found.append((task, said, parts(tuple(said)) + noise, list(np.diff(after))))
    return Sampled(*(np.array(column) for column in zip(*found, strict=True)))


def _chance(kind: str, call: int, said: tuple[int, ...]) -> np.ndarray:
    """Probability of either output, given those before."""
    if kind == "led" and 1 <= call <= 4:
        return np.array([1 - FOLLOWED, FOLLOWED] if said[0] else [FOLLOWED, 1 - FOLLOWED])
    return np.array([0.5, 0.5])


def records(sampled: Sampled, rewarded: str, estimator: str) -> Iterator[Record]:
    """The spans of the rollouts, sampled by a policy of the estimator's name, as a gateway and agents send them."""
    for number in range(len(sampled.task)):
        yield record(encode_request({}, spans(sampled, number, rewarded, estimator)), f"{estimator}.{number}", "a1")


def spans(sampled: Sampled, number: int, rewarded: str, estimator: str) -> list[SpanData]:
    task, said, rewards = f"t{sampled.task[number]}", sampled.said[number], sampled.rewards[number]
    made: list[SpanData] = []

    def add(name: str, begin: int, end: int, attributes: dict[str, Any], parent: str = "") -> str:
        begin_ns, end_ns = (_BEGIN_NS + second * 10**9 for second in (begin, end))
        made.append(SpanData(name, begin_ns, end_ns, "01" * 16, f"{len(made) + 1:016x}", parent, attributes))
        return made[-1].span_id

    scope = {names.RUN: "run", names.EPOCH: 0, names.MODE: "train", names.TASK_ID: task}
    scope[names.GROUP_ID] = f"{estimator}.{task}"
    add(names.SPAN_ROLLOUT_START, 0, 0, scope)
    agents: dict[str, str] = {}
    for place, (agent, _) in enumerate(CALLS):
        begin, end = 10 * place + 1, 10 * place + 9
        if agent not in agents:
            last = max(i for i, (name, _) in enumerate(CALLS) if name == agent)
            who = {names.GEN_AI_OPERATION: "invoke_agent", "gen_ai.agent.name": agent}
            agents[agent] = add(agent, begin, 10 * last + 9, who)
        call = {
            names.POLICY: estimator,
            names.POLICY_VERSION: "v0000",
            names.GEN_AI_OPERATION: "chat",
            names.GEN_AI_RESPONSE_ID: f"{estimator}-{number}-{place}",
            names.GEN_AI_OUTPUT_MESSAGES: json.dumps([{"role": "assistant", "content": ["no", "yes"][said[place]]}]),
            names.PROMPT_TOKEN_IDS: int32_bytes([1, place]),
            names.RESPONSE_TOKEN_IDS: int32_bytes([10 + int(said[place])]),
            names.RESPONSE_LOGPROBS: float32_bytes([-0.7]),
        }
        call_id = add("chat", begin + 1, end - 1, call, agents[agent])
        if rewarded == "own":
            reward = {names.REWARD: float(rewards[place]), names.REWARD_NAME: f"call{place}"}
            add(names.SPAN_REWARD, end - 1, end - 1, reward | {names.REWARD_SOURCE: "agent"}, call_id)
    if rewarded == "end":
        add(names.SPAN_REWARD, 99, 99, {names.REWARD: float(rewards.sum()), names.REWARD_SOURCE: "grader"})
    add(names.SPAN_ROLLOUT, 0, 100, scope | {names.STATUS: "ok"})
    return made


def advantages(lake: Lake, home: Path, assign: str, rewarded: str, rollouts: int) -> dict[str, dict[str, np.ndarray]]:
    """Derive the epoch; return estimator → column → its value for each call (N, 6)."""
    taken = [e for e in ESTIMATORS if not (assign == "final" and e == "counterfactual")]
    policies = [PolicySettings(name=e, lora={"rank": 1}, advantages=e) for e in taken]
    weights = {f"call{place}": 1.0 for place in range(len(CALLS))} if rewarded == "own" else {}
    epoch = EpochManifest(run="run", epoch=0, mode="train", opened_offset=0, sealed_offset=lake.end())
    derive(Epoch(settings(home, policies=policies, weights=weights, **ASSIGN[assign]), epoch), "key")
    found = {e: {c: np.zeros((rollouts, len(CALLS))) for c in ("advantage", "return", "fell_back")} for e in taken}
    for row in pq.read_table(lake.path(epoch.tables["advantages"])).to_pylist():
        estimator, number = row["rollout_id"].split(".")
        place = slice(None) if assign == "final" else CALLS.index((row["agent"], row["step"]))
        for column, values in found[estimator].items():
            values[int(number), place] = row[column] or 0.0
    return found


def against_all_others(sampled: Sampled, returns: np.ndarray) -> np.ndarray:
    """What the advantages were if all that other agents said had to be the same, before the call and after it."""
    made = np.zeros_like(returns)
    for place, (agent, _) in enumerate(CALLS):
        others = [i for i, (name, _) in enumerate(CALLS) if name != agent]
        for number, task in enumerate(sampled.task):
            group = (sampled.task == task) & (np.arange(len(returns)) != number)
            alike = group & (sampled.said[:, others] == sampled.said[number, others]).all(axis=1)
            made[number, place] = returns[number, place] - returns[alike if alike.any() else group, place].mean()
    return made


def correlation(advantage: np.ndarray, added: np.ndarray) -> float | None:
    """Of all calls; None where either is always the same."""
    if advantage.std() < 1e-9 or added.std() < 1e-9:
        return None
    return round(float(np.corrcoef(advantage.ravel(), added.ravel())[0, 1]), 3)


def variance(advantage: np.ndarray, sampled: Sampled) -> float | None:
    """Of calls of one task and place that added the same, with advantages scaled to rise as fast as what was added."""
    slope = float(np.cov(sampled.added.ravel(), advantage.ravel())[0, 1]) / float(sampled.added.var())
    within, free = 0.0, 0
    for place in range(len(CALLS)):
        keys = np.stack([sampled.task, np.round(sampled.added[:, place], 9)], axis=1)
        kinds, of = np.unique(keys, axis=0, return_inverse=True)
        means = np.bincount(of.ravel(), advantage[:, place]) / np.bincount(of.ravel())
        within += float(((advantage[:, place] - means[of.ravel()]) ** 2).sum())
        free += len(advantage) - len(kinds)
    return round(within / free / slope**2, 2) if abs(slope) > 1e-9 else None


def measure(name: str, tasks: int) -> None:
    kind, rewarded, group = RUNS[name]
    sampled = sample(kind, tasks, group)
    by, agents, fell_back = {}, {}, 0.0
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        for estimator in ESTIMATORS:
            store(home, records(sampled, rewarded, estimator))
        lake = Lake(home)
        lake.ingest()
        for assign in ASSIGN:
            found = advantages(lake, home, assign, rewarded, len(sampled.task))
            made = {estimator: columns["advantage"] for estimator, columns in found.items()}
            if assign == "discounted":
                fell_back = float(found["counterfactual"]["fell_back"].mean())
                made["all_others"] = against_all_others(sampled, found["rloo"]["return"])
            for estimator, advantage in made.items():
                by[f"{assign}/{estimator}"] = [correlation(advantage, sampled.added), variance(advantage, sampled)]
                of_agents = [correlation(advantage[:, at], sampled.added[:, at]) for at in AGENTS.values()]
                agents[f"{assign}/{estimator}"] = of_agents
                say(f"{name} {assign:>10} {estimator:<14} {by[f'{assign}/{estimator}']} {of_agents}")
    ours, rloo = (by[f"discounted/{estimator}"][0] or 0.0 for estimator in ("counterfactual", "rloo"))
    figure(name, ours, "correlation", rloo, sampled.said.size, fell_back=fell_back, by=by, agents=agents)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help=", ".join(RUNS))
    parser.add_argument("--tasks", type=int, default=60)
    parser.add_argument("--quick", action="store_true", help="small numbers that mean nothing")
    options = parser.parse_args()
    unknown = set(options.figures) - {*RUNS}
    if unknown:
        parser.error(f"no figure {', '.join(sorted(unknown))}; there are {', '.join(RUNS)}")
    for name in options.figures or RUNS:
        measure(name, 3 if options.quick else options.tasks)


if __name__ == "__main__":
    main()
