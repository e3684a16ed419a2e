"""Random rollouts without a fault: what any adapter should read alike.

Agents run one after another or nested; spans lie in the order they began; ids are unique; a reward follows at once on
the call it is for, under the same agent, or there is one at the rollout's end.
"""

from __future__ import annotations

import random

from tests.lake_maker import Attempt
from tests.oracle.cases import Case

TICK = 1 / 8  # seconds that floats hold exactly, and more than the 50 ms within which we do not tell agents apart
AGENTS = ("planner", "executor", "critic")
MATCHES = ("", "executor", "^plan", "planner|critic")


def well_formed(seed: int) -> Case:
    """`linked`: every call names its parent. Otherwise none does, and time has to tell: nothing overlaps."""
    made = _Rollout(seed)
    return Case(made.attempt, made.agent_match, made.assign, made.reward_match)


class _Rollout:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.attempt = Attempt(f"r.{seed}", f"a{seed}", group=f"g{seed}")
        self.agent_match = self.random.choice(MATCHES)
        self.assign = self.random.choice(("final", "nearest"))
        self.linked = self.assign == "nearest" or self.random.random() < 0.6
        sibling = self.assign == "nearest" and self.random.random() < 0.5
        self.reward_match = "first_sibling" if sibling else "first_occurrence"
        self.now = 0.0
        self.tokens = 10
        self.rewarded = False
        root = self.attempt.root()
        for _ in range(self.random.randint(1, 4)):
            self._agent(root, 0)
        if self.assign == "final":
            self.attempt.reward(self.random.randint(0, 8) / 8, self._tick(), parent=root)
        self._end(0)

    def _tick(self) -> float:
        self.now += TICK * self.random.randint(1, 5)
        return self.now

    def _end(self, place: int) -> None:
        row = self.attempt.rows[place]
        row["end_ns"] = row["start_ns"] + int((self._tick() - self._begun(place)) * 1_000_000_000)

    def _begun(self, place: int) -> float:
        return float(self.attempt.rows[place]["start_ns"] - self.attempt.rows[0]["start_ns"]) / 1_000_000_000

    def _agent(self, parent: str, depth: int) -> None:
        name = self.random.choice(AGENTS)
        place = len(self.attempt.rows)
        begun = self._tick()
        agent = self.attempt.agent(name, (begun, begun), parent)
        for _ in range(self.random.randint(1, 4)):
            step = self.random.random()
            if step < 0.2 and depth < 3:
                self._agent(agent, depth + 1)
            elif step < 0.4:
                self.attempt.span("add", (self._tick(), self._tick()), agent, op="tool", tool_name="add")
            else:
                self._call(agent, name)
        self._end(place)

    def _call(self, agent: str, name: str) -> None:
        self.tokens += 1
        prompt = [self.random.randint(0, 9) for _ in range(self.random.randint(1, 6))]
        at = (self._tick(), self._tick())
        self.attempt.call(prompt, [self.tokens, 2], at, agent if self.linked else None)
        # A rollout without any reward would be left out.
        if self.assign == "nearest" and self._matched(name) and (self.random.random() < 0.7 or not self.rewarded):
            self.rewarded = True
            value = self.random.randint(-8, 8) / 8
            self.attempt.reward(value, self._tick(), parent=agent, reward_source="agent", trace_id="0" * 31 + "1")

    def _matched(self, name: str) -> bool:
        return any(part.lstrip("^") in name for part in self.agent_match.split("|"))
