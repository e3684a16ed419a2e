"""A settings file as deployments of Prefect: `lightning-flows deploy`.

A flow run of such a deployment works in the folder where it was deployed, so paths in the settings mean what they mean on
the command line there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.objects import DeploymentSchedule
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL
from prefect.utilities.callables import parameter_schema
from pydantic import ValidationError

from lightning_core.config import Settings, SettingsError
from lightning_core.config.section import is_name
from lightning_core.settings_file import load_settings
from lightning_flows.flows.evaluate import evaluate
from lightning_flows.flows.learn import learn
from lightning_flows.flows.optimize_prompts import optimize_prompts
from lightning_flows.flows.train import train
from lightning_flows.flows.train_epoch import train_epoch

_FLOWS: tuple[Flow[..., Any], ...] = (train, train_epoch, evaluate, learn, optimize_prompts)
_SLUG = "cron"


def settings_of(file: str, home: str, changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return a settings file, with changes on top, as a build step of prefect.yaml: `{{ <id>.settings }}`."""
    settings = load_settings(file, {"home": home} | (changes or {}))
    return {"settings": settings.model_dump(mode="json", exclude_unset=True)}


def register(settings: Settings, name: str, pool: str, cron: str | None = None) -> dict[str, list[str]]:
    """Register deployments of `train`, `train-epoch`, `evaluate`, `learn` and, with `prompt_search`, `optimize-prompts`, or update them.

    Returns their names, each with its schedules in words.

    `cron` (UTC) is the schedule of `train`, active at once. Without it, schedules that are there stay.
    Raises SettingsError for a name or a cron expression that is none, and where there is no server or no such pool.
    """
    if not is_name(name):
        raise SettingsError(f"--name {name!r}: write it with letters, digits, - and _ alone")
    schedule = None if cron is None else _schedule(cron)
    if PREFECT_API_URL.value() is None:  # Prefect would start a server that ends with this command
        raise SettingsError("PREFECT_API_URL is not set; `make up` starts a Prefect server and prints it; export that")
    with get_client(sync_client=True) as client:
        _require(client, pool)
        return {
            f"{flow.name}/{name}": _register(client, flow, settings, name, pool, schedule if flow is train else None)
            for flow in _FLOWS
            if flow is not optimize_prompts or settings.prompt_search is not None
        }


def _register(
    client: SyncPrefectClient,
    flow: Flow[..., Any],
    settings: Settings,
    name: str,
    pool: str,
    schedule: DeploymentScheduleCreate | None,
) -> list[str]:
    schedules = _kept(client, f"{flow.name}/{name}", replaced=schedule is not None)
    deployment = client.create_deployment(
        flow_id=client.create_flow(flow),
        name=name,
        description=(flow.description or "").partition("\n")[0],
        entrypoint=f"{flow.fn.__module__}.{flow.fn.__name__}",
        parameters={"settings": settings.model_dump(mode="json", exclude_unset=True)},
        parameter_openapi_schema=parameter_schema(flow).model_dump_for_openapi(),
        pull_steps=[{"prefect.deployments.steps.set_working_directory": {"directory": str(Path.cwd())}}],
        work_pool_name=pool,
        tags=["lightning-flows"],
        concurrency_limit=1,
        schedules=schedules if schedule is None else [*schedules, schedule],
    )
    return [_in_words(found) for found in client.read_deployment(deployment).schedules]


def _kept(client: SyncPrefectClient, name: str, replaced: bool) -> list[DeploymentScheduleCreate]:
    """Return the schedules of a deployment that are to stay: all, or all but the one that `--cron` replaces.

    By itself, Prefect would remove them.
    """
    try:
        found = client.read_deployment_by_name(name).schedules
    except ObjectNotFound:
        return []
    fields = set(DeploymentScheduleCreate.model_fields)
    return [
        DeploymentScheduleCreate(**s.model_dump(include=fields, exclude_none=True))
        for s in found
        if not (replaced and s.slug == _SLUG)
    ]


def _schedule(cron: str) -> DeploymentScheduleCreate:
    try:
        return DeploymentScheduleCreate(schedule=CronSchedule(cron=cron, timezone="UTC"), slug=_SLUG)
    except ValidationError:
        raise SettingsError(
            f"--cron {cron!r}: this is no cron expression; write five fields, as in '0 2 * * *' (two in the night, UTC)"
        ) from None


def _in_words(schedule: DeploymentSchedule) -> str:
    rule = schedule.schedule
    words = f"{rule.cron} ({rule.timezone or 'UTC'})" if isinstance(rule, CronSchedule) else str(rule)
    return words if schedule.active else f"{words}, paused"


def _require(client: SyncPrefectClient, pool: str) -> None:
    """Raise SettingsError where no server answers, or it has no such work pool."""
    remedy = "`make up` starts one and prints its PREFECT_API_URL; export that"
    if (problem := client.api_healthcheck()) is not None:
        raise SettingsError(f"the Prefect server at {client.api_url} does not answer ({problem}); {remedy}")
    try:
        client.read_work_pool(pool)
    except ObjectNotFound:
        raise SettingsError(
            f"there is no work pool {pool!r}; `make up` creates 'local', with a worker, and `prefect work-pool create "
            f"{pool} --type process` creates it"
        ) from None
