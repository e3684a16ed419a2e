"""From an exporter to Parquet: what the receiver acknowledges, what the decoder makes of it, what it takes on disk.

The server (and, in their turn, the decoder and Agent Lightning's store) has core 0, the sender core 1. Requests hold
512 spans; `bench/spans.py` says what these are like. Both receivers get the same bytes but for the scope, over four
connections; ours answers after fsync, the other keeps them in memory. Rounds take turns, the best of each side counts,
and what was acknowledged is counted again in the lake and in the other store.

    ingest_ack[_arrays|_small]           spans/s; baseline: Agent Lightning's OTLP endpoint; `limit`: the same bodies
                                         appended to a file on the same disk, an fsync for every four
    ingest_decode_{large|arrays|small}   spans/s; baseline: its in-memory `add_many_spans`, of spans made beforehand
    lake_bytes_per_span                  large spans; baseline: their OTLP
    server_rss_growth_mb                 over a million spans (`bench/soak.py`); baseline: what is allowed

`_arrays`: token ids come as OTLP arrays, as other emitters send them, and not as our gateway's bytes.

    .venv/bin/python -m bench.ingest [--quick] [--rounds 3] [--only ingest_ack] [--soak-spans 1000000]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import signal
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import psutil

from bench import decode, peer
from bench.load import CONNECTIONS, SERVER_CORE, Post, on_core, send
from bench.report import figure, say
from bench.soak import soak
from bench.spans import SPANS_A_REQUEST, IdEncoding, Kind, request, request_spans
from lightning_core.config import GatewaySettings
from lightning_core.gateway.handle import GatewayHandle
from lightning_core.lake.lake import Lake
from lightning_core.spool import spool
from lightning_core.spool.spool import SpoolWriter


@dataclass(frozen=True)
class Case:
    """A kind of span, and how many requests of it are sent a round (to the peer: as many as take it seconds)."""

    ack: str
    decode: str
    kind: Kind
    ids: IdEncoding
    requests: int
    peer_requests: int


CASES = (
    Case("ingest_ack", "ingest_decode_large", "large", "bytes", 48, 12),
    Case("ingest_ack_arrays", "ingest_decode_arrays", "large", "array", 24, 3),
    Case("ingest_ack_small", "ingest_decode_small", "small", "bytes", 160, 12),
)
QUICK = (
    Case("ingest_ack", "ingest_decode_large", "large", "bytes", 2, 1),
    Case("ingest_ack_small", "ingest_decode_small", "small", "bytes", 2, 1),
)


@dataclass
class Rates:
    """Spans a second, one a round; `_cpu`: a second of the process's CPU, whatever else runs on its core."""

    ack: list[float] = field(default_factory=list)
    ack_cpu: list[float] = field(default_factory=list)
    limit: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)
    decode_cpu: list[float] = field(default_factory=list)
    peer_ack: list[float] = field(default_factory=list)
    peer_memory: list[float] = field(default_factory=list)
    on_disk: float = 0.0
    decoder_peak_mb: float = 0.0


def through_the_server(home: Path, bodies: list[bytes], warm_up: bytes) -> tuple[float, float]:
    """Acknowledged spans (a second, a CPU second) after a first request; the spool of `home` then has all of them."""
    with on_core(SERVER_CORE):
        server = GatewayHandle.start(home, GatewaySettings(spool_max_gb=100), home / "gateway.log")
    try:
        posts = []
        for number, body in enumerate([warm_up, *bodies]):
            token = server.mint(f"r{number}", "a", "train")
            path = f"/rollouts/r{number}/attempts/a/v1/traces"
            posts.append(Post(path, body, {"Authorization": f"Bearer {token}"}))
        send(server.url, posts[:1])
        before = _cpu_s(server)
        sent = send(server.url, posts[1:])
        cpu_s = _cpu_s(server) - before
    finally:
        server.stop()
    spans = sent.acknowledged * SPANS_A_REQUEST
    return spans / sent.seconds, spans / max(cpu_s, 0.01)


def _cpu_s(server: GatewayHandle) -> float:
    times = psutil.Process(server.pid).cpu_times()
    return float(times.user + times.system)


def appended(file: Path, bodies: list[bytes]) -> float:
    """Spans a second of the bare disk: as many bodies as there are connections appended to one file, then fsync."""
    with on_core(SERVER_CORE):
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        began = time.perf_counter()
        for start in range(0, len(bodies), CONNECTIONS):
            os.write(descriptor, b"".join(bodies[start : start + CONNECTIONS]))
            os.fsync(descriptor)
        seconds = time.perf_counter() - began
        os.close(descriptor)
    file.unlink()
    return len(bodies) * SPANS_A_REQUEST / seconds


def make_them_the_gateways(home: Path) -> None:
    """Rewrite the spool as if the gateway had recorded all of it: token ids are its to write, an attempt's stay text."""

    async def write() -> None:
        writer = SpoolWriter(home / "again", 100 << 30)
        for _, _, record in spool.read(home / "spool", 0):
            await writer.append(replace(record, source="gateway"))
        writer.close()

    asyncio.run(write())
    shutil.rmtree(home / "spool")
    (home / "again").rename(home / "spool")


