"""Decodes the spool of a home into its lake, beside a gateway that is writing to it or without one."""

from __future__ import annotations

from lightning_core.gateway.handle import GatewayHandle
from lightning_core.lake.lake import Decode, Ingested, Lake
from lightning_core.lake.redact import Redaction


def decode_spool(lake: Lake, redaction: Redaction | None, decode: Decode | None = None) -> Ingested:
    """Decode what is acknowledged, and renew the catalog where there is anything new.

    While a gateway runs it says how far that is: what lies behind, it may still take back.
    """
    done = lake.ingest(_acknowledged(lake), redaction, decode)
    if done.spans or done.rejected or not (lake.root / "catalog.duckdb").is_file():
        lake.rebuild_catalog()
    return done


def ingest(lake: Lake, redaction: Redaction | None) -> Ingested:
    """Decode what is acknowledged, and rebuild the catalog also where nothing is new."""
    done = lake.ingest(_acknowledged(lake), redaction)
    lake.rebuild_catalog()  # it may be of another version
    return done


def _acknowledged(lake: Lake) -> int | None:
    """Return the offset up to which a running gateway has acknowledged; None where none runs."""
    gateway = GatewayHandle.find(lake.root.parent)
    return None if gateway is None else gateway.seal()
