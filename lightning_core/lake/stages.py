"""Stages of an epoch: done once for what they read, and again when any of it changed."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel

from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import EpochManifest

logger = logging.getLogger(__name__)


def stage_key(*parts: Any) -> str:
    """Digest of everything a stage reads: settings sections, digests of tables and of SQL, versions of code."""
    text = json.dumps(
        [p.model_dump(mode="json") if isinstance(p, BaseModel) else p for p in parts], sort_keys=True, default=str
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def run_stage(
    lake: Lake, epoch: EpochManifest, stage: str, key: str, work: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """Output of a stage: from the manifest where it has run with this key, else of `work`, then kept there."""
    found = epoch.done(stage, key)
    if found is not None:
        logger.info("%s of %s epoch %d is done already (key %s)", stage, epoch.run, epoch.epoch, key)
        return found
    began = time.monotonic()
    output = work()
    epoch.finish(stage, key, output, time.monotonic() - began)
    lake.manifests.put_epoch(epoch)
    return output
