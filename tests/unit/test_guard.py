"""The guard of tests/guard.py, in a pytest of its own over a folder of bad tests."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]

CONFTEST = """
from tests import guard
from tests.guard import pytest_configure, pytest_runtest_protocol, pytest_runtest_teardown
guard.MOST_BYTES, guard._GRACE_S = 200_000_000, 1.0
"""
LEAVES = """
import subprocess, sys
def test_that_leaves_an_orphan():
    sleeper = "[sys.executable, '-c', 'import time; time.sleep(60)'], stdout=subprocess.DEVNULL"
    subprocess.run([sys.executable, "-c", f"import subprocess, sys; subprocess.Popen({sleeper})"])
def test_that_does_nothing():
    pass
"""
GROWS = """
import threading, time
def test_that_grows():
    taken = []
    def grow():
        while True:
            taken.append(bytearray(b"x" * 10_000_000))
            time.sleep(0.01)
    threading.Thread(target=grow, daemon=True).start()
    time.sleep(20)
"""


def run_bad_tests(folder: Path, text: str) -> str:
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_bad.py").write_text(text)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", os.devnull, "-rA", str(folder)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow  # it starts pytest
def test_a_process_left_behind_fails_its_module_and_is_ended(tmp_path: Path) -> None:
    printed = run_bad_tests(tmp_path, LEAVES)
    assert "test_bad.py left behind:" in printed and "test_that_leaves_an_orphan" in printed and "1 error" in printed
    orphan = int(printed.partition("left behind:\n  ")[2].split()[0])
    assert not psutil.pid_exists(orphan) or psutil.Process(orphan).status() == psutil.STATUS_ZOMBIE


@pytest.mark.slow  # it starts pytest
def test_a_test_that_takes_too_much_memory_is_ended_by_name(tmp_path: Path) -> None:
    printed = run_bad_tests(tmp_path, GROWS)
    assert (
        re.search(r"test_that_grows took 0.\d GB of memory; 0.2 are allowed", printed) and "test_bad.py" in printed
    ), printed
