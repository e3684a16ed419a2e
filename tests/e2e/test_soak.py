"""A short form of `make soak`: all faults at once, and every acknowledged span is accounted for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.extra,  # minutes of everything at once
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode != 0,
        reason="this system lets nobody mount a tmpfs of their own",
    ),
]


def test_a_minute_of_all_faults_at_once_loses_nothing() -> None:
    command = [sys.executable, "-m", "tests.soak", "--minutes", "1"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    account = json.loads(done.stdout.splitlines()[-1])
    assert account["acknowledged"] > 1000 and account["epochs"] >= 1
