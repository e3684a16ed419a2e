"""Take an older home to today's format, once, with a copy of its manifests in `lake/manifests-of-format-N`.

0 → 1: manifests begin with a digest and have a copy in `lake/copies`; stages have today's names.
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from lightning_core.files import locked, put_in_place
from lightning_core.home_format import FORMAT, require_readable, write_number
from lightning_core.lake.manifest import EpochManifest, Manifests, SpanManifest, checked

logger = logging.getLogger(__name__)

_STAGES = {"collect": "rollouts", "grade": "rewards", "derive": "sequences"}


def migrate(home: Path) -> None:
    """Migrate a home that needs it. Raises HomeError for one of a newer version."""
    lake = home / "lake"
    if require_readable(home) == FORMAT or not (lake / "manifests").is_dir():
        return
    with locked(lake / "format.lock"):
        number = require_readable(home)
        if number == FORMAT:
            return
        kept = lake / f"manifests-of-format-{number}"
        if not kept.exists():  # else a migration was killed behind this
            beside = lake / f".{kept.name}"
            shutil.rmtree(beside, ignore_errors=True)
            shutil.copytree(lake / "manifests", beside, ignore=shutil.ignore_patterns("lock", ".*"))
            put_in_place(beside, kept)
        manifests = Manifests(lake)
        for path in sorted((lake / "manifests").rglob("*.json")):
            _rewrite(manifests, path)
        write_number(home)
    logger.info("%s: migrated from format %d to %d; the manifests as they were are in %s", home, number, FORMAT, kept)


def _rewrite(manifests: Manifests, path: Path) -> None:
    try:
        content = checked(path.read_bytes())  # with a digest, where a migration was killed
        found: dict[str, Any] = json.loads(content)
        if path == manifests.spans_path:
            manifests.put_spans(SpanManifest.model_validate(found))
        else:
            found["stages"] = {_STAGES.get(name, name): stage for name, stage in found.get("stages", {}).items()}
            manifests.put_epoch(EpochManifest.model_validate(found))
    except (ValueError, AttributeError, TypeError) as error:
        # Whoever reads it says so, and `lake repair` sets it aside.
        logger.warning("%s: not migrated: %s", path, error)
