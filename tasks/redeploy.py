"""New weights into the running vLLM."""

from __future__ import annotations

from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from lightning_core.config import Settings
from lightning_core.services import Services, deploy
from tasks.progress import logger


@task(task_run_name="redeploy", cache_policy=NO_CACHE, persist_result=False)
def redeploy(settings: Settings, services: Services) -> dict[str, Any]:
    """Serve every policy's current version, without a restart; returns seconds by policy."""
    seconds = deploy(settings, services)
    log = logger()
    for policy, took in seconds.items():
        if took:
            log.info("%s: new version served after %.2f s", policy, took)
    return {"seconds": seconds}
