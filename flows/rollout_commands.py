"""`lightning-flows roll-out` and `learn`: rollouts without training, and training without rollouts."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import click
import yaml

from lightning_core.config import SettingsError
from lightning_flows.flows.command import (
    flow_of,
    from_option,
    load,
    set_option,
    settings_argument,
)
from lightning_flows.flows.display import verbose_option


@click.command("roll-out")
@settings_argument
@set_option
@verbose_option
@click.option("--epoch", type=int, help="Default: the first that is not finished.")
@from_option
def roll_out(settings_file: Path, assignments: tuple[str, ...], epoch: int | None, from_stage: Any) -> None:
    """Run only the rollouts of an epoch, graded and derived; `train-epoch` continues from there."""
    settings = load(settings_file, assignments)
    with flow_of(settings, "train"):
        from lightning_flows.flows.roll_out import roll_out as run

        result = run(settings, epoch, from_stage)
    click.echo(yaml.safe_dump(result, sort_keys=False))


@click.command()
@settings_argument
@set_option
@verbose_option
@click.option("--since", type=click.DateTime(), help="Rollouts that began at or after this (local time).")
@click.option("--until", type=click.DateTime(), help="Rollouts that began before this.")
@click.option(
    "--attribute",
    "attributes",
    multiple=True,
    metavar="KEY=VALUE",
    help="Select rollouts by an attribute of one of their spans, or of its resource.",
)
@click.option("--where", help="SQL condition on the columns of `spans` that one of the rollout's spans has to meet.")
@click.option("--group-by", help="Attribute whose value names the group. Default: each rollout is its own group.")
@click.option(
    "--silent",
    "silent_s",
    type=float,
    default=60.0,
    show_default=True,
    help="A rollout is over after this many seconds without a span.",
)
def learn(
    settings_file: Path,
    assignments: tuple[str, ...],
    since: datetime | None,
    until: datetime | None,
    attributes: tuple[str, ...],
    **choice: Any,
) -> None:
    """Train on what production agents have sent; runs no rollout."""
    settings = load(settings_file, assignments)
    pairs = dict(attribute.partition("=")[::2] for attribute in attributes)
    if "" in pairs or len(pairs) != len(attributes) or any("=" not in a for a in attributes):
        raise SettingsError(f"--attribute: write each as KEY=VALUE, every key once; got {', '.join(attributes)}")
    with flow_of(settings, "learn"):
        from lightning_core.epoch.production import Choice
        from lightning_flows.flows.learn import learn as run

        chosen = Choice(since=since, until=until, attributes=pairs, **choice)
        result = run(settings, chosen)
    click.echo(yaml.safe_dump(result, sort_keys=False))
