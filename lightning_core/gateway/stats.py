"""Counters: Prometheus's for operators, and a bounded memory of attempts for the flows."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

UNREAD = 0  # stands for what a call asked whose body was not read: any later answer is taken for its own
_ATTEMPTS_KEPT = 20_000
_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)
_FIRST_TOKEN = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25)


@dataclass(slots=True)
class AttemptStats:
    """What the gateway saw of one attempt since the gateway started."""

    calls: int = 0
    tokens: int = 0  # of prompts and responses
    infrastructure_errors: int = 0  # calls that failed, and not by the agent's doing
    last_error: str | None = None
    unanswered: dict[int, float] = field(default_factory=dict)  # of those, what was asked and when it failed
    refused_otlp: int = 0  # OTLP requests answered 503; exporters retry those for a while
    refused: dict[str, int] = field(default_factory=dict)  # calls that did not begin, by OpenAI's code
    rejected_spans: int = 0  # in OTLP/JSON, without a protobuf form; others are found when they are decoded

    def failed(self, message: str, asked: int) -> None:
        """Record that a call for `asked` (a digest) failed by the infrastructure."""
        self.infrastructure_errors += 1
        self.last_error = message
        self.unanswered[asked] = time.perf_counter()

    def answered(self, asked: int, began: float) -> None:
        """Record that a call for `asked` was answered.

        Where it began (time.perf_counter()) after another failed, the agent lost nothing.
        """
        for what in (asked, UNREAD):
            if self.unanswered.get(what, began) < began:
                del self.unanswered[what]


class PolicyStats:
    """The counters of one policy or upstream: finding them by its name each time costs more than counting."""

    def __init__(self, stats: Stats, label: str) -> None:
        self.ended = cache(partial(stats.calls.labels, label))  # by outcome
        self.retries = stats.retries.labels(label)
        self.in_flight = stats.in_flight.labels(label)
        self.tokens = {kind: stats.tokens.labels(label, kind) for kind in ("prompt", "completion")}
        self.seconds = stats.seconds.labels(label)
        self.first_token = stats.first_token.labels(label)


class Stats:
    def __init__(self) -> None:
        self._began = time.monotonic()
        self.serving: dict[str, int] = {}  # calls now, by the name they were sent upstream with
        self.registry = CollectorRegistry()
        counter, gauge = partial(Counter, registry=self.registry), partial(Gauge, registry=self.registry)
        histogram = partial(Histogram, registry=self.registry)
        self.requests = counter("lightning_requests", "requests answered, HTTP and gRPC", ["route", "status"])
        self.calls = counter("lightning_calls", "LLM calls by outcome", ["policy", "outcome"])
        self.retries = counter("lightning_upstream_retries", "tries repeated", ["policy"])
        self.in_flight = gauge("lightning_calls_in_flight", "LLM calls now", ["policy"])
        self.tokens = counter("lightning_tokens", "tokens of calls", ["policy", "kind"])
        self.seconds = histogram("lightning_call_seconds", "duration of LLM calls", ["policy"], buckets=_SECONDS)
        self.first_token = histogram(
            "lightning_first_token_seconds", "time to the first token of streams", ["policy"], buckets=_FIRST_TOKEN
        )
        self.waiting = gauge("lightning_calls_waiting", "calls behind others of their rollout")
        self.turned_away = counter(
            "lightning_calls_turned_away", "calls refused before they began", ["policy", "reason"]
        )
        spooled = counter("lightning_spooled_bytes", "bytes of span requests kept", ["source"])
        self.spooled_calls, self.spooled_otlp = spooled.labels("gateway"), spooled.labels("otlp")
        self.received = counter("lightning_otlp_spans", "spans stored by the receivers")
        self.refused = counter("lightning_spool_refusals", "OTLP requests answered 503")
        self.rejected = counter("lightning_otlp_rejected_spans", "spans set aside as they came")
        self.all = AttemptStats()  # of `refused_otlp` and `rejected_spans`, the sums over all that was sent
        self.dropped = counter("lightning_otlp_dropped", "metrics and logs sent here", ["signal"])
        self.spool_offset = gauge("lightning_spool_offset_bytes", "durable end of the spool")
        self.spool_kept = gauge("lightning_spool_kept_bytes", "bytes not yet decoded")
        self._attempts: OrderedDict[tuple[str, str], AttemptStats] = OrderedDict()
        self.policy = cache(partial(PolicyStats, self))  # or an upstream's, by its name
        self.answered = cache(self.requests.labels)  # by route and status

    def attempt(self, rollout_id: str | None, attempt_id: str | None) -> AttemptStats:
        """Return the attempt's record, made where there is none; the ones longest unused are forgotten."""
        if rollout_id is None or attempt_id is None:
            return AttemptStats()
        key = (rollout_id, attempt_id)
        found = self._attempts.get(key)
        if found is None:
            found = self._attempts[key] = AttemptStats()
        self._attempts.move_to_end(key)
        if len(self._attempts) > _ATTEMPTS_KEPT:
            self._attempts.popitem(last=False)
        return found

    def peek(self, rollout_id: str, attempt_id: str) -> dict[str, Any]:
        found = self._attempts.get((rollout_id, attempt_id), AttemptStats())
        return asdict(found) | {"unanswered": len(found.unanswered), "up_s": time.monotonic() - self._began}

    def text(self) -> bytes:
        return generate_latest(self.registry)
