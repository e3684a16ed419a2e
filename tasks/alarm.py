"""The collapse alarm: stop the run, serve the best version, and say so where anyone would look."""

from __future__ import annotations

from lightning_core.config import Settings
from lightning_core.epoch.services import Services, versions
from lightning_core.policies.store import PolicyStore
from lightning_core.tracking.alarm import Collapse, alarms
from lightning_core.tracking.mlflow_backend import MlflowRun
from lightning_flows.tasks.progress import logger
from lightning_flows.tasks.redeploy import redeploy
from lightning_flows.tasks.step import step


@step("alarm after {epochs} epochs")
def watch(settings: Settings, epochs: int, services: Services | None = None) -> None:
    """Raise Collapse where the run, after so many epochs, has passed a limit of `alarm:`; the flow ends as failed with it.

    The best version of each policy is current then (and served, where services run): the one with the best evaluation
    of this run, or, where it evaluated nothing, the one before the last epoch.
    """
    found = alarms(settings, epochs)
    if not found:
        return
    before = versions(settings, max(epochs - 1, 0))
    # Another run's best may be good at another task.
    kept = {name: PolicyStore(settings.home, name).best_of(settings.run) or v for name, v in before.items()}
    if services is not None:
        redeploy(settings, services, kept)
    else:
        for name, version in kept.items():
            PolicyStore(settings.home, name).set_current(version)
    message = (
        f"ALARM: run {settings.run!r} is stopped: {'; '.join(found)}. Current is now "
        + ", ".join(f"{version} of {name}" for name, version in kept.items())
        + ". To go on all the same, change `alarm:`; to go back, begin another `run` with other settings"
    )
    logger().error(message)
    if "mlflow" in settings.tracking.backends:
        MlflowRun(settings).tag(alarm=message)
    raise Collapse(message)
