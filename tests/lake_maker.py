"""Epochs made of span rows, for tests of the SQL: what the decoder would have written, without a server."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lightning_core.config import AgentSettings, PolicySettings, RewardSettings, Settings, TaskSettings
from lightning_core.epoch.derive import derive
from lightning_core.epoch.epoch import Epoch
from lightning_core.lake import retries, schema
from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import EpochManifest, SpanFile, SpanManifest, Stage
from lightning_core.lake.number_facts import measured

SECOND = 1_000_000_000
_END = 1 << 40  # of the spool
_NOT_CONTENT = {"scope", "received_ns", "record_offset", "record_index"}


class Attempt:
    """Spans of one attempt. Times are in seconds after the attempt's start; ids count up."""

    def __init__(self, rollout: str = "r.0", attempt: str = "a", group: str = "g", start: float = 100.0) -> None:
        self.rows: list[dict[str, Any]] = []
        self._scope = {"rollout_id": rollout, "attempt_id": attempt}
        self._group = group
        self._start = start

    def span(
        self, name: str = "step", at: tuple[float, float] = (0.1, 0.9), parent: str | None = None, **columns: Any
    ) -> str:
        """Add a span; returns its id."""
        span_id = columns.pop("span_id", f"{len(self.rows) + 1:016x}")
        row: dict[str, Any] = {c.name: None for c in schema.SPANS}
        row |= self._scope | {
            "scope": "path",
            "trace_id": "0" * 31 + "1",
            "span_id": span_id,
            "parent_span_id": parent,
            "name": name,
            "kind": "internal",
            "op": "other",
            "start_ns": int((self._start + at[0]) * SECOND),
            "end_ns": int((self._start + at[1]) * SECOND),
            "status": "ok",
            "attributes": [],
            "resource": [],
            "received_ns": 0,
            "record_offset": len(self.rows),
            "record_index": 0,
        }
        self.rows.append(row | columns)
        return span_id

    def root(
        self, outcome: str = "ok", mode: str = "train", at: tuple[float, float] = (0.0, 1.0), **columns: Any
    ) -> str:
        scope: dict[str, Any] = {
            "run": "run",
            "epoch": 0,
            "mode": mode,
            "group_id": self._group,
            "task_id": self._group,
        }
        return self.span("rollout", at, op="rollout", outcome=outcome, trace_id="f" * 32, **(scope | columns))

    def agent(self, name: str, at: tuple[float, float] = (0.1, 0.9), parent: str | None = None, **columns: Any) -> str:
        return self.span(f"{name}.run", at, parent, op="agent", agent_name=name, **columns)

    def call(
        self,
        prompt: list[int],
        response: list[int],
        at: tuple[float, float] = (0.2, 0.3),
        parent: str | None = None,
        policy: str | None = "policy",
        **columns: Any,
    ) -> str:
        """A call as the gateway records it: in a trace of its own unless it has a parent."""
        row = {
            "op": "llm",
            "policy": policy,
            "policy_version": "v0000",
            "response_id": f"chatcmpl-{len(self.rows)}",
            "prompt_ids": prompt,
            "response_ids": response,
            "response_logprobs": [-0.5] * len(response),
            "trace_id": "0" * 31 + "1" if parent else f"{len(self.rows) + 16:032x}",
        }
        return self.span("chat policy", at, parent, **(row | columns))

    def reward(self, value: float, at: float = 0.95, name: str = "reward", **columns: Any) -> str:
        row: dict[str, Any] = {
            "op": "reward",
            "reward": value,
            "reward_name": name,
            "reward_source": "grader",
            "trace_id": "e" * 32,
        }
        return self.span("reward", (at, at), **(row | columns))


