"""The lake to object storage, where the settings name a place."""

from __future__ import annotations

from lightning_core.config import LakeSettings
from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import LakeError
from lightning_flows.tasks.progress import logger
from lightning_flows.tasks.step import step


def publish_lake(lake: Lake, kept: LakeSettings) -> None:
    """Publish to `lake.storage`, if there is one. A store that is away stops no epoch: the next publication has all of it."""
    if kept.storage is not None:
        _publish(lake, kept.storage)


@step("publish lake")
def _publish(lake: Lake, storage: str) -> None:
    from lightning_core.lake.storage import publish  # brings fsspec

    try:
        done = publish(lake, storage)
    except LakeError as error:
        logger().error("the lake was not published, and is whole in %s: %s", lake.root, error)
    else:
        logger().info("%d files, %.1f MB, published to %s", done.files, done.bytes / 1e6, storage)
