"""New weights into the running vLLM."""

from __future__ import annotations

from typing import Any

from lightning_core.config import Settings
from lightning_core.epoch.deploy import deploy
from lightning_core.epoch.services import Services
from lightning_flows.tasks.progress import logger
from lightning_flows.tasks.step import step


@step("redeploy")
def redeploy(settings: Settings, services: Services, versions: dict[str, str]) -> dict[str, Any]:
    """Serve these versions (policy → version), without a restart; returns seconds by policy."""
    seconds = deploy(settings, services, versions)
    log = logger()
    for policy, took in seconds.items():
        if took:
            log.info("%s: %s is served after %.2f s", policy, versions[policy], took)
    return {"seconds": seconds}
