"""Rollouts that ran elsewhere, read from a file: they become an epoch of a run of their own, which `finetune.runs` names.

Each is there once: its id is made of its content, and what an epoch of the home has planned already does not come again.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from lightning_core import names
from lightning_core.epoch.decoding import decode_spool, ingest
from lightning_core.gateway.handle import GatewayHandle
from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import EpochManifest, LakeError, Source
from lightning_core.lake.redact import Redaction
from lightning_core.otlp.messages import Envelope, parse_envelope
from lightning_core.otlp.spans import SCOPE, STATUS_ERROR, STATUS_OK, SpanData, encode_request

logger = logging.getLogger(__name__)

_POST_BYTES = 4 << 20  # of one request
_DECODE_BYTES = 256 << 20  # sent, after which the spool is decoded and freed
_SHOWN = 10  # bad parts that are named each


@dataclass(frozen=True)
class Group:
    """Spans of one resource and scope, as OTLP's bytes of each."""

    resource: bytes
    scope: bytes
    spans: list[bytes]


@dataclass(frozen=True)
class Imported:
    """A rollout of a file. `task`, `output`: JSON; `rewards`: by their names, where its spans do not say them."""

    rollout_id: str
    trace_id: str
    start_ns: int
    end_ns: int
    groups: list[Group]
    task: str | None = None
    output: str | None = None
    outcome: str = "ok"
    error: str | None = None
    rewards: Mapping[str, float] = field(default_factory=lambda: {"reward": 1.0})  # somebody chose it as an example

    @property
    def spans(self) -> int:
        return sum(len(group.spans) for group in self.groups)


@dataclass(frozen=True)
class BadPart:
    """What no rollout can be made of: where, and why, with the remedy."""

    where: str
    why: str


@dataclass
class Imports:
    """What an import did."""

    run: str
    epoch: int | None = None  # None: nothing was new
    rollouts: int = 0
    spans: int = 0
    known: int = 0  # were there already, or came twice in the file
    bad: list[BadPart] = field(default_factory=list)  # the first of them
    dropped: int = 0


OnProgress = Callable[[Imports], None]


def import_rollouts(
    lake: Lake,
    gateway: GatewayHandle,
    run: str,
    source: str,
    found: Callable[[int], Iterable[Imported | BadPart]],
    redaction: Redaction | None,
    on_progress: OnProgress,
) -> Imports:
    """Put the rollouts that `found` yields (given the time at which they count as imported) into the next epoch of `run`.

    An import that was killed begins anew: the rollouts of its try lie before its epoch, and count for nothing. Raises LakeError
    where the run is in the middle of an epoch, or its lake takes no spans.
    """
    done = Imports(run)
    with lake.working_on(run):
        decode_spool(lake, redaction)
        epoch = _opened(lake, run)
        known = {rollout for other in lake.manifests.epochs(mode="train") for rollout in other.planned}
        body: list[bytes] = []
        size = sent = 0
        for one in _new(found(time.time_ns()), known, done):
            for made in _encoded(one, epoch, source):
                body.append(made)
                size += len(made)
                if size >= _POST_BYTES:
                    gateway.post(b"".join(body))
                    body, size, sent = [], 0, sent + size
                    on_progress(done)
            done.rollouts, done.spans = done.rollouts + 1, done.spans + one.spans
            epoch.planned.append(one.rollout_id)
            if sent >= _DECODE_BYTES:
                decode_spool(lake, redaction)
                sent = 0
        if not epoch.planned:
            lake.manifests.drop_epoch(epoch)
            ingest(lake, redaction)
            return done
        if body:
            gateway.post(b"".join(body))
        epoch.sealed_offset = ingest(lake, redaction).decoded_offset
        counts = {"rollouts": done.rollouts, "known": done.known, "dropped": done.dropped}
        for stage in ("rollouts", "record"):  # so that the run's next epoch is another
            epoch.finish(stage, source, counts, 0.0)
        lake.manifests.put_epoch(epoch)
        lake.rebuild_catalog()
        done.epoch = epoch.epoch
    return done


