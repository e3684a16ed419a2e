"""The collapse alarm: stop the run, serve the best version, and say so where anyone would look."""

from __future__ import annotations

from lightning_core.epoch.epoch import Run
from lightning_core.epoch.services import Services
from lightning_core.tracking.alarm import Collapse, alarms
from lightning_core.tracking.mlflow_backend import MlflowRun
from lightning_flows.tasks.deploy import deploy
from lightning_flows.tasks.progress import logger
from lightning_flows.tasks.step import step


@step("alarm after {epochs} epochs")
def watch(run: Run, epochs: int, services: Services | None = None) -> None:
    """Raise Collapse where the run, after so many epochs, has passed a limit of `alarm:`; the flow ends as failed with it.

    The best version of each policy is current then (and served, where services run): the one with the best evaluation
    of this run, or, where it evaluated nothing, the one before the last epoch.
    """
    found = alarms(run.lake, run.run, run.settings.alarm, epochs)
    if not found:
        return
    before = run.versions(max(epochs - 1, 0))
    # Another run's best may be good at another task.
    kept = {name: run.policies[name].best_of(run.run) or v for name, v in before.items()}
    if services is not None:
        deploy(run, services, kept)
    else:
        for name, version in kept.items():
            run.policies[name].set_current(version)
    message = (
        f"ALARM: run {run.run!r} is stopped: {'; '.join(found)}. Current is now "
        + ", ".join(f"{version} of {name}" for name, version in kept.items())
        + ". To go on all the same, change `alarm:`; to go back, begin another `run` with other settings"
    )
    logger().error(message)
    if "mlflow" in run.settings.tracking.backends:
        MlflowRun(run.settings).tag(alarm=message)
    raise Collapse(message)
