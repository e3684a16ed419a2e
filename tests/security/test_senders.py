"""Who sent a span, from the spool to the lake: what each may fill, and that homes of before keep all they had."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from lightning_core import names
from lightning_core.lake.decode import Decoder
from lightning_core.lake.lake import Lake
from lightning_core.otlp.proof import prove
from lightning_core.otlp.spans import SpanData, encode_request, int32_bytes
from lightning_core.spool.spool import Record
from lightning_core.spool.spool_format import Source
from tests.lake_maker import derived, table
from tests.spool_maker import record, rollout_spans, span, store

SECRET = "5" * 64
EVERYTHING = rollout_spans("r.1")
_OPS = ["rollout", "rollout.start", "llm", "reward"]


def sent(
    source: Source, spans: list[SpanData], resource: dict[str, str] | None = None, received_ns: int = 5
) -> list[dict[str, Any]]:
    """Rows of spans of a request that such a sender sent; an attempt's is scoped, as its token is."""
    body = encode_request(resource or {}, spans)
    if source in ("attempt", "gateway"):
        made = Record("r.1", "a1", "token", received_ns, source, body)
    else:
        made = Record(None, None, "none", received_ns, source, body)
    rows, rejected = Decoder(SECRET).decode([(0, 1, made)])
    assert rejected == []
    return sorted(rows.to_pylist(maps_as_pydicts="strict"), key=lambda row: row["record_index"])


@pytest.mark.parametrize(
    ("source", "refused"),
    [
        ("otlp", [None, None, None, None]),
        ("gateway", [names.RUN, None, None, names.RUN]),
        ("secret", [None, names.POLICY, None, None]),
        ("attempt", [names.RUN, names.POLICY, names.REWARD_SOURCE, names.RUN]),
        ("nobody", [names.RUN, names.POLICY, names.REWARD_SOURCE, names.RUN]),
    ],
)
def test_each_sender_fills_its_own_columns(source: Source, refused: list[str | None]) -> None:
    rows = sent(source, EVERYTHING)
    assert [row["refused"] for row in rows] == refused
    assert {row["sender"] for row in rows} == {None if source == "otlp" else source}
    start, call, reward, root = rows
    believed = [row["refused"] is None for row in rows]
    assert [start["op"], root["op"]] == [
        op if ok else "other" for op, ok in (("rollout.start", believed[0]), ("rollout", believed[3]))
    ]
    assert root["run"] == ("run" if believed[3] else None)
    client = source in ("attempt", "nobody")
    assert root["outcome"] == (None if client else "ok"), "the gateway opens and ends rollouts too"
    assert call["op"] == "llm" and call["response_id"] == "chatcmpl-r.1", "what an instrumentation says of a call stays"
    assert (call["policy"], call["response_ids"]) == (("policy", [4, 5]) if believed[1] else (None, None))
    assert reward["reward_source"] == ("grader" if believed[2] else "refused")
    sent_keys = {key for made in EVERYTHING for key in made.attributes}
    kept = {key for row in rows for key in row["attributes"]} & sent_keys
    claims = {names.RUN, names.EPOCH, names.MODE, *([names.GROUP_ID, names.TASK_ID, names.STATUS] if client else [])}
    calls = {key for key in call["attributes"] if key.startswith("lightning.")}
    assert kept - calls == (set() if believed[0] else claims), "what is not believed stays as it was sent"
    assert (
        names.PROMPT_TOKEN_IDS not in calls
        or call["attributes"][names.PROMPT_TOKEN_IDS] == int32_bytes([1, 2, 3]).hex()
    )


def test_an_attribute_of_each_sender_in_one_batch_is_read_by_who_sent_it() -> None:
    call = span("chat policy", **{names.POLICY: "policy"})
    records = [
        Record("r.1", "a1", "token", 5, source, encode_request({}, [call]))
        for source in ("gateway", "attempt", "gateway")
    ]
    rows, _ = Decoder().decode([(n, n + 1, made) for n, made in enumerate(records)])
    found = {row["record_offset"]: (row["policy"], row["refused"]) for row in rows.to_pylist()}
    assert found == {0: ("policy", None), 1: (None, names.POLICY), 2: ("policy", None)}