def settings(home: Path, **changes: Any) -> Settings:
    """Settings for a derived epoch; those of a policy (`agent_match`, `advantages`, …) and of rewards may be given by name."""
    policy = {k: changes.pop(k) for k in PolicySettings.model_fields if k in changes}
    policies = changes.pop("policies", None) or [PolicySettings(**policy)]
    reward = RewardSettings(**{k: changes.pop(k) for k in list(changes) if k in RewardSettings.model_fields})
    return Settings(
        run="run",
        home=home,
        agent=AgentSettings(callable="agent:run"),
        tasks=changes.pop("tasks", None) or TaskSettings(train="tasks.jsonl"),
        policies=policies,
        reward=reward,
        **changes,
    )


def derived(
    home: Path, rows: list[dict[str, Any]], mode: str = "train", planned: list[str] | None = None, **changes: Any
) -> tuple[Lake, EpochManifest]:
    """Write rows (retries once, as a lake does) as one span file in the order given and derive the epoch (of `versions`, after epochs that knew `prompts`) from it."""
    lake = Lake(home)
    path = "spans/0.parquet"
    (lake.root / "spans").mkdir(parents=True, exist_ok=True)
    rows = [row | {"record_index": i, "content_hash": _content_hash(row)} for i, row in enumerate(rows)]
    table = retries.without(
        measured(pa.Table.from_pylist(rows, schema=schema.arrow_schema(schema.SPANS))), lake.root, []
    )
    pq.write_table(table, lake.root / path)
    file = SpanFile(path=path, rows=table.num_rows, bytes=1, start=0, end=_END)
    lake.manifests.put_spans(SpanManifest(decoded_offset=_END, files=[file]))
    epoch = EpochManifest(run="run", epoch=0, mode=mode, opened_offset=0, sealed_offset=_END)
    epoch.planned = planned or []
    epoch.versions = changes.pop("versions", {})
    epoch.prompts = changes.pop("prompts", None)
    buckets = {k: changes.pop(k) for k in ("spans_a_bucket",) if k in changes}
    derive(Epoch(settings(home, **changes), epoch), "key", **buckets)
    lake.manifests.put_epoch(epoch)
    return lake, epoch


def received_anew(rows: list[dict[str, Any]], order: random.Random) -> list[dict[str, Any]]:
    """The rows as if they had come in another order, and so lay elsewhere in the spool."""
    return [row | {"record_offset": place} for place, row in enumerate(order.sample(rows, len(rows)))]


def _content_hash(row: dict[str, Any]) -> int:
    content = repr(sorted((k, v) for k, v in row.items() if k not in _NOT_CONTENT))
    return int.from_bytes(hashlib.blake2b(content.encode(), digest_size=8).digest(), "little", signed=True)


def table(lake: Lake, epoch: EpochManifest, name: str) -> list[dict[str, Any]]:
    """Rows of a derived table."""
    return pq.read_table(lake.path(epoch.tables[name])).to_pylist()


def trained(lake: Lake, number: int = 0) -> None:
    """As if an epoch of run `run` had been trained on in one step, with the tokens clipped that were to become likelier."""
    epoch = lake.manifests.epoch("run", number)
    assert epoch is not None
    found = table(lake, epoch, "sequences")
    lengths = [sum(row["loss_mask"]) for row in found]
    up = [max(row["advantages"]) > 0 for row in found]
    rows = {
        "policy": ["policy"] * len(found),
        "step": pa.array([1] * len(found), pa.int32()),
        "sequence_id": [row["sequence_id"] for row in found],
        "logprobs": [[-1.0] * n for n in lengths],
        "entropies": [[0.5] * n for n in lengths],
        "ratios": [[1.1] * n for n in lengths],
        "loss_weights": [[0.1] * n for n in lengths],
        "clipped": [[is_up] * n for is_up, n in zip(up, lengths, strict=True)],
    }
    lake.put_table(epoch, "training_rows policy", pa.table(rows), "v0001")
    epoch.stages["train policy"] = Stage(
        key="key", seconds=1.0, finished_ns=0, output={"version": "v0001", "metrics": {}}
    )
    lake.manifests.put_epoch(epoch)
    lake.rebuild_catalog()
