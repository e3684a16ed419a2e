"""The gateway beside LiteLLM's proxy and direct calls, in front of a model server that answers at once.

Gateway and proxy have core 0, in their turn, one process each (all its threads, what writes the spans too); upstream and load
share core 1, so neither takes the gateway's time, and at saturation it is core 0 that has none left. Requests have 2 KB. The
gateway asks for token ids and logprobs, takes them off the reply and has each call's span on disk before it answers; the
proxy records nothing and its upstream sends it neither ids nor logprobs. Rounds take turns; the median counts.

    gateway_rps                  requests/s, 32 under way; baseline: LiteLLM's proxy
    gateway_added_p50_ms, _p99   what the gateway adds to a direct call at 500/s, half of the 1,000/s asked for; `at_own_half`: at
                                 half of gateway_rps, where calls that come one by one cost more than those of a closed loop;
                                 baseline: LiteLLM at half of its own
    gateway_chunk_added_ms       what it adds to a chunk of a stream, median of 50 streams; baseline: what is allowed
    gateway_streams_rss_mb       its memory with 2,000 open streams, none dropped; baseline: what is allowed
    gateway_vllm_tokens          tokens/s of a real vLLM through the gateway, 32 at a time; baseline: direct, same flags. The
                                 vLLM is one that is started here with the demo's model, on all cores, or the one --vllm names

    .venv/bin/python -m bench.gateway [--quick] [--rounds 5] [--vllm URL --vllm-model NAME | --no-vllm]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil

from bench.gateway_load import Endpoint, at, closed_loop, latencies, streams
from bench.gateway_vllm import own_vllm, tokens_a_second
from bench.load import LOAD_CORE, SERVER_CORE, on_core
from bench.peer import ENVIRONMENT
from bench.report import figure, say
from lightning_core.config import GatewaySettings
from lightning_core.gateway.handle import GatewayHandle

_ALLOWED_CHUNK_MS, _ALLOWED_RSS_MB = 1.0, 500.0
_ASKED_RATE = 1000.0
_LITELLM_START_S = 120


@contextlib.contextmanager
def upstream() -> Iterator[Endpoint]:
    with on_core(LOAD_CORE):
        process = subprocess.Popen(
            [sys.executable, "-m", "bench.gateway_upstream"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
    assert process.stdin is not None and process.stdout is not None
    try:
        yield Endpoint(f"http://127.0.0.1:{int(process.stdout.readline())}/v1")
    finally:
        process.stdin.close()
        process.wait(10)


@contextlib.contextmanager
def gateway(
    home: Path, target: str, model: str = "policy", core: int | None = SERVER_CORE
) -> Iterator[tuple[Endpoint, int]]:
    """(its endpoint for one evaluation attempt, its process); `core` None: on all there are."""
    settings = GatewaySettings.model_validate({"grpc_port": None, "concurrent_per_rollout": 10_000, "log_calls": "off"})
    with contextlib.nullcontext() if core is None else on_core(core):
        server = GatewayHandle.start(home, settings, home / "gateway.log")
    try:
        server.set_routes({"policies": {"policy": {"upstream": target, "model": model, "version": "v0001"}}})
        yield Endpoint(server.attempt_url("r", "a") + "/v1", server.mint("r", "a", "evaluate")), server.pid
    finally:
        server.stop()


@contextlib.contextmanager
def litellm(folder: Path, target: str) -> Iterator[Endpoint | None]:
    """Its proxy with one worker and no database; None where it is not installed or does not start."""
    program = ENVIRONMENT / "bin" / "litellm"
    if not program.exists():
        say("no LiteLLM here (make oracle-env): its side is left out")
        yield None
        return
    settings = folder / "litellm.yaml"
    settings.write_text(
        "model_list:\n- model_name: policy\n  litellm_params:\n    model: openai/policy\n"
        f"    api_base: {target}\n    api_key: x\n"
    )
    port = 20_000 + os.getpid() % 10_000
    local = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
    local["LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY"] = "true"  # it listens on loopback only
    with (folder / "litellm.log").open("wb") as log, on_core(SERVER_CORE):
        process = subprocess.Popen(
            [program, "--config", settings, "--host", "127.0.0.1", "--port", str(port), "--telemetry", "False"],
            cwd=folder,
            env=os.environ | local,
            stdout=log,
            stderr=log,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + _LITELLM_START_S
        while time.monotonic() < deadline and process.poll() is None:
            with contextlib.suppress(urllib.error.URLError, OSError):
                urllib.request.urlopen(f"{url}/health/liveliness", timeout=2)
                break
            time.sleep(0.5)
        else:
            say("LiteLLM's proxy did not start: " + (folder / "litellm.log").read_text()[-500:])
            yield None
            return
        yield Endpoint(f"{url}/v1")
    finally:
        process.terminate()
        process.wait(30)


def rates(ours: Endpoint, theirs: Endpoint | None, rounds: int, seconds: float) -> tuple[float, float | None]:
    """Requests a second of both, taking turns."""
    mine, other = [], []
    for endpoint in (ours, theirs):
        if endpoint is not None:
            closed_loop(endpoint, 0.5, 32)  # imports, connections, caches
    for _ in range(rounds):
        mine.append(closed_loop(ours, seconds, 32))
        if theirs is not None:
            other.append(closed_loop(theirs, seconds, 32))
    say(f"requests/s: gateway {[round(x) for x in mine]}, LiteLLM {[round(x) for x in other]}")
    return statistics.median(mine), statistics.median(other) if other else None


def added(endpoint: Endpoint, direct: Endpoint, rate: float, rounds: int, seconds: float) -> list[float]:
    """Milliseconds added at the median and at p99, at half of `rate`; medians of the rounds."""
    found = []
    for _ in range(rounds):
        bare, through = latencies(direct, rate / 2, seconds), latencies(endpoint, rate / 2, seconds)
        found.append([at(through, share) - at(bare, share) for share in (0.5, 0.99)])
    say(f"added p50, p99 at {rate / 2:.0f}/s: {[[round(x, 2) for x in pair] for pair in found]}")
    return [statistics.median(pair[i] for pair in found) for i in (0, 1)]


def peak_rss_mb(pid: int, stop: threading.Event, into: list[float]) -> None:
    process = psutil.Process(pid)
    while not stop.wait(0.1):
        into.append(process.memory_info().rss / 1e6)


def beside_canned(rounds: int, seconds: float, count: int, chunks: int) -> None:
    """All figures but that of a real vLLM."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        direct = stack.enter_context(upstream())
        theirs = stack.enter_context(litellm(folder, direct.url))
        ours, pid = stack.enter_context(gateway(folder / "home", direct.url.removesuffix("/v1")))
        stack.enter_context(on_core(LOAD_CORE))
        mine, other = rates(ours, theirs, rounds, seconds)
        n = int(mine * seconds * rounds)
        figure("gateway_rps", mine, "requests/s", other, n)
        asked, own = added(ours, direct, _ASKED_RATE, rounds, seconds), added(ours, direct, mine, rounds, seconds)
        peer = added(theirs, direct, other, rounds, seconds) if theirs is not None and other is not None else None
        for i, name in enumerate(("gateway_added_p50_ms", "gateway_added_p99_ms")):
            baseline, sent = None if peer is None else peer[i], int(_ASKED_RATE / 2 * seconds) * rounds
            figure(name, asked[i], "ms", baseline, sent, smaller_is_better=True, at_own_half=own[i])
        few_direct, few = streams(direct, 50, 40, 50), streams(ours, 50, 40, 50)
        chunk = at(few.delays_ms, 0.5) - at(few_direct.delays_ms, 0.5)
        figure("gateway_chunk_added_ms", chunk, "ms", _ALLOWED_CHUNK_MS, len(few.delays_ms), smaller_is_better=True)
        stop, rss = threading.Event(), list[float]()
        watcher = threading.Thread(target=peak_rss_mb, args=(pid, stop, rss))
        watcher.start()
        many = streams(ours, count, chunks, 1000)
        stop.set()
        watcher.join()
        if many.dropped:
            say(f"{many.dropped} of {count} streams were dropped")
        allowed = _ALLOWED_RSS_MB
        figure("gateway_streams_rss_mb", max(rss), "MB", allowed, count, smaller_is_better=True, dropped=many.dropped)


