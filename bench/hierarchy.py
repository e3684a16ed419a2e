"""From Parquet to triplets, beside Agent Lightning's adapter on the same spans.

    triplets_14, _101, _1001, _3002   spans/s of a million spans in rollouts of so many: repair, agents, rewards, triplets.
                      `value` is the slower of the shapes `flat` and `nested`, `baseline` the adapter's faster one. Beside
                      it for each shape [ours, theirs, theirs without making its spans]; `lost`: calls without parents,
                      where there is something to repair; `matching`: the shapes in which it was faster with an
                      `agent_match` (one that takes every agent, so the same triplets) than without
    triplets_20m      spans/s of 20 million in rollouts of 101; baseline: of one million in the same run, so a ratio near 1
                      is what linear means. `peak_gb`: memory of the process; above 8 the bench fails
    sequences_100k_s  bench.sequences

Ours reads Parquet and runs on all cores; the adapter gets attributes that are read already, makes its spans of them, of a
sample of rollouts, and has no use for a second core. It is asked with `agent_match` and without, since neither is always
the faster way, and counts with the faster. Best of three rounds on both sides. What slows the adapter down as
rollouts grow is its repair: it shows in `lost` alone, where `lost_ratio` is ours over theirs.

    .venv/bin/python -m bench.hierarchy [triplets_14 …] [--spans 1000000] [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import duckdb

from bench.epochs import Shape, write_epoch
from bench.report import figure, say
from lightning_core.config import AgentSettings, Settings, TaskSettings
from lightning_core.epoch import buckets, derive
from lightning_core.epoch.derive_inputs import KEPT_REWARDS, make_inputs
from lightning_core.epoch.epoch import Epoch
from lightning_core.lake import sql
from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import EpochManifest

SIZES = (14, 101, 1001, 3002)
SHAPES: tuple[Shape, ...] = ("flat", "nested", "lost")
_LONG = "triplets_20m"  # on request alone
FIGURES = (*(f"triplets_{size}" for size in SIZES), "sequences_100k_s", _LONG)
_ORACLE = Path(__file__).parents[1] / ".venv-oracle"
_ROUNDS = 3
_ALLOWED_GB = 8
_EVERY_AGENT = "."  # what the adapter's agent_match takes


def settings(home: Path) -> Settings:
    return Settings(
        run="bench", home=home, agent=AgentSettings(callable="agent:run"), tasks=TaskSettings(train="tasks.jsonl")
    )


def seconds_to_triplets(home: Path, epoch: EpochManifest) -> tuple[float, int]:
    """(seconds, triplets): the first pass of a derivation, as far as triplets, every bucket."""
    began = time.perf_counter()
    handle = Epoch(settings(home), epoch)
    with derive.opened(handle) as con:
        make_inputs(con, handle)
        derive.make_user_rules(con, [])
        parts = buckets.cut(con, derive.MEMORY_GB)
        counts: list[int] = []

        def work(own: duckdb.DuckDBPyConnection, bucket: buckets.Bucket) -> None:
            derive.run(own, sql.steps("epoch_spans", "span_tree", *KEPT_REWARDS, "triplets", there=derive.KNOWN))
            # A view: read what a triplet is made of.
            made = own.execute(
                "SELECT count(*), sum(len(prompt_ids)), sum(len(response_ids)), sum(reward) FROM triplets"
            )
            counts.append(made.fetchall()[0][0])

        for _ in buckets.worked(con, parts, work):
            pass
        triplets = sum(counts)
    return time.perf_counter() - began, triplets


def theirs(home: Path, epoch: EpochManifest, size: int, rollouts: int) -> tuple[float, float, bool] | None:
    """Spans/s of the adapter over a sample of the rollouts: with the spans to make, and alone, and whether that was with
    agent_match, as the faster way; None if not installed."""
    if not (_ORACLE / "ready").exists():
        say("Agent Lightning is not installed (make oracle-env): no baseline")
        return None
    with Lake(home).connect(epoch.span_range) as con:
        rows = con.sql(
            f"FROM spans WHERE rollout_id IN (SELECT DISTINCT rollout_id FROM spans ORDER BY ALL LIMIT {rollouts})"
        )
        table = rows.to_arrow_table().sort_by([("rollout_id", "ascending"), ("start_ns", "ascending")])
    by_rollout: dict[str, list[dict[str, Any]]] = {}
    for row in table.to_pylist(maps_as_pydicts="lossy"):
        spans = by_rollout.setdefault(row["rollout_id"], [])
        spans.append(_as_theirs(len(spans), row))
    question = json.dumps(list(by_rollout.values()))
    rounds = _ROUNDS if size < 1000 else 1
    every, matching = _adapted(question, rounds)
    assert [triplets for *_, triplets in every] == [triplets for *_, triplets in matching]
    rates = []
    for best, with_match in ((every, False), (matching, True)):
        count = size * len(best)
        rate = count / sum(make + adapt for make, adapt, _ in best)
        rates.append((rate, count / sum(adapt for _, adapt, _ in best), with_match))
    return max(rates)


def _adapted(question: str, rounds: int) -> list[list[list[float]]]:
    """Without agent_match and with it, of each rollout the least [seconds to make its spans, to adapt them], and its triplets."""
    done = subprocess.run(
        [_ORACLE / "bin" / "python", Path(__file__).with_name("agent_lightning_adapter.py"), str(rounds), _EVERY_AGENT],
        input=question,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        env={"LITELLM_LOCAL_MODEL_COST_MAP": "True"},  # else it asks the network at import
    )
    answers: list[list[list[float]]] = json.loads(done.stdout.splitlines()[-1])
    return answers


def _as_theirs(number: int, row: dict[str, Any]) -> dict[str, Any]:
    """A span as its tracer would have written it."""
    attributes: dict[str, Any] = dict(row["attributes"])
    if row["agent_name"] is not None:
        attributes["agent.name"] = row["agent_name"]
    if row["op"] == "llm":
        attributes |= {"prompt_token_ids": row["prompt_ids"], "response_token_ids": row["response_ids"]}
        attributes["gen_ai.response.id"] = row["response_id"]
    if row["op"] == "reward":
        attributes |= {"agentlightning.reward.0.name": "reward", "agentlightning.reward.0.value": row["reward"]}
    return {
        "rollout_id": row["rollout_id"],
        "attempt_id": row["attempt_id"],
        "sequence_id": number,
        "trace_id": row["trace_id"],
        "span_id": row["span_id"],
        "parent_id": row["parent_span_id"],
        "name": "agentlightning.annotation" if row["op"] == "reward" else row["name"],
        "start_time": row["start_ns"] / 1e9,
        "end_time": row["end_ns"] / 1e9,
        "attributes": attributes,
    }


def side_by_side(name: str, size: int, spans: int) -> None:
    ours: dict[str, float] = {}
    others: dict[str, tuple[float, float, bool]] = {}
    n = 0
    for shape in SHAPES:
        with tempfile.TemporaryDirectory() as scratch:
            epoch, n = write_epoch(Path(scratch), spans, size, shape)
            rounds = [seconds_to_triplets(Path(scratch), epoch) for _ in range(_ROUNDS)]
            assert len({triplets for _, triplets in rounds}) == 1 and rounds[0][1] > n // 4
            ours[shape] = n / min(seconds for seconds, _ in rounds)
            other = theirs(Path(scratch), epoch, size, max(min(3000 // size, n // size), 1))
            if other is not None:
                others[shape] = other
        say(f"{name} {shape}: {ours[shape]:.0f}, theirs {others.get(shape)}")
    value = min(ours["flat"], ours["nested"])
    baseline = max(others["flat"][0], others["nested"][0]) if others else None
    beside: dict[str, Any] = {shape: [ours[shape], *others.get(shape, (None, None))[:2]] for shape in SHAPES}
    matching = [shape for shape, (*_, with_match) in others.items() if with_match]
    lost_ratio = ours["lost"] / others["lost"][0] if others else None
    figure(name, value, "spans/s", baseline, n, **beside, lost_ratio=lost_ratio, matching=matching)


def at_any_size(name: str, spans: int) -> None:
    """Each size in a process of its own, whose memory is then its own; SystemExit where it takes more than allowed."""
    lines = {}
    for count in (1_000_000, spans):
        with tempfile.TemporaryDirectory() as scratch:
            epoch, n = write_epoch(Path(scratch), count, 101, "nested")
            done = subprocess.run(
                [sys.executable, "-m", "bench.hierarchy", "--one", scratch],
                input=epoch.model_dump_json(),
                stdout=subprocess.PIPE,
                check=True,
                text=True,
            )
        seconds, peak_gb = json.loads(done.stdout.splitlines()[-1])
        lines[count] = {"n": n, "rate": n / seconds, "peak_gb": peak_gb}
        say(f"{name} {count}: {lines[count]}")
    whole = lines[spans]
    figure(name, whole["rate"], "spans/s", lines[1_000_000]["rate"], whole["n"], peak_gb=whole["peak_gb"])
    if whole["peak_gb"] > _ALLOWED_GB:
        raise SystemExit(f"{name}: {whole['peak_gb']:.1f} GB, of {_ALLOWED_GB} allowed")


def one(home: Path) -> None:
    """Seconds and peak memory (GB) of one pass over the epoch in a home, as a JSON line; its manifest on stdin."""
    seconds, _ = seconds_to_triplets(home, EpochManifest.model_validate_json(sys.stdin.read()))
    print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help=", ".join(FIGURES))
    parser.add_argument("--spans", type=int, default=1_000_000)
    parser.add_argument("--quick", action="store_true", help="small numbers that mean nothing")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    unknown = set(options.figures) - set(FIGURES)
    if unknown:
        parser.error(f"no figure {', '.join(sorted(unknown))}; there are {', '.join(FIGURES)}")
    if options.one is not None:
        one(options.one)
        return
    say(f"{os.cpu_count()} cores")
    for name in options.figures or [name for name in FIGURES if name != _LONG]:
        if name == "sequences_100k_s":
            subprocess.run(
                [sys.executable, "-m", "bench.sequences", *(["--quick"] if options.quick else [])], check=True
            )
        elif name == _LONG:
            at_any_size(name, 2_000_000 if options.quick else 20_000_000)
        else:
            side_by_side(name, int(name.rpartition("_")[2]), 20_000 if options.quick else options.spans)


if __name__ == "__main__":
    main()
