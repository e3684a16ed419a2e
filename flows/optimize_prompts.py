"""A search for better prompts, with GEPA: no weights change.

prefect deployment run optimize-prompts/local
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from prefect import flow

from lightning_core.epoch.epoch import Epoch, Run
from lightning_core.epoch.plan import PlannedRollout
from lightning_core.epoch.prompt_search import find_champion, in_words, put_in_use, reflecting, search_of
from lightning_core.epoch.prompts import current_prompts
from lightning_core.epoch.services import running
from lightning_core.epoch.stages import begin_anew, run_stage
from lightning_core.events import shown
from lightning_core.lake.manifest import stage_key
from lightning_flows.flows.parameters import NO_OVERRIDES, GivenSettings, Overrides, run_name
from lightning_flows.flows.run import SHARDS, at_work, begin_run
from lightning_flows.tasks.deploy import deploy
from lightning_flows.tasks.derive import derive_tables
from lightning_flows.tasks.preflight import evaluation_tasks, training_tasks
from lightning_flows.tasks.progress import logger, say
from lightning_flows.tasks.rollouts import roll_out

STAGE = "prompts"  # of an epoch before which `train` searched


@flow(name="optimize-prompts", flow_run_name=run_name("{run} prompts"), task_runner=SHARDS)
def optimize_prompts(
    settings: GivenSettings, epoch: int | None = None, overrides: Overrides = NO_OVERRIDES
) -> dict[str, Any]:
    """Search for better versions of the run's prompts, sampled from its newest weights; an interrupted search goes on.

    The best one becomes `best` and `current` if it is better on the held-out tasks than chance explains.
    With `epoch` it is the search before that epoch, as `train` makes it: a stage of the epoch, done once; where the epoch's rollouts
    have begun without, it is left out.
    Returns lightning_core.epoch.prompt_search.Champion as a dict, with `used`: whether it is in use now.
    """
    run = begin_run(settings, overrides)
    with run.lake.working_on(run.run):
        if epoch is None:
            return _search(run)
        opened = run.open(epoch, "train", run.versions(epoch))
        if STAGE not in opened.manifest.stages and opened.manifest.rolled_out_with is not None:
            logger().warning("no search for prompts before epoch %d, whose rollouts have begun", epoch)
            return {}
        return run_stage(opened, STAGE, stage_key(run.run, epoch), lambda: _search(run, opened))


def _search(run: Run, ahead_of: Epoch | None = None) -> dict[str, Any]:
    def tried(epoch: Epoch, planned: list[PlannedRollout]) -> None:
        roll_out(epoch, planned)
        derive_tables(epoch)

    at = search_of(run, tried, lambda text: logger().info("%s", text, extra=shown()), ahead_of)
    with at_work(at.own), running(at.own, say("services")) as services:
        deploy(at.own, services, at.policies_at)
        tasks, held_out = training_tasks(run.settings.tasks), evaluation_tasks(run.settings.tasks)
        found = find_champion(at, tasks, held_out, reflecting(services.gateway, at))
    used, gain = put_in_use(at, found), found.gain
    if gain is None:
        logger().info("no version was better than %s, of %d", in_words(found.before), found.candidates, extra=shown())
    else:
        logger().info(
            "%s against %s on %d held-out tasks: %+.3f reward (95%%: %s to %s); %s",
            in_words(found.versions), in_words(found.before), gain.tasks, gain.gained,
            *("?" if bound is None else f"{bound:+.3f}" for bound in (gain.low, gain.high)),
            "in use from now on" if used
            else "another one is pinned, which stays in use" if found.is_better
            else "that may be chance, so what was in use stays",
            extra=shown(),
        )  # fmt: skip
    if ahead_of is not None:
        ahead_of.manifest.prompt_versions = current_prompts(run.settings)
        begin_anew(ahead_of)  # behind the rollouts of the search
    return asdict(found) | {"used": used}
