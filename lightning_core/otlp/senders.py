"""Whose spans these are, and who sent them: what the gateway wrote down of a request, and what proofs in it say."""

from __future__ import annotations

import pyarrow as pa

from lightning_core.otlp.locate import Located, Sent

UNKNOWN = "otlp"  # a record's source of before senders were written down: they may say everything


def sender_columns(found: Located, spans: list[Sent]) -> dict[str, pa.Array]:
    """Return the columns `scoped_rollout_id`, `scoped_attempt_id`, `scope` and `sender` of these spans.

    Those that nobody sent are an attempt's where their resource proves it; others are as the gateway authenticated
    them.
    """
    records = [record for _, record in found.records]
    known: list[tuple[str | None, ...]] = [
        (r.rollout_id, r.attempt_id, r.scope, None if r.source == UNKNOWN else r.source) for r in records
    ]
    which = [record for _, record, _, _ in spans]
    if any(r.source == "nobody" for r in records) and any(origin.proof is not None for origin in found.origins):
        places: dict[tuple[int, int], int] = {}  # record and origin → which of `known`
        for place, (_, record, _, origin) in enumerate(spans):
            if records[record].source != "nobody":
                continue
            if (record, origin) not in places:
                proven = found.origins[origin].proven(found.secret, records[record].received_ns)
                places[record, origin] = record if proven is None else len(known)
                known += [] if proven is None else [(*proven, "proof", "attempt")]
            which[place] = places[record, origin]
    taken = pa.array(which, pa.int32())
    names = ("scoped_rollout_id", "scoped_attempt_id", "scope", "sender")
    columns = zip(*known, strict=True) if known else [()] * len(names)
    return {name: pa.array(column, pa.string()).take(taken) for name, column in zip(names, columns, strict=True)}
