"""bench/runs.py: a bench that is ended leaves nothing running."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
BENCH = """
import sys, time
from pathlib import Path
from bench.runs import run_for
child = "import os, time; open('pid', 'w').write(f'{os.getpid()} '); time.sleep(600)"
run_for([sys.executable, "-c", f"import os; os.chdir({sys.argv[1]!r}); {child}"], Path(sys.argv[1]) / "log", time.monotonic() + 600, "it")
"""


def test_a_bench_that_is_ended_ends_its_command(tmp_path: Path) -> None:
    bench = subprocess.Popen([sys.executable, "-c", BENCH, str(tmp_path)], cwd=ROOT)
    pid = tmp_path / "pid"
    try:
        while not (pid.exists() and pid.read_text().endswith(" ")):
            assert bench.poll() is None
            time.sleep(0.05)
        bench.send_signal(signal.SIGTERM)
        assert bench.wait(60) == 143
    finally:
        bench.kill()
    assert not Path(f"/proc/{int(pid.read_text())}").exists()
