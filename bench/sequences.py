"""From calls to training rows: 100,000 calls of 1,000 tokens through the SQL that makes sequences and advantages.

The spans are written as the decoder would have left them. Two epochs, in groups of 8 rollouts: rollouts of one call (as
GRPO has them: nothing merges), and conversations of ten calls, each prompt the history of the last. Timed is what comes
after the tree and the rewards: triplets, merging, advantages, rows.

    sequences_100k_s   the slower of the two, in seconds; baseline: the minute that is promised. `one_call`, `ten_calls`: wall
                       seconds; `…_cpu`: of processor time; `…_all`: from Parquet, with the tree

    .venv/bin/python -m bench.sequences [--quick] [--calls 100000]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench.report import figure, say
from lightning_core.config import AgentSettings, PolicySettings, Settings, TaskSettings, TrainingSettings
from lightning_core.epoch.derive import derive
from lightning_core.epoch.derive_inputs import GIVEN, KEPT_REWARDS, KEPT_TRIPLETS
from lightning_core.epoch.epoch import Epoch
from lightning_core.lake import schema, sql
from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import EpochManifest, SpanFile, SpanManifest
from lightning_core.lake.number_facts import measured

_TOKENS, _RESPONSE, _GROUP = 1000, 50, 8
_PROMISED_S = 60.0
_ROLLOUTS_A_FILE = 2000
_VOCABULARY = 49_152
_FROM_CALLS = {*sql.steps("sequences", "call_exclusions", *KEPT_TRIPLETS, there=GIVEN)} - {
    *sql.steps("span_tree", *KEPT_REWARDS, there=GIVEN)
}


def write_spans(home: Path, calls: int, calls_a_rollout: int, seed: int = 0) -> EpochManifest:
    """An epoch of `calls` calls in a lake: per rollout its root, a reward, and calls of about 1,000 tokens each."""
    lake = Lake(home)
    (lake.root / "spans").mkdir(parents=True)
    random = np.random.default_rng(seed)
    rollouts, files = calls // calls_a_rollout, []
    for number, first in enumerate(range(0, rollouts, _ROLLOUTS_A_FILE)):
        last = min(first + _ROLLOUTS_A_FILE, rollouts)
        table = _spans(range(first, last), calls_a_rollout, number, random)
        path = f"spans/{number:06d}.parquet"
        pq.write_table(table, lake.root / path, compression="zstd", compression_level=1)
        files.append(SpanFile(path=path, rows=table.num_rows, bytes=1, start=number, end=number + 1))
    lake.manifests.put_spans(SpanManifest(decoded_offset=len(files), files=files))
    return EpochManifest(run="bench", epoch=0, opened_offset=0, sealed_offset=len(files))


def _spans(rollouts: range, calls: int, offset: int, random: np.random.Generator) -> pa.Table:
    # Prompts grow by what was sampled and as much again; on average a call has _TOKENS tokens.
    step = 2 * _RESPONSE
    first_prompt = _TOKENS - _RESPONSE - step * (calls - 1) // 2
    length = first_prompt + step * calls
    rows: list[dict[str, Any]] = []
    for rollout in rollouts:
        scope = {"rollout_id": f"r.{rollout:07d}", "attempt_id": "a", "scope": "path", "status": "ok"}
        start = 1_000_000_000 * (rollout + 1)
        conversation = random.integers(0, _VOCABULARY, length, dtype=np.int32)
        task = {"run": "bench", "epoch": 0, "mode": "train", "group_id": f"g{rollout // _GROUP}", "outcome": "ok"}
        root = {"op": "rollout", "name": "rollout", "span_id": "root", "start_ns": start, "end_ns": start + 10**8}
        given = {
            "op": "reward",
            "name": "reward",
            "span_id": "reward",
            "start_ns": start + 10**8,
            "parent_span_id": "root",
        }
        rows += [scope | task | root, scope | given | {"reward": float(random.random()), "reward_name": "reward"}]
        for call in range(calls):
            prompt = first_prompt + step * call
            rows.append(
                scope
                | {"op": "llm", "name": "chat policy", "span_id": f"call{call}", "parent_span_id": "root"}
                | {"start_ns": start + 10**6 * (call + 1), "end_ns": start + 10**6 * (call + 1) + 500}
                | {"policy": "policy", "policy_version": "v0000", "response_id": f"{rollout}-{call}"}
                | {"prompt_ids": conversation[:prompt], "response_ids": conversation[prompt : prompt + _RESPONSE]}
                | {"response_logprobs": np.full(_RESPONSE, -0.5, np.float32)}
            )
    for place, row in enumerate(rows):
        row |= {"trace_id": row["rollout_id"], "record_offset": offset, "record_index": place, "content_hash": place}
    return measured(pa.Table.from_pylist(rows, schema=schema.arrow_schema(schema.SPANS)))


class _Clock:
    """Seconds, of wall and processor, spent in the SQL files from triplets on and in writing what they make."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0
        self.files: dict[str, float] = {}
        self._since: tuple[str, float, float] | None = None

    def __call__(self, name: str | None, of: int = 0) -> None:
        now, cpu = time.perf_counter(), time.process_time()
        if self._since is not None:
            file, wall, since = self._since
            if file in _FROM_CALLS:
                self.wall, self.cpu = self.wall + now - wall, self.cpu + cpu - since
            self.files[file] = self.files.get(file, 0.0) + now - wall
        self._since = (name, now, cpu) if name is not None else None


def measure(calls: int, calls_a_rollout: int) -> dict[str, float]:
    """Seconds from triplets to rows (`wall`, `cpu`), and from Parquet (`all`)."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        say(f"writing {calls} calls, {calls_a_rollout} a rollout")
        epoch = write_spans(home, calls, calls_a_rollout)
        settings = Settings(
            home=home,
            agent=AgentSettings(callable="agent:run"),
            tasks=TaskSettings(train="tasks.jsonl"),
            policies=[PolicySettings(training=TrainingSettings(max_sequence_tokens=1 << 20))],
        )
        clock, began = _Clock(), time.perf_counter()
        rows = derive(Epoch(settings, epoch), "bench", clock)
        clock(None)
        if rows["exclusions"] or rows["sequences"] != calls // calls_a_rollout:
            raise RuntimeError(f"{rows}: every call was to be trained, a rollout a row")
        slowest = sorted(clock.files.items(), key=lambda item: -item[1])[:5]
        say(
            f"  {rows['sequences']} rows; slowest: " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in slowest)
        )
        return {"wall": clock.wall, "cpu": clock.cpu, "all": time.perf_counter() - began}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--quick", action="store_true", help="a hundredth of it")
    arguments = parser.parse_args()
    calls = arguments.calls // 100 if arguments.quick else arguments.calls
    one, ten = measure(calls, 1), measure(calls, 10)
    figure(
        "sequences_100k_s",
        max(one["wall"], ten["wall"]),
        "s",
        _PROMISED_S,
        calls,
        smaller_is_better=True,
        **{
            f"{name}{suffix}": found[key]
            for name, found in (("one_call", one), ("ten_calls", ten))
            for suffix, key in (("", "wall"), ("_cpu", "cpu"), ("_all", "all"))
        },
    )


if __name__ == "__main__":
    main()
