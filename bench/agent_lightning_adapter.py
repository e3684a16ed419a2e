"""Agent Lightning's adapter, to measure against. Runs in its own environment (`make oracle-env`), imports nothing of ours;
`bench.hierarchy` starts it.

On stdin: JSON, a list of rollouts, each a list of keyword arguments of Span.from_attributes. On stdout: JSON, the seconds
that `adapt` took for each (making the spans is not counted) and how many triplets it gave: [[seconds, triplets], …].
"""

import json
import sys
import time

from agentlightning.adapter.triplet import TracerTraceToTriplet
from agentlightning.types import Span

adapter = TracerTraceToTriplet()
answers = []
for rollout in json.load(sys.stdin):
    spans = [Span.from_attributes(**span) for span in rollout]
    began = time.perf_counter()
    triplets = adapter.adapt(spans)
    answers.append([time.perf_counter() - began, len(triplets)])
json.dump(answers, sys.stdout)
