"""New weights into the running vLLM."""

from __future__ import annotations

from typing import Any

from lightning_core.epoch.deploy import deploy as deploy_versions
from lightning_core.epoch.epoch import Run
from lightning_core.epoch.services import Services
from lightning_flows.tasks.progress import logger
from lightning_flows.tasks.step import step


@step("deploy")
def deploy(run: Run, services: Services, versions: dict[str, str]) -> dict[str, Any]:
    """Serve these versions (policy → version), without a restart; returns seconds by policy."""
    seconds = deploy_versions(run, services, versions)
    log = logger()
    for policy, took in seconds.items():
        if took:
            log.info("%s: %s is served after %.2f s", policy, versions[policy], took)
    return {"seconds": seconds}