@pytest.mark.parametrize("received_s, holds", [(99.0, True), (101.0, False)])
def test_a_proof_is_looked_at_by_the_time_its_spans_came(received_s: float, holds: bool) -> None:
    scope = {names.ROLLOUT_ID: "r.7", names.ATTEMPT_ID: "a7"}
    proven = scope | {names.PROOF: prove(SECRET, "r.7", "a7", 100.0)}
    row = sent("nobody", [span()], proven, int(received_s * 1e9))[0]
    assert row["resource"] == scope, "the proof is dropped"
    expected = ("r.7", "a7", "proof", "attempt", None) if holds else (None, None, "none", "nobody", names.ROLLOUT_ID)
    assert tuple(row[key] for key in ("rollout_id", "attempt_id", "scope", "sender", "refused")) == expected


def test_each_resource_of_a_request_has_its_own_proof() -> None:
    """As a collector sends them: the spans of many attempts in one request."""
    bodies = []
    for number in range(4):
        scope = {names.ROLLOUT_ID: f"r.{number}", names.ATTEMPT_ID: "a"}
        of = f"r.{number}" if number != 2 else "r.0"  # its neighbour's
        bodies.append(encode_request(scope | {names.PROOF: prove(SECRET, of, "a", 100.0)}, [span(number=number + 1)]))
    rows, _ = Decoder(SECRET).decode([(0, 1, Record(None, None, "none", 5, "nobody", b"".join(bodies)))])
    found = {row["record_index"]: (row["rollout_id"], row["sender"]) for row in rows.to_pylist()}
    assert found == {0: ("r.0", "attempt"), 1: ("r.1", "attempt"), 2: (None, "nobody"), 3: ("r.3", "attempt")}


def test_a_proof_of_the_secret_holder_or_of_an_attempt_is_dropped_and_changes_nothing() -> None:
    resource = {names.ROLLOUT_ID: "r.2", names.ATTEMPT_ID: "a2", names.PROOF: prove(SECRET, "r.2", "a2", 100.0)}
    for source, rollout in (("secret", "r.2"), ("attempt", "r.1")):
        row = sent(source, [span()], resource)[0]  # type: ignore[arg-type]
        assert (row["rollout_id"], row["sender"], names.PROOF in row["resource"]) == (rollout, source, False)


def test_the_files_of_an_older_home_are_read_and_its_spans_say_what_they_said(tmp_path: Path) -> None:
    old = record(encode_request({}, EVERYTHING), "r.1")
    store(tmp_path, [old])
    lake = Lake(tmp_path)
    lake.ingest()
    manifest = lake.manifests.spans()
    path = lake.root / manifest.files[0].path
    pq.write_table(pq.read_table(path).drop_columns(["sender", "refused"]), path)
    manifest.files[0].columns = "of before"
    lake.manifests.put_spans(manifest)

    again = replace(old, source="attempt")  # its exporter sends the batch once more, to a gateway of now
    more = Record("r.1", "a1", "path", 6, "attempt", encode_request({}, [span("later", 9, 9_000)]))
    store(tmp_path, [again, more])
    done = lake.ingest()
    assert (done.spans, done.retries) == (1, 4)
    with lake.connect() as con:
        found = con.execute("SELECT op, sender, policy, run FROM spans ORDER BY start_ns").fetchall()
    assert found == [
        ("rollout", None, None, "run"),
        ("rollout.start", None, None, "run"),
        ("llm", None, "policy", None),
        ("reward", None, None, None),
        ("other", "attempt", None, None),
    ]


def test_what_an_older_home_collected_is_derived_as_it_was(tmp_path: Path) -> None:
    rows = sent("otlp", EVERYTHING, {names.ROLLOUT_ID: "r.1", names.ATTEMPT_ID: "a1"})
    lake, epoch = derived(tmp_path, rows, advantages="reinforce")
    assert [row["reward"] for row in table(lake, epoch, "rollout_rewards")] == [1.0]
    assert [row["left_out"] for row in table(lake, epoch, "policy_calls")] == [None]
    assert len(table(lake, epoch, "sequences")) == 1


def test_the_same_span_of_two_senders_stays_twice_and_in_one_order(tmp_path: Path) -> None:
    body = encode_request({}, [span("step", 1)])
    orders: dict[str, tuple[Source, ...]] = {"one": ("attempt", "secret"), "other": ("secret", "attempt")}
    for name, sources in orders.items():
        made = [Record("r.1", "a1", "path", 5, source, body) for source in (*sources, *sources)]
        store(tmp_path / name, made)
        lake = Lake(tmp_path / name)
        assert lake.ingest().retries == 2
        with lake.connect() as con:
            assert con.execute("SELECT sender FROM spans ORDER BY sender").fetchall() == [("attempt",), ("secret",)]
