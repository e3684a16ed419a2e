"""Decode the spool into the lake, merge small files, rebuild the catalog: every few minutes if agents run all day.

prefect deployment run ingest/local
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow

from lightning_core.config import LakeSettings
from lightning_core.lake.lake import Lake
from lightning_flows.tasks.ingest import ingest_home
from lightning_flows.tasks.publish import publish_lake


@flow(name="ingest", flow_run_name="ingest {home}")
def ingest(home: Path = Path("var"), lake: LakeSettings = LakeSettings()) -> dict[str, Any]:  # noqa: B008 - frozen
    """Decode what the gateway of `home` has received, merge small files, rebuild the catalog; returns counts.

    `lake`: the rules for redacting spans; use those of the runs in this home.
    """
    found = Lake(home)
    done = ingest_home(found, lake)
    publish_lake(found, lake)
    return done
