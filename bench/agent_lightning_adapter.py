"""Agent Lightning's adapter, to measure against. Runs in its own environment (`make oracle-env`), imports nothing of ours;
`bench.hierarchy` starts it.

    agent_lightning_adapter.py ROUNDS AGENT_MATCH

On stdin: JSON, a list of rollouts, each a list of keyword arguments of Span.from_attributes. On stdout: JSON, without
agent_match and with it, for each rollout the least seconds of the rounds that its spans took to make, those that `adapt`
took, and how many triplets it gave: [[[seconds, seconds, triplets], …], […]].
"""

import json
import sys
import time
from typing import Any

from agentlightning.adapter.triplet import TracerTraceToTriplet
from agentlightning.types import Span


def adapted(adapter: TracerTraceToTriplet, rollout: list[dict[str, Any]]) -> tuple[float, float, int]:
    began = time.perf_counter()
    spans = [Span.from_attributes(**span) for span in rollout]
    made = time.perf_counter()
    triplets = adapter.adapt(spans)
    return made - began, time.perf_counter() - made, len(triplets)


rounds, rollouts = range(int(sys.argv[1])), json.load(sys.stdin)
adapters = [TracerTraceToTriplet(agent_match=match) for match in (None, sys.argv[2])]
answers = [[[adapted(adapter, rollout) for rollout in rollouts] for adapter in adapters] for _ in rounds]
least = [
    [[min(values) for values in zip(*times, strict=True)] for times in zip(*of_one, strict=True)]
    for of_one in zip(*answers, strict=True)
]
json.dump(least, sys.stdout)
