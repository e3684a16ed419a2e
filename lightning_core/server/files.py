"""Small files of the services that are replaced in one step and readable by their owner only."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def write_private(path: Path, data: bytes) -> None:
    """Replace `path` by `data`, mode 0600: a reader sees the old file or the new one, also after a crash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def services(home: Path) -> Path:
    return home / "services"


def load_secret(home: Path) -> str:
    """The server's secret (64 hex digits): key of the attempts' tokens and the administrator's password.

    Made on the first call, by whoever comes first.
    """
    path = services(home) / "secret"
    for _ in range(2):
        try:
            secret = path.read_text().strip()
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh = path.with_name(f".secret.{secrets.token_hex(4)}")
            write_private(fresh, secrets.token_hex(32).encode())
            try:
                os.link(fresh, path)  # fails where another process was first: then its secret is the one
            except FileExistsError:
                pass
            finally:
                fresh.unlink()
            continue
        if len(secret) < 32:
            raise ValueError(f"{path}: holds no secret of at least 32 characters; remove the file to have one made")
        return secret
    return path.read_text().strip()
