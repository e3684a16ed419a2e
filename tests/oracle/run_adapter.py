"""Agent Lightning's adapter, run by the Python of `.venv-oracle`: cases as JSON on stdin, its answers on stdout.

A case: {"spans": [keyword arguments of Span.from_attributes], "agent_match": str | null, "reward_match": str}.
An answer: {"triplets": [{"prompt", "response", "agent", "reward"}]}, or {"error": name of the exception it raised}.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from agentlightning.adapter.triplet import RewardMatchPolicy, TracerTraceToTriplet
from agentlightning.types import Span


def answer(case: dict[str, Any]) -> dict[str, Any]:
    try:
        spans = [Span.from_attributes(**span) for span in case["spans"]]
        adapter = TracerTraceToTriplet(
            agent_match=case["agent_match"], reward_match=RewardMatchPolicy(case["reward_match"])
        )
        found = adapter.adapt(spans)
    except Exception as error:  # noqa: BLE001 - that it raises is its answer
        return {"error": type(error).__name__}
    return {
        "triplets": [
            {
                "prompt": triplet.prompt["token_ids"],
                "response": triplet.response["token_ids"],
                "agent": triplet.metadata["agent_name"],
                "reward": triplet.reward,
            }
            for triplet in found
        ]
    }


json.dump([answer(case) for case in json.load(sys.stdin)], sys.stdout)
