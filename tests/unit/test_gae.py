"""Advantages of single tokens in SQL: those of a loop over each rollout's tokens, backwards."""

from __future__ import annotations

from typing import Any

import duckdb
import numpy as np
import pytest

from lightning_core.lake import sql
from tests.sql_rig import RETURNS, put, rows, run

_SEQUENCES = "sequence_id VARCHAR, policy VARCHAR, call_ids VARCHAR[]"
_MERGES = "call_id BIGINT, choice BIGINT, policy VARCHAR, prompt_tokens INTEGER, tokens INTEGER"
_SCORES = 'sequence_id VARCHAR, "values" FLOAT[]'
_OPTIONS = "gae_lambda DOUBLE, normalize BOOLEAN"
_SETTINGS = "assign VARCHAR, gamma DOUBLE"


class Rollouts:
    """Rollouts of one to five calls, each of one to four tokens in one or two choices, some of them left out of training.

    Four are a group. Calls are merged to sequences by chance. With `final` each has the rollout's reward; else each has rewards of its own,
    and two agents take turns.
    """

    def __init__(self, assign: str, gamma: float, seed: int = 0) -> None:
        self.rng = rng = np.random.default_rng(seed)
        self.assign, self.gamma = assign, gamma
        self.returns: list[dict[str, Any]] = []
        self.merges: list[dict[str, Any]] = []
        self.sequences: list[dict[str, Any]] = []
        self.values: dict[tuple[int, int], np.ndarray] = {}  # by call and choice
        self.given: dict[int, float] = {}  # what each call was itself rewarded with
        self.chains: list[list[int]] = []  # trained calls, in their order, of what one reward is for
        call = 0
        for n in range(40):
            calls = list(range(call, call + int(rng.integers(1, 6))))
            call += len(calls)
            self._rollout(f"r{n}", calls, trained=[c for c in calls if rng.random() < 0.8])

    def _rollout(self, name: str, calls: list[int], trained: list[int]) -> None:
        rng, total = self.rng, float(self.rng.normal())
        agents = {c: "" if self.assign == "final" else "ab"[c % 2] for c in calls}
        for agent in sorted(set(agents.values())):
            mine = [c for c in calls if agents[c] == agent]
            own = {c: float(rng.normal()) for c in mine}
            returned: dict[int, float] = {}
            for at, c in enumerate(mine):
                later = mine[at:] if self.assign == "discounted" else [c]
                returned[c] = sum(self.gamma**k * own[each] for k, each in enumerate(later))
                if self.assign == "final":
                    returned[c] = total
                of_call = {"call_id": c, "policy": "p", "rollout_id": name, "attempt_id": "0", "agent": agent}
                of_call["group_id"] = f"g{int(name[1:]) // 4}"
                self.returns.append(of_call | {"step": 0 if self.assign == "final" else at, "return": returned[c]})
            chain = [c for c in mine if c in trained]
            if self.assign == "nearest":
                self.chains += [[c] for c in chain]
            elif chain:
                self.chains.append(chain)
            for at, c in enumerate(chain):
                behind = chain[at + 1] if at + 1 < len(chain) else None
                if self.assign == "final":
                    self.given[c] = total if behind is None else 0.0
                elif self.assign == "nearest" or behind is None:
                    self.given[c] = returned[c]
                else:
                    self.given[c] = returned[c] - self.discount(c, behind) * returned[behind]
        self._merge(name, trained)

    def _merge(self, name: str, trained: list[int]) -> None:
        rng, left = self.rng, list(trained)
        while left:
            taken, left = left[: (size := int(rng.integers(1, 4)))], left[size:]
            for choice in range(int(rng.integers(1, 3)) if len(taken) == 1 else 1):
                self.sequences.append(
                    {
                        "sequence_id": f"{name}/{taken[0]}.{choice}",
                        "policy": "p",
                        "call_ids": [f"{c}.{choice}" for c in taken],
                    }
                )
                for c in taken:
                    tokens = int(rng.integers(1, 5))
                    self.values[c, choice] = rng.normal(0, 1, tokens).astype(np.float32)
                    self.merges.append(
                        {"call_id": c, "choice": choice, "policy": "p", "prompt_tokens": 3, "tokens": 3 + tokens}
                    )

    def others(self, call: int) -> float:
        """Mean return of the group's other rollouts at the same step of the same agent; 0 where there are none."""
        (own,) = (row for row in self.returns if row["call_id"] == call)
        place = ("group_id", "agent", "step")
        alike = [row for row in self.returns if all(row[name] == own[name] for name in place)]
        by_rollout = {row["rollout_id"]: row["return"] for row in alike if row["rollout_id"] != own["rollout_id"]}
        return sum(by_rollout.values()) / len(by_rollout) if by_rollout else 0.0

    def discount(self, call: int, behind: int) -> float:
        steps = {row["call_id"]: row["step"] for row in self.returns}
        return float(1.0 if self.assign == "final" else self.gamma ** (steps[behind] - steps[call]))

    def advantages(self, gae_lambda: float) -> dict[tuple[int, int], np.ndarray]:
        """By the loop; of several choices of the next call the first stands for it."""
        found: dict[tuple[int, int], np.ndarray] = {}
        for chain in self.chains:
            next_advantage, next_value, behind = 0.0, 0.0, None
            for c in reversed(chain):
                of_first = (0.0, 0.0)
                for choice in sorted(k[1] for k in self.values if k[0] == c):
                    advantage, value = next_advantage, next_value
                    discount = 0.0 if behind is None else self.discount(c, behind)
                    reward = self.given[c]
                    numbers = []
                    for v in reversed(self.values[c, choice].astype(float) + self.others(c)):
                        advantage = reward + discount * value - v + gae_lambda * discount * advantage
                        value, discount, reward = float(v), 1.0, 0.0
                        numbers.append(advantage)
                    found[c, choice] = np.array(numbers[::-1])
                    if choice == 0:
                        of_first = (advantage, value)
                next_advantage, next_value = of_first
                behind = c
        return found


