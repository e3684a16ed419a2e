"""What has to be equal in the two answers to a well-formed rollout, and how a fault's are read."""

from __future__ import annotations

from typing import Any

from tests.oracle.cases import Case
from tests.oracle.faults import Answer


def assert_same(case: Case, oracle: dict[str, Any], ours: dict[str, Any]) -> None:
    """The same triplets, of the same agents; ours in order of time, which the tokens count (the oracle's are in order of
    traversal where links were repaired).

    Rewards: with `nearest` call by call, where the oracle has none for a call ours is 0. With `final` ours has on every
    call what the oracle's trainer takes for the rollout: the last reward in its list.
    """
    assert "error" not in oracle, oracle
    expected, found = sorted(oracle["triplets"], key=lambda t: t["response"]), ours["triplets"]
    assert [(t["prompt"], t["response"], t["agent"]) for t in found] == [
        (t["prompt"], t["response"], None if t["agent"] == "*" else t["agent"]) for t in expected
    ]
    if case.assign == "nearest":
        assert [t["reward"] for t in found] == [t["reward"] or 0.0 for t in expected]
        return
    last = [t["reward"] for t in expected if t["reward"] is not None][-1:]
    assert [t["reward"] for t in found] == last * len(found)


def answers(answer: dict[str, Any]) -> list[Answer]:
    return [(t["response"][0], t["agent"], t["reward"]) for t in answer.get("triplets", [])]


def left_out(answer: dict[str, Any]) -> dict[int, str]:
    return {int(ids.strip("[]").split(",")[0]): reason for ids, reason in answer["left_out"].items()}
