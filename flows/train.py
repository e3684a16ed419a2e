"""The epochs of a run, with evaluations between them.

prefect deployment run train/local
"""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.evaluate import evaluate
from flows.train_epoch import train_epoch
from lightning_core.config import Settings
from lightning_core.lake.report import epoch_rows
from lightning_core.services import running
from tasks.progress import say


@flow(name="train", flow_run_name="{settings.run}", persist_result=False)
def train(settings: Settings) -> list[dict[str, Any]]:
    """Train `settings.epochs` epochs; a run that was interrupted goes on with the first that is not finished.

    Returns one dict per epoch: see lightning_core.lake.report.epoch_rows.
    """
    with running(settings, say("services")):
        for number in range(settings.epochs):
            if number == 0 and _evaluates(settings):
                evaluate(settings, 0)
            train_epoch(settings, number)
            if _evaluates(settings) and (
                number + 1 == settings.epochs or (number + 1) % settings.evaluation.every == 0
            ):
                evaluate(settings, number + 1)
    return epoch_rows(settings)


def _evaluates(settings: Settings) -> bool:
    return settings.tasks.evaluate is not None and settings.evaluation.every > 0
