"""`lightning-flows token`: what an agent elsewhere needs, made on the gateway's machine. No Prefect in here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from lightning_core.client import DeliveryError, open_rollout
from lightning_core.config import SettingsError
from lightning_core.errors import Missing
from lightning_core.gateway.attempt_tokens import LIFETIME_S, OPENER_PREFIX, verify
from lightning_core.gateway.handle import GatewayError, GatewayHandle
from lightning_flows.flows.command import home_option


@click.command()
@home_option
@click.option("--task", metavar="JSON", help="What the rollout is about; graders see it.")
@click.option("--group", help="Rollouts of one group are compared in training. Default: a group of its own.")
@click.option(
    "--ttl",
    "ttl_s",
    type=click.FloatRange(min=0, min_open=True),
    default=LIFETIME_S,
    show_default="30 days, the most for a rollout",
    metavar="SECONDS",
    help="How long the token or the key is valid.",
)
@click.option("--url", help="Address at which the agent reaches the gateway. Default: the gateway's own.")
@click.option(
    "--opener", is_flag=True, help="Print a key that may open rollouts (POST /v1/rollouts) and do nothing else."
)
@click.option("--revoke", metavar="TOKEN|KEY", help="Refuse this token or opener key from now on, for good.")
def token(
    home: Path, task: str | None, group: str | None, ttl_s: float, url: str | None, opener: bool, revoke: str | None
) -> None:
    """Open a rollout for an agent that runs elsewhere, and print the environment by which it reaches the gateway.

    Its calls and spans are then of this rollout, which `lightning-flows learn` can train on:

    \b
        lightning-flows token --home var --group 17 --url https://gateway.example.com > agent.env
        env $(cat agent.env) python my_agent.py

    An agent with many rollouts opens them by itself, with the key that --opener prints: docs/production.md.
    """
    if sum((opener, revoke is not None, task is not None or group is not None)) > 1:
        raise click.UsageError("--opener, --revoke, and --task or --group exclude each other")
    gateway = GatewayHandle.find(home)
    if gateway is None:
        raise Missing(
            f"{home}: no gateway runs there; start one with `lightning-flows serve SETTINGS_FILE` or `make up`, or name the folder "
            "of one that runs with --home"
        )
    if revoke is not None:
        _revoke(gateway, revoke)
    elif opener:
        click.echo(gateway.mint_opener(ttl_s))
    else:
        about = None if task is None else _json(task)
        try:
            opened = open_rollout(gateway.url, gateway.secret, task=about, group=group, ttl_s=ttl_s)
        except DeliveryError as error:
            raise GatewayError(str(error)) from None
        if url is not None:
            opened.otlp_endpoint = opened.otlp_endpoint.replace(gateway.url, url.rstrip("/"), 1)
        click.echo("\n".join(f"{name}={value}" for name, value in opened.environment.items()))


def _revoke(gateway: GatewayHandle, text: str) -> None:
    if text.startswith(OPENER_PREFIX):
        try:
            gateway.revoke_opener(text)
        except ValueError as error:
            raise SettingsError(f"--revoke: {error}") from None
        click.echo("revoked; rollouts that it opened go on", err=True)
        return
    scope = verify(gateway.secret, text)
    if scope is None:
        raise SettingsError("--revoke: this is no token of this gateway, or it has ended")
    gateway.revoke(scope.rollout_id, scope.attempt_id)
    click.echo(f"revoked: rollout {scope.rollout_id}, attempt {scope.attempt_id}", err=True)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise SettingsError(f"--task: no JSON ({error}); write a text in quotes: --task '\"a text\"'") from None
