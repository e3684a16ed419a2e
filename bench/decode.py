"""The decoder as a process of its own, for `bench.ingest`: what one core makes of a spool.

python -m bench.decode HOME [--profile]    decode all there is; prints {"spans", "seconds", "cpu_s", "peak_mb"}
python -m bench.decode HOME --follow       decode what comes until stdin ends, then the rest; the same line
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import resource
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from bench.load import on_core
from lightning_core.lake.lake import Lake
from lightning_core.spool import spool


@dataclass(frozen=True)
class Decoded:
    spans: int
    seconds: float  # spent decoding
    cpu_s: float  # of all its threads meanwhile
    peak_mb: float


def start(home: Path, core: int, *options: str) -> subprocess.Popen[bytes]:
    """This script on a core; `outcome` waits for what it says."""
    with on_core(core):
        command = [sys.executable, "-m", "bench.decode", str(home), *options]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def outcome(process: subprocess.Popen[bytes]) -> Decoded:
    """End its stdin and wait. Raises RuntimeError where it failed (stderr has the reason)."""
    line, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"the decoder ended with code {process.returncode}")
    return Decoded(**json.loads(line))


def follow(lake: Lake) -> tuple[int, float]:
    """(spans, seconds spent decoding)"""
    ended = threading.Event()

    def wait() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=wait, daemon=True).start()
    spans, busy = 0, 0.0
    while True:
        last = ended.is_set()
        began = time.perf_counter()
        done = lake.ingest().spans
        busy += time.perf_counter() - began
        spans += done
        if last:
            return spans, busy
        if not done:
            ended.wait(0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("home", type=Path)
    parser.add_argument("--follow", action="store_true")
    parser.add_argument("--profile", action="store_true", help="where the time goes, on stderr")
    options = parser.parse_args()
    lake = Lake(options.home)
    cpu = time.process_time()
    if options.follow:
        spans, seconds = follow(lake)
    else:
        # What a process does once (imports, the table of aliases) is not what a span costs.
        lake.ingest(until=next(spool.read(lake.spool, 0))[1])
        cpu = time.process_time()
        profile = cProfile.Profile(subcalls=False)
        began = time.perf_counter()
        spans = (profile.runcall(lake.ingest) if options.profile else lake.ingest()).spans
        seconds = time.perf_counter() - began
        if options.profile:
            pstats.Stats(profile, stream=sys.stderr).sort_stats("tottime").print_stats(25)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    line = {"spans": spans, "seconds": seconds, "cpu_s": time.process_time() - cpu, "peak_mb": peak_mb}
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
