"""The epochs of a run, with evaluations between them.

prefect deployment run train/local
"""

from __future__ import annotations

from typing import Any

from prefect import flow

from lightning_core.agents.shared import shared_runner
from lightning_core.epoch.report import epoch_rows
from lightning_core.epoch.services import running
from lightning_core.events import Rows, shown
from lightning_core.policies.space import taken_line
from lightning_core.training.launch import staying
from lightning_flows.flows.evaluate import evaluate
from lightning_flows.flows.optimize_prompts import optimize_prompts
from lightning_flows.flows.parameters import NO_OVERRIDES, GivenSettings, Overrides, resolve, run_name
from lightning_flows.flows.run import begin_run
from lightning_flows.flows.train_epoch import train_epoch
from lightning_flows.tasks.alarm import watch
from lightning_flows.tasks.preflight import training_tasks
from lightning_flows.tasks.progress import logger, say
from lightning_flows.tasks.track import tracked
from lightning_flows.tasks.versions import prune_versions


@flow(name="train", flow_run_name=run_name("{run}"))
def train(
    settings: GivenSettings, only: list[str] | None = None, overrides: Overrides = NO_OVERRIDES
) -> list[dict[str, Any]]:
    """Train `settings.epochs` epochs; an interrupted run resumes with the first unfinished epoch.

    `only` names the policies to train (null: all); the others stay as they are. Before every epoch that `prompt_search.train_every` says, it
    searches for better prompts. It stops early by `evaluation.patience`; the best version is `best` in the store and is never removed.
    Returns one dict per epoch: see lightning_core.epoch.report.epoch_rows.
    """
    run = begin_run(resolve(settings, overrides).training_only(only or []), NO_OVERRIDES)
    settings, done = run.settings, run.next_epoch()
    patience = settings.evaluation.patience
    if settings.prompt_search is not None and settings.prompt_search.train_every > 0:
        settings.prompt_search.require_enough(len(training_tasks(settings.tasks)))
    if done:
        logger().info("run %s goes on with epoch %d", run.run, done, extra=shown(Rows(epoch_rows(run))))
    watch(run, done)
    last = run.known(done, "evaluate")
    to_evaluate = settings.evaluates_after(done) and (last is None or not last.recorded)
    with tracked(run):
        if done < settings.epochs or to_evaluate:
            pool = shared_runner(settings.agent, settings.policies[0].name, run.home)
            with running(run, say("services")), pool, staying():  # for all epochs
                if to_evaluate:
                    evaluate(settings, done)
                for number in range(done, settings.epochs):
                    if patience is not None and waited_enough(epoch_rows(run), patience):
                        logger().warning("stopped after %d epochs: evaluation.patience is used up", number)
                        break
                    if settings.searches_before(number):
                        optimize_prompts(settings, number)
                    evaluates = settings.evaluates_after(number + 1)
                    goes_on = not evaluates and not settings.searches_before(number + 1)
                    train_epoch(settings, number, goes_on=goes_on)
                    if evaluates:
                        evaluate(settings, number + 1)
            prune_versions(run)  # the last evaluation may have found a better one than the former best
    logger().info("%s", taken_line(run.home))
    return epoch_rows(run)


def waited_enough(rows: list[dict[str, Any]], patience: int) -> bool:
    """Return whether none of the last `patience` evaluations (rows of epoch_rows) was better than the best before."""
    shares = [row["held_out_right"] for row in rows if row["held_out_right"] is not None]
    return len(shares) > patience and max(shares[-patience:]) <= max(shares[:-patience])
