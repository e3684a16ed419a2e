"""A million spans through the server while the decoder runs beside: its memory, and whether any span was lost."""

from __future__ import annotations

import threading
from pathlib import Path

import psutil

from bench import decode
from bench.load import LOAD_CORE, SERVER_CORE, Post, on_core, send
from bench.report import figure, say
from bench.spans import SPANS_A_REQUEST, Template
from lightning_core.config import GatewaySettings
from lightning_core.gateway.handle import GatewayHandle
from lightning_core.lake.lake import Lake

_LARGE_EVERY = 16  # requests; about half of the bytes
_SPOOL_GB = 0.3  # a few segments, so that the decoder has to push back
_ALLOWED_MB = 100.0
_SAMPLE_S = 0.1


class Memory:
    """Resident megabytes of a process without the files it maps (of a library's code, more is in memory the more of it has
    run), sampled from a thread until `stop`."""

    def __init__(self, pid: int) -> None:
        self._process, self._ended = psutil.Process(pid), threading.Event()
        self.samples = [self._now()]
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.wait(_SAMPLE_S):
            self.samples.append(self._now())

    def _now(self) -> float:
        now = self._process.memory_info()
        return float((now.rss - now.shared) / 1e6)

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def growth(self, until: int | None = None) -> float:
        """Highest of the last tenth (of `until` samples) less that of the first: requests in flight come and go, what
        stays shows."""
        samples = self.samples[:until]
        tenth = max(1, len(samples) // 10)
        return max(samples[-tenth:]) - max(samples[:tenth])


def soak(home: Path, spans: int, small: list[bytes], large: list[bytes]) -> None:
    """Print `server_rss_growth_mb`. Raises RuntimeError where the lake has not exactly what was acknowledged.

    small, large: `scope_spans` of requests; each is sent many times, as other spans each time.
    """
    with on_core(SERVER_CORE):
        settings = GatewaySettings(spool_max_gb=_SPOOL_GB)
        server = GatewayHandle.start(home, settings, home / "gateway.log")
    decoder = decode.start(home, LOAD_CORE, "--follow")
    try:
        templates = [Template(x) for x in small], [Template(x) for x in large]

        def post(number: int) -> Post:
            kind = templates[number % _LARGE_EVERY == 0]
            token = server.mint(f"r{number // 4}", f"a{number}", "train")
            path = f"/rollouts/r{number // 4}/attempts/a{number}/v1/traces"
            body = kind[number // _LARGE_EVERY % len(kind)].shifted(number)
            return Post(path, body, {"Authorization": f"Bearer {token}"})

        def check() -> None:
            if decoder.poll() is not None:
                raise RuntimeError(f"the decoder ended with code {decoder.returncode}, and the spool is full")

        requests = -(-spans // SPANS_A_REQUEST)
        send(server.url, map(post, range(requests, requests + 8)))  # what is allocated once
        memory = Memory(server.pid)
        try:
            sent = send(server.url, map(post, range(requests)), check)
        finally:
            memory.stop()
        decoded = decode.outcome(decoder)
    finally:
        if decoder.poll() is None:
            decoder.kill()
            decoder.wait()
        server.stop()
    _check(Lake(home), requests + 8)
    say(f"soak: {requests * SPANS_A_REQUEST} spans in {sent.seconds:.0f} s, {sent.refused} times 503, none lost")
    figure(
        "server_rss_growth_mb",
        memory.growth(),
        "MB",
        _ALLOWED_MB,
        requests * SPANS_A_REQUEST,
        smaller_is_better=True,
        peak_mb=max(memory.samples),
        seconds=sent.seconds,
        refused=sent.refused,
        lost=0,
        decoder_peak_mb=decoded.peak_mb,
        decoder_busy_s=decoded.seconds,
    )


def _check(lake: Lake, requests: int) -> None:
    question = """
        SELECT count(*), count(DISTINCT attempt_id), min(n), max(n)
        FROM (SELECT attempt_id, count(DISTINCT (trace_id, span_id)) AS n, count(*) AS rows FROM spans GROUP BY ALL)
        WHERE n = rows
    """
    with lake.connect() as con:
        [found] = con.execute(question).fetchall()
    if found != (requests, requests, SPANS_A_REQUEST, SPANS_A_REQUEST):
        raise RuntimeError(
            f"acknowledged were {requests} attempts of {SPANS_A_REQUEST} spans; the lake has (attempts, distinct, "
            f"fewest, most spans) {found}"
        )
