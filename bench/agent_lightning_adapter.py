"""Agent Lightning's adapter, to measure against. Runs in its own environment (`make oracle-env`), imports nothing of ours;
`bench.hierarchy` starts it.

    agent_lightning_adapter.py [AGENT_MATCH]

On stdin: JSON, a list of rollouts, each a list of keyword arguments of Span.from_attributes. On stdout: JSON, for each the
seconds that its spans took to make, those that `adapt` took, and how many triplets it gave: [[seconds, seconds, triplets], …].
"""

import json
import sys
import time

from agentlightning.adapter.triplet import TracerTraceToTriplet
from agentlightning.types import Span

adapter = TracerTraceToTriplet(agent_match=sys.argv[1] if len(sys.argv) > 1 else None)
answers = []
for rollout in json.load(sys.stdin):
    began = time.perf_counter()
    spans = [Span.from_attributes(**span) for span in rollout]
    made = time.perf_counter()
    triplets = adapter.adapt(spans)
    answers.append([made - began, time.perf_counter() - made, len(triplets)])
json.dump(answers, sys.stdout)
