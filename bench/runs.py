"""Commands that a bench runs for hours: ended in time, gone on with by the next call."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from lightning_core.files import write_atomic
from lightning_core.lake import catalog
from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import stage_key
from lightning_core.lake.why import diagnose
from lightning_core.settings_file import load_settings

ROOT = Path(__file__).parents[1]
_TO_STOP_S = 120.0


def flow_command(flow: str, settings: Path, changes: dict[str, Any]) -> list[str]:
    """The command line of a flow on a settings file, with other values for some of them."""
    command = [sys.executable, "-m", "lightning_flows.flows.cli", flow, str(settings)]
    return command + [part for name, value in changes.items() for part in ("--set", f"{name}={json.dumps(value)}")]


def hours_parser(doc: str | None, folder: str) -> argparse.ArgumentParser:
    """Arguments of a bench that runs for hours: `--minutes`, and `--folder` for what its runs write (default: in the repository)."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=600.0, help="stop after so long; the next call goes on")
    parser.add_argument("--folder", type=Path, default=ROOT / folder)
    return parser


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines; none where there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines() if line] if path.is_file() else []


def add_row(row: dict[str, Any], path: Path) -> None:
    """Write a row behind those of a file of JSON lines."""
    before = path.read_bytes() if path.is_file() else b""
    write_atomic(path, before + json.dumps(row).encode() + b"\n")


def settings_key(settings: Path) -> str:
    """Digest of a settings file; rows of another digest are another experiment's."""
    return stage_key(load_settings(settings).model_dump(mode="json", exclude={"home"}, exclude_defaults=True))


def run_for(command: list[str], log: Path, until: float, name: str) -> bool:
    """Run a command that can go on where it stopped until it ends (True) or the time is up (monotonic seconds).

    Raises RuntimeError, with the end of `log`, where it failed. Whoever ends the bench, by SIGTERM too, ends the command.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with log.open("ab") as out:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True
        )
        try:
            while process.poll() is None and time.monotonic() < until:
                time.sleep(1)
        finally:
            ended = _stop(process)
    if ended is not None and ended != 0:
        tail = log.read_text(errors="replace").splitlines()[-5:]
        raise RuntimeError(f"{name} ended with {ended}: " + "\n".join(tail))
    return ended == 0


def findings(lake: Lake, run: str) -> dict[int, list[str]]:
    """What `lightning-flows why` finds: number of epochs trained → `severity rule` of those that are about the last of them."""
    lake.rebuild_catalog()
    with catalog.connect(lake.root) as con:
        diagnosed = diagnose(con, run) if lake.manifests.epochs(run) else []
    found: defaultdict[int, set[str]] = defaultdict(set)
    for one in diagnosed:
        for epoch in one.epochs:
            found[epoch if one.mode == "evaluate" else epoch + 1].add(f"{one.severity} {one.rule}")
    return {epochs: sorted(those) for epochs, those in found.items()}


def _stop(process: subprocess.Popen[bytes]) -> int | None:
    """What the run ended with by itself; None where it was stopped here. In the background SIGINT may be ignored."""
    if process.poll() is not None:
        return process.returncode
    process.terminate()
    try:
        process.wait(_TO_STOP_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return None