@pytest.mark.parametrize("gae_lambda", [0.0, 0.9, 1.0])
@pytest.mark.parametrize(("assign", "gamma"), [("final", 1.0), ("nearest", 1.0), ("discounted", 0.7)])
def test_advantages_are_those_of_a_loop_over_the_tokens_of_each_rollout(
    assign: str, gamma: float, gae_lambda: float
) -> None:
    made = Rollouts(assign, gamma)
    found = _gae(made, gae_lambda, normalize=False)
    expected = made.advantages(gae_lambda)
    assert len(expected) == len(made.values) > 60
    for sequence in made.sequences:
        parts = [tuple(int(n) for n in each.split(".")) for each in sequence["call_ids"]]
        advantages = np.concatenate([expected[call, choice] for call, choice in parts])
        values = np.concatenate([made.values[call, choice] for call, choice in parts])
        row = found[sequence["sequence_id"]]
        assert row["advantages"] == pytest.approx(advantages, abs=1e-5)
        assert row["returns"] == pytest.approx(advantages + values, abs=1e-5)


def test_normalized_advantages_have_mean_0_and_deviation_1_and_the_explained_variance_is_a_metric() -> None:
    made = Rollouts("final", 1.0)
    plain, found = (_gae(made, 1.0, normalize) for normalize in (False, True))
    numbers = np.concatenate([row["advantages"] for row in found.values()])
    assert (numbers.mean(), numbers.std()) == pytest.approx((0, 1), abs=1e-5)
    before = np.concatenate([row["advantages"] for row in plain.values()])
    assert numbers == pytest.approx((before - before.mean()) / before.std(), abs=1e-4)
    assert [row["returns"] for row in found.values()] == [row["returns"] for row in plain.values()]
    returns = np.concatenate([row["returns"] for row in plain.values()])
    values = np.concatenate([value for _, value in sorted(_by_sequence(made).items())])
    (explained,) = {row["explained_variance"] for row in found.values()}
    assert explained == pytest.approx(1 - (returns - values).var() / returns.var(), abs=1e-5)


def _by_sequence(made: Rollouts) -> dict[str, np.ndarray]:
    return {
        s["sequence_id"]: np.concatenate(
            [made.values[int(each.split(".")[0]), int(each.split(".")[1])] for each in s["call_ids"]]
        )
        for s in made.sequences
    }


def _gae(made: Rollouts, gae_lambda: float, normalize: bool) -> dict[str, dict[str, Any]]:
    with duckdb.connect(config={"threads": 1}) as con:
        put(con, "sequences", _SEQUENCES, made.sequences)
        put(con, "merges", _MERGES, made.merges)
        put(con, "call_returns", RETURNS, made.returns)
        put(con, "reward_settings", _SETTINGS, [{"assign": made.assign, "gamma": made.gamma}])
        run(con, "tokens/sequence_calls")
        values = [{"sequence_id": name, '"values"': of.tolist()} for name, of in _by_sequence(made).items()]
        put(con, "token_scores", _SCORES, values)
        put(con, "options", _OPTIONS, [{"gae_lambda": gae_lambda, "normalize": normalize}])
        return {row["sequence_id"]: row for row in rows(con, sql.text("tokens/gae"))}
