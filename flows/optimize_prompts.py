"""A search for better prompts, with GEPA: no weights change.

prefect deployment run optimize-prompts/local
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from prefect import flow

from lightning_core.epoch.epoch import Epoch
from lightning_core.epoch.plan import PlannedRollout
from lightning_core.epoch.prompt_search import find_champion, in_words, reflecting, search_of
from lightning_core.epoch.services import running
from lightning_core.events import shown
from lightning_flows.flows.parameters import NO_OVERRIDES, GivenSettings, Overrides, run_name
from lightning_flows.flows.run import SHARDS, at_work, begin_run
from lightning_flows.tasks.deploy import deploy
from lightning_flows.tasks.derive import derive_tables
from lightning_flows.tasks.preflight import evaluation_tasks, training_tasks
from lightning_flows.tasks.progress import logger, say
from lightning_flows.tasks.rollouts import roll_out


@flow(name="optimize-prompts", flow_run_name=run_name("{run} prompts"), task_runner=SHARDS, persist_result=False)
def optimize_prompts(settings: GivenSettings, overrides: Overrides = NO_OVERRIDES) -> dict[str, Any]:
    """Search for better versions of the run's prompts, sampled from its newest weights; an interrupted search goes on.

    The best one becomes `best` and `current` if it is better on the held-out tasks than chance explains.
    Returns lightning_core.epoch.prompt_search.Champion as a dict, with `used`: whether it is in use now.
    """
    run = begin_run(settings, overrides)

    def tried(epoch: Epoch, planned: list[PlannedRollout]) -> None:
        roll_out(epoch, planned)
        derive_tables(epoch)

    at = search_of(run, tried, lambda text: logger().info("%s", text, extra=shown()))
    with run.lake.working_on(run.run), at_work(at.own), running(at.own, say("services")) as services:
        deploy(at.own, services, at.policies_at)
        tasks, held_out = training_tasks(run.settings.tasks), evaluation_tasks(run.settings.tasks)
        found = find_champion(at, tasks, held_out, reflecting(services.gateway, at))
    if found.is_better:
        for name, version in found.versions.items():
            at.stores[name].put("best", version)
            at.stores[name].put("current", version)
    gain = found.gain
    if gain is None:
        logger().info("no version was better than %s, of %d", in_words(found.before), found.candidates, extra=shown())
    else:
        logger().info(
            "%s against %s on %d held-out tasks: %+.3f reward (95%%: %s to %s); %s",
            in_words(found.versions), in_words(found.before), gain.tasks, gain.gained,
            *("?" if bound is None else f"{bound:+.3f}" for bound in (gain.low, gain.high)),
            "in use from now on" if found.is_better else "that may be chance, so what was in use stays",
            extra=shown(),
        )  # fmt: skip
    return asdict(found) | {"used": found.is_better}
