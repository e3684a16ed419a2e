"""Small files of the services that are replaced in one step and readable by their owner only."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path

from lightning_core.errors import LightningError
from lightning_core.files import write_atomic

PRIVATE = 0o600


class SecretError(LightningError, ValueError):
    """The home's secret is broken; the message names its file and the remedy."""


def services(home: Path) -> Path:
    return home / "services"


def load_secret(home: Path) -> str:
    """Return the gateway's secret (64 hex digits): key of the attempts' tokens and the administrator's password.

    It is made on the first call, by whoever comes first. Raises SecretError.
    """
    path = services(home) / "secret"
    secret = made_once(path, lambda: secrets.token_hex(32))
    if len(secret) < 32:
        raise SecretError(f"{path}: holds no secret of at least 32 characters; remove the file to have one made")
    return secret


def made_once(path: Path, make: Callable[[], str]) -> str:
    """Return the text of a private file; where there is none, whoever comes first writes there what `make` returns."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        write_atomic(fresh, make().encode(), mode=PRIVATE)
        try:
            os.link(fresh, path)  # fails where another process was first: then its text is the one
        except FileExistsError:
            pass
        finally:
            fresh.unlink()
    return path.read_text().strip()
