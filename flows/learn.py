"""Training on what production agents have sent: no rollout is run.

prefect deployment run learn/local
"""

from __future__ import annotations

from typing import Any

from prefect import flow

from lightning_core.epoch.patterns import settle
from lightning_core.epoch.production import Choice
from lightning_core.epoch.services import resting, running, versions
from lightning_core.lake.lake import Lake
from lightning_flows.flows.parameters import (
    NO_OVERRIDES,
    GivenSettings,
    Overrides,
    resolve,
    run_name,
)
from lightning_flows.tasks.adopt import adopt
from lightning_flows.tasks.alarm import watch
from lightning_flows.tasks.derive import derive_tables
from lightning_flows.tasks.preflight import begin
from lightning_flows.tasks.progress import say
from lightning_flows.tasks.publish import publish_lake
from lightning_flows.tasks.redeploy import redeploy
from lightning_flows.tasks.track import record, tracked
from lightning_flows.tasks.train import train_policies
from lightning_flows.tasks.versions import collect_versions


@flow(name="learn", flow_run_name=run_name("{run} learn"), persist_result=False)
def learn(
    settings: GivenSettings,
    choice: Choice = Choice(),  # noqa: B008 - frozen
    overrides: Overrides = NO_OVERRIDES,
) -> dict[str, Any]:
    """Train the run's next epoch on rollouts of production agents that no epoch has learned from yet.

    It selects rollouts with calls through the gateway (token ids) that meet `choice`. A killed flow resumes.
    """
    settings = resolve(settings, overrides)
    begin(settings, "learn")
    lake = Lake(settings.home)
    with tracked(settings), lake.working_on(settings.run), running(settings, say("services")) as services:
        number = lake.manifests.next_epoch(settings.run)
        watch(settings, number)
        manifest = lake.open_epoch(settings.run, number, "train", versions(settings, number))
        chosen = adopt(settings, manifest, choice)
        settle(lake, settings, manifest)
        rows = derive_tables(settings, manifest)
        with resting(settings, services):
            trained = train_policies(settings, manifest)
        redeploy(settings, services, {name: output["version"] for name, output in trained.items()})
        record(settings, manifest)
        publish_lake(settings.home, settings.lake)
        watch(settings, number + 1, services)
        collect_versions(settings)
    return {"epoch": number, "chosen": chosen, "rows": rows, "trained": trained}
