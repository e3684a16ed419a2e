"""The Python an agent runs with where it is not ours: one that is there, or one made for its requirements.

An environment is made once for a content of requirements and a version of Python, and shared by all runs:

    <agent.environments>/<digest>/     a virtual environment; `ready` in it is written last

Two flows that want the same one wait for each other; one that was killed while it installed is made anew.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from lightning_core.config import SettingsError
from lightning_core.files import locked

log = logging.getLogger(__name__)

_INCLUDED = re.compile(r"^\s*(?:-r|-c|--requirement|--constraint)[ =]?\s*(\S+)", re.MULTILINE)
_PRINTED_CHARS = 2000


def interpreter(python: Path, environments: Path) -> Path:
    """Return the absolute path of the Python that `agent.python` means: a program, a virtual environment, or a
    requirements.txt.

    Raises SettingsError where there is no such file, it is none of the three, or its packages cannot be installed.
    """
    if python.suffix == ".txt":
        if not python.is_file():
            raise SettingsError(f"agent.python: there is no file {python.absolute()}")
        return _environment(python.absolute(), environments.absolute())
    found = python / "bin" / "python" if python.is_dir() else python
    if not (found.is_file() and os.access(found, os.X_OK)):
        raise SettingsError(
            f"agent.python: {python} is no interpreter, no virtual environment and no requirements.txt; relative paths "
            "count from where the flow starts"
        )
    return found.absolute()  # a link of a virtual environment stays one: resolved, it would be another Python


def unbuilt(python: Path | None, environments: Path) -> Path | None:
    """Return the folder that `interpreter` would first make an environment in; None where nothing has to be made."""
    if python is None or python.suffix != ".txt" or not python.is_file():
        return None
    home = environments.absolute() / digest(python.absolute())
    return None if (home / "ready").is_file() else home


def digest(requirements: Path) -> str:
    """Return a digest of what the file and those it includes say, and of the Python that the environment is made
    with."""
    hashed = hashlib.sha256(f"{platform.python_implementation()} {platform.python_version()}\n".encode())
    waiting, seen = [requirements], set()
    while waiting:
        file = waiting.pop()
        if file in seen:
            continue
        seen.add(file)
        try:
            text = file.read_text()
        except OSError as error:
            raise SettingsError(f"agent.python: {file} cannot be read: {error.strerror}") from None
        hashed.update(text.encode() + b"\0")
        waiting += [(file.parent / name).resolve() for name in _INCLUDED.findall(text)]
    return hashed.hexdigest()[:16]


def _environment(requirements: Path, environments: Path) -> Path:
    home = environments / digest(requirements)
    python, ready = home / "bin" / "python", home / "ready"
    if ready.is_file():
        return python
    with locked(environments / f".{home.name}.lock"):
        if not ready.is_file():
            _make(home, python, requirements)
            ready.write_text(requirements.read_text())
    return python


def _make(home: Path, python: Path, requirements: Path) -> None:
    log.info("installing %s into %s, once", requirements, home)
    began = time.monotonic()
    shutil.rmtree(home, ignore_errors=True)
    beside = Path(sys.executable).parent / "uv"
    uv = str(beside) if beside.is_file() else shutil.which("uv")
    if uv is not None:
        steps = [[uv, "venv", "--quiet", "--python", sys.executable, str(home)]]
        steps += [[uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", str(python)]]
    else:
        steps = [[sys.executable, "-m", "venv", str(home)]]
        steps += [[str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]]
    steps[-1] += ["--requirement", str(requirements)]
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode:
            printed = (done.stderr or done.stdout).strip()[-_PRINTED_CHARS:]
            raise SettingsError(
                f"agent.python: {requirements} cannot be installed; correct it, or give an interpreter that has the "
                f"packages. The installer printed:\n{printed}"
            )
    log.info("%s is installed (%.0f s)", requirements, time.monotonic() - began)
