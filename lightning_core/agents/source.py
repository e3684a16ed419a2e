"""What an agent is, as a digest: changed, the rollouts of an epoch that began with the former one are another's.

Its settings, its source file (of a callable: the module; of a command: the files it names), and, where its Python is made
for a requirements.txt, what that asks for. Modules that those import are not followed.
"""

from __future__ import annotations

import hashlib
import shlex
from pathlib import Path

from lightning_core.agents import venv
from lightning_core.config import AgentSettings
from lightning_core.loading import code_digest

_ASIDE = {
    "preload",
    "environments",
    "limits",
}  # how fast it starts, where its packages lie; and what counts where it is set


def agent_digest(settings: AgentSettings) -> str:
    """Return an agent's digest. Raises SettingsError where `agent.python` is a requirements.txt that is not there."""
    digest = hashlib.sha256(settings.model_dump_json(exclude=_ASIDE).encode())
    if settings.differs("limits"):
        digest.update(settings.limits.model_dump_json(exclude_defaults=True).encode())
    if settings.python is not None and settings.python.suffix == ".txt":
        digest.update(venv.digest(settings.python).encode())
    files = _files(settings)
    for file in files:
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    if not files:
        digest.update(code_digest(settings.callable).encode())
    return digest.hexdigest()[:16]


def _files(settings: AgentSettings) -> list[Path]:
    """Return the agent's own files, found where the attempt will find them."""
    here = settings.working_directory or Path()
    if settings.callable is not None:
        module = settings.callable.rpartition(":")[0]
        path = here / module.replace(".", "/")
        found = [Path(module)] if module.endswith(".py") else [path.with_suffix(".py"), path / "__init__.py"]
        return [file for file in found if file.is_file()][:1]
    command = settings.command or []
    try:
        words = shlex.split(command) if isinstance(command, str) else command
    except ValueError:  # which the runner refuses, with the reason
        return []
    # The program counts where it is named by a path of its own, not where it is an installed one.
    return [file for word in words if not Path(word).is_absolute() and (file := here / word).is_file()]