def beside_vllm(address: str | None, model: str, rounds: int) -> None:
    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if address is None:
            own = stack.enter_context(own_vllm(home / "vllm"))
            if own is None:
                return
            address, model = own
        ours, _ = stack.enter_context(gateway(home / "gateway", address, model, core=None))
        pairs = tokens_a_second(ours, address, model, rounds)
    say(f"tokens/s, through the gateway and direct: {[[round(x) for x in pair] for pair in pairs]}")
    bare = statistics.median(bare for _, bare in pairs)
    ratio = statistics.median(mine / bare for mine, bare in pairs)
    figure("gateway_vllm_tokens", ratio * bare, "tokens/s", bare, len(pairs))


def main() -> None:
    parser = argparse.ArgumentParser(description="the gateway beside LiteLLM's proxy and direct calls")
    parser.add_argument("--quick", action="store_true", help="seconds, with figures that mean nothing")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--vllm", help="address of a running vLLM, as unix:///… or http://…, instead of one of its own")
    parser.add_argument("--vllm-model", default="policy", help="the name it serves its model under")
    parser.add_argument("--no-vllm", action="store_true", help="leave out what needs a real vLLM")
    options = parser.parse_args()
    quick = options.quick
    rounds = 1 if quick else options.rounds
    beside_canned(rounds, 1.0 if quick else 4.0, 100 if quick else 2000, 5 if quick else 20)
    if not options.no_vllm:
        beside_vllm(options.vllm, options.vllm_model, rounds)


if __name__ == "__main__":
    main()