def _opened(lake: Lake, run: str) -> EpochManifest:
    """Open the run's next epoch, behind all that was received."""
    number = lake.manifests.next_epoch(run)
    before = lake.manifests.epoch(run, number)
    if before is not None and (before.stages or before.versions):
        raise LakeError(
            f"epoch {number} of run {run!r} is not finished; finish it, or import under another name (--run NAME)"
        )
    epoch = EpochManifest(run=run, epoch=number, opened_offset=lake.end(), sources=[Source(run=run, epoch=number)])
    lake.manifests.put_epoch(epoch)
    return epoch


def _new(found: Iterable[Imported | BadPart], known: set[str], done: Imports) -> Iterator[Imported]:
    for one in found:
        if isinstance(one, BadPart):
            done.dropped += 1
            if len(done.bad) < _SHOWN:
                done.bad.append(one)
        elif one.rollout_id in known:
            done.known += 1
        else:
            known.add(one.rollout_id)
            yield one


def group_of(spans: list[SpanData], resource: Mapping[str, Any] | None = None, scope: str = SCOPE) -> Group:
    """Return spans of ours as a group."""
    above = parse_envelope(encode_request(resource or {}, spans, scope)).resource_spans[0]
    return Group(above.resource, above.scope_spans[0].scope, list(above.scope_spans[0].spans))


def _encoded(one: Imported, epoch: EpochManifest, source: str) -> Iterator[bytes]:
    """Yield the OTLP requests of a rollout: its spans, its rewards, and the root that says which epoch it is of.

    They are several, since a chat of many turns has its beginning once a turn: as one they would be more than the
    gateway takes.
    """
    attempt_id = f"{epoch.opened_offset:x}"  # of this try
    whose = {names.ROLLOUT_ID: one.rollout_id, names.ATTEMPT_ID: attempt_id}
    root = SpanData(names.SPAN_ROLLOUT, one.start_ns, one.end_ns, one.trace_id, _own_id(one, 0))
    root.attributes = whose | {
        names.RUN: epoch.run,
        names.EPOCH: epoch.epoch,
        names.MODE: "train",
        names.TASK_ID: one.rollout_id,
        names.GROUP_ID: one.rollout_id,
        names.TASK: one.task,
        names.OUTPUT: one.output,
        names.STATUS: one.outcome,
        names.ERROR: one.error,
    }
    root.status, root.status_message = STATUS_OK if one.outcome == "ok" else STATUS_ERROR, one.error or ""
    own = [root]
    for number, (name, value) in enumerate(one.rewards.items(), 1):
        attributes = {names.REWARD: value, names.REWARD_NAME: name, names.REWARD_SOURCE: "agent"}
        times = (one.end_ns, one.end_ns)
        own.append(SpanData(names.SPAN_REWARD, *times, one.trace_id, _own_id(one, number), attributes=attributes))
    ours = group_of(own, whose | {names.IMPORTED: source})
    for group in (*one.groups, ours):
        # Messages of protobuf one after another are one message; of an attribute that is there twice the last counts.
        for spans in _portions(group.spans):
            envelope = Envelope()
            above = envelope.resource_spans.add(resource=group.resource + ours.resource)
            above.scope_spans.add(scope=group.scope, spans=spans)
            yield envelope.SerializeToString()


def _portions(spans: list[bytes]) -> Iterator[list[bytes]]:
    """Yield the spans, as many at a time as fill a request."""
    first = size = 0
    for place, span in enumerate(spans):
        size += len(span)
        if size >= _POST_BYTES:
            yield spans[first : place + 1]
            first, size = place + 1, 0
    if spans[first:]:
        yield spans[first:]


def _own_id(one: Imported, number: int) -> str:
    return hashlib.sha256(f"{one.rollout_id}#{number}".encode()).hexdigest()[:16]
