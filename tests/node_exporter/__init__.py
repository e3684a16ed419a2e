"""OpenTelemetry's Node SDK: installed once, run with nothing but the standard OTEL_* variables.

Raises NodeMissing where node, npm or the registry cannot be had; anything else that goes wrong is an error.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from lightning_core.files import locked

HERE = Path(__file__).parent
SPANS: list[dict[str, Any]] = json.loads((HERE / "spans.json").read_text())
_CACHE = HERE.parents[1] / "var" / "node_exporter"
_UNREACHABLE = re.compile(r"\b(ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ENETUNREACH|ETIMEDOUT|ERR_SOCKET_TIMEOUT)\b")


class NodeMissing(RuntimeError):
    """What the Node exporters need is not on this machine and cannot be fetched."""


def install() -> Path:
    """A folder that holds `export.mjs` beside its node_modules; made once for each package.json."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            raise NodeMissing(f"there is no `{program}` on this machine")
    package = (HERE / "package.json").read_bytes()
    folder = _CACHE / hashlib.sha256(package).hexdigest()[:12]
    with locked(_CACHE / "lock"):
        ready = folder / "ready"
        if not ready.exists():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "package.json").write_bytes(package)
            command = ["npm", "install", "--ignore-scripts", "--no-package-lock", "--no-audit", "--no-fund"]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
            if done.returncode and _UNREACHABLE.search(done.stderr):
                raise NodeMissing(f"npm cannot reach its registry: {done.stderr.strip()[-300:]}")
            assert done.returncode == 0, done.stderr
            ready.touch()
        shutil.copy(HERE / "export.mjs", folder)
    return folder


def export(folder: Path, environment: dict[str, str]) -> dict[str, dict[str, str]]:
    """Emit SPANS with these OTEL_* variables and no others; returns `{key: {"trace_id", "span_id"}}`.

    Raises AssertionError where the SDK warned of anything.
    """
    clean = {k: v for k, v in os.environ.items() if not k.startswith("OTEL_")}
    proxies = {"no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"}
    command = ["node", "export.mjs", str(HERE / "spans.json")]
    done = subprocess.run(
        command, cwd=folder, env=clean | proxies | environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    lines = done.stdout.strip().splitlines()
    assert len(lines) == 1, done.stdout  # OpenTelemetry's diagnostics go to stdout as well
    ids: dict[str, dict[str, str]] = json.loads(lines[0])
    return ids
