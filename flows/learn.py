"""Training on what production agents have sent: no rollout is run.

prefect deployment run learn/local
"""

from __future__ import annotations

from typing import Any

from prefect import flow

from lightning_core.epoch.patterns import settle
from lightning_core.epoch.production import Choice
from lightning_core.epoch.services import running
from lightning_flows.flows.parameters import NO_OVERRIDES, GivenSettings, Overrides, run_name
from lightning_flows.flows.run import at_work, begin_run
from lightning_flows.flows.train_epoch import learn_from
from lightning_flows.tasks.adopt import adopt
from lightning_flows.tasks.alarm import watch
from lightning_flows.tasks.progress import say


@flow(name="learn", flow_run_name=run_name("{run} learn"))
def learn(
    settings: GivenSettings,
    choice: Choice = Choice(),  # noqa: B008 - frozen
    overrides: Overrides = NO_OVERRIDES,
) -> dict[str, Any]:
    """Train the run's next epoch on rollouts of production agents that no epoch has learned from yet.

    It selects rollouts with calls through the gateway (token ids) that meet `choice`. A killed flow resumes.
    """
    run = begin_run(settings, overrides, "learn")
    with at_work(run), running(run, say("services")) as services:
        number = run.next_epoch()
        watch(run, number)
        epoch = run.open(number, "train", run.versions(number))
        adopt(epoch, choice)
        settle(epoch)
        learn_from(epoch, services)
    return {"epoch": number} | epoch.manifest.outputs