def a_round(case: Case, home: Path, spans: list[bytes], rates: Rates, other: peer.PeerServer | None) -> None:
    *bodies, warm_up = [request(body, {}) for body in spans]
    rates.limit.append(appended(home / "limit", bodies))
    a_second, a_cpu_second = through_the_server(home, bodies, warm_up)
    rates.ack.append(a_second)
    rates.ack_cpu.append(a_cpu_second)
    if other is not None:
        sent = other.send(spans[: case.peer_requests])
        rates.peer_ack.append(sent.acknowledged * SPANS_A_REQUEST / sent.seconds)
    make_them_the_gateways(home)
    decoded = decode.outcome(decode.start(home, SERVER_CORE))
    acknowledged = len(bodies) * SPANS_A_REQUEST
    lake = Lake(home)
    with lake.connect() as con:
        [(there,)] = con.execute("SELECT count(*) FROM spans").fetchall()
    if not there - SPANS_A_REQUEST == decoded.spans == acknowledged:
        raise RuntimeError(
            f"{acknowledged} spans were acknowledged, {decoded.spans} decoded, {there} are in the lake, the first request's 512 among them"
        )
    rates.decode.append(decoded.spans / decoded.seconds)
    rates.decode_cpu.append(decoded.spans / decoded.cpu_s)
    rates.decoder_peak_mb = max(rates.decoder_peak_mb, decoded.peak_mb)
    rates.on_disk = sum(f.stat().st_size for f in (lake.root / "spans").rglob("*.parquet")) / there


def measure(case: Case, rounds: int, folder: Path, spans: list[bytes], python: Path | None) -> None:
    """Print the figures of a case."""
    rates = Rates()
    other = peer.PeerServer(python, rounds * case.peer_requests) if python is not None else None
    try:
        for number in range(rounds):
            home = folder / f"{case.ack}-{number}"
            home.mkdir()
            a_round(case, home, spans, rates, other)
            shutil.rmtree(home)
            if python is not None:
                rates.peer_memory.append(peer.memory_rate(python, spans[: case.peer_requests]))
        if other is not None and (kept := other.stop()) != (sent := rounds * case.peer_requests * SPANS_A_REQUEST):
            raise RuntimeError(f"Agent Lightning acknowledged {sent} spans and kept {kept}")
    finally:
        if other is not None:
            other.kill()
    n = case.requests * SPANS_A_REQUEST
    size = sum(map(len, spans)) / len(spans) / SPANS_A_REQUEST
    figure(
        case.ack,
        max(rates.ack),
        "spans/s",
        max(rates.peer_ack, default=None),
        n,
        per_cpu_second=max(rates.ack_cpu),
        limit=max(rates.limit),
        peer_memory=max(rates.peer_memory, default=None),
        otlp_bytes_per_span=size,
        rounds=rates.ack,
        peer_rounds=rates.peer_ack,
    )
    figure(
        case.decode,
        max(rates.decode),
        "spans/s",
        max(rates.peer_memory, default=None),
        n,
        per_cpu_second=max(rates.decode_cpu),
        peak_mb=rates.decoder_peak_mb,
        rounds=rates.decode,
        peer_rounds=rates.peer_memory,
    )
    if case.ack == "ingest_ack":
        figure("lake_bytes_per_span", rates.on_disk, "B", size, n, smaller_is_better=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smoke run of seconds; its figures mean nothing")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--soak-spans", type=int, default=1_000_000, help="0: leave the soak out")
    parser.add_argument("--only", help="the case of this name (ingest_ack, …) alone")
    parser.add_argument("--peer", type=Path, default=peer.ENVIRONMENT, help="environment of agentlightning")
    parser.add_argument("--folder", type=Path, default=Path("var"), help="on the disk that is measured")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started is stopped on the way out
    cases = [c for c in (QUICK if options.quick else CASES) if options.only in (None, c.ack)]
    rounds, soak_spans = (1, 16 * SPANS_A_REQUEST) if options.quick else (options.rounds, options.soak_spans)
    python = peer.interpreter(options.peer)
    if python is None:
        say(f"*** {options.peer} has no Python: NOTHING IS MEASURED BESIDE IT (`make oracle-env` makes it) ***")
    options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="bench-") as made, ProcessPoolExecutor() as pool:
        folder = Path(made).resolve()
        for case in cases:
            say(f"{case.ack}: making {case.requests} requests")
            draw = partial(request_spans, case.kind, n=SPANS_A_REQUEST, ids=case.ids)
            measure(case, rounds, folder, list(pool.map(draw, range(case.requests + 1))), python)
        if soak_spans:
            say(f"soak: {soak_spans} spans")
            small = list(
                pool.map(partial(request_spans, "small", n=SPANS_A_REQUEST), range(8 if options.quick else 48))
            )
            large = list(pool.map(partial(request_spans, "large", n=SPANS_A_REQUEST), range(1 if options.quick else 6)))
            soak(folder / "soak", soak_spans, small, large)


if __name__ == "__main__":
    main()
