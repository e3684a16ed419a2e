"""Decodes the spool of a home into its lake, beside a server that is writing to it or without one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lightning_core.gateway.handle import GatewayHandle
from lightning_core.lake.lake import Decode, Ingested, Lake
from lightning_core.lake.redact import Redaction


def decode_spool(
    home: Path,
    redaction: Redaction | None,
    on_progress: Callable[[int, int], None] | None = None,
    decode: Decode | None = None,
) -> Ingested:
    """Decode what is acknowledged, and renew the catalog where there is anything new.

    While a server runs it says how far that is: what lies behind, it may still take back.
    """
    server = GatewayHandle.find(home)
    lake = Lake(home)
    done = lake.ingest(server.seal() if server is not None else None, on_progress, redaction, decode)
    if done.spans or done.rejected or not (lake.root / "catalog.duckdb").is_file():
        lake.rebuild_catalog()
    return done
