"""Decodes and derives the spool of a home on an engine, many batches and buckets, and writes digests of what came of it.

python -m tests.e2e.on_a_cluster dask HOME
"""

from __future__ import annotations

import hashlib
import json
import sys

from prefect import flow

from lightning_core.config import Settings
from lightning_core.epoch.epoch import Epoch, Run
from lightning_core.lake import lake as lake_module
from lightning_core.lake.lake import Lake
from lightning_flows.tasks import derive
from lightning_flows.tasks.ingest import ingest_spans


@flow
def derived(settings: Settings) -> None:
    lake = Lake(settings.home)
    epoch = lake.open_epoch("run", 0, "train", {"policy": "v0000"})
    epoch.opened_offset = 0  # its spans were there before it
    epoch.sealed_offset = ingest_spans(Run(settings))
    with lake.connect() as con:
        epoch.planned = [name for (name,) in con.execute("SELECT DISTINCT rollout_id FROM spans ORDER BY 1").fetchall()]
    derive.derive_tables(Epoch(settings, epoch))
    found = {table: made.digest for table, made in epoch.tables.items()}
    for file in lake.manifests.spans().files:
        found[file.path] = hashlib.sha256((lake.root / file.path).read_bytes()).hexdigest()
    (settings.home / "digests.json").write_text(json.dumps(found))


def main(engine: str, home: str) -> None:
    lake_module._BYTES_A_FILE = 4_000
    derive.SPANS_WORTH_A_BUCKET = 10
    cluster = {"engine": engine} | ({} if engine == "threads" else {"workers": 2})
    derived(
        Settings.model_validate(
            {"run": "run", "home": home, "cluster": cluster, "agent": {"command": "true"}, "tasks": {"train": "none"}}
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:3])
