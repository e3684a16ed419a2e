"""`lightning-flows import`: what ran elsewhere becomes rollouts of the lake, for `finetune`. No Prefect in here."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import click

from lightning_core.config import GatewaySettings, Settings, SettingsError
from lightning_core.config.section import is_name
from lightning_core.errors import Missing
from lightning_flows.flows.command import of_a_home

_SHOWN_EVERY_S = 5.0


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--from",
    "source",
    type=click.Choice(["chat", "otlp", "openinference", "mlflow"]),
    required=True,
    help="What the file holds.",
)
@click.option("--run", help="Run that it becomes an epoch of; `finetune.runs` names it. Default: the name of the file.")
@of_a_home("the sections `lake:` and `gateway:`")
def import_(home: Path, settings: Settings | None, file: Path, source: str, run: str | None) -> None:
    """Import demonstrations into the lake, each once, for `finetune` (policies with `algorithm: sft`).

    chat: OpenAI's JSONL for finetuning, a chat a line: {"messages": […], "tools": […]}. otlp: traces in OTLP/JSON, whole or a
    request a line, or in protobuf (.pb). openinference: spans as Phoenix exports them. mlflow: traces as MLflow writes them in JSON.
    `policies[].sft.without_ids: tokenize` trains on traces.
    """
    from lightning_core.epoch.chat_file import read_chats
    from lightning_core.epoch.imported import BadPart, Imported, Imports, import_rollouts
    from lightning_core.epoch.services import gateway_of
    from lightning_core.epoch.trace_file import read_traces
    from lightning_core.lake.lake import Lake
    from lightning_core.lake.redact import Redaction

    if not file.is_file():
        raise Missing(f"{file}: no such file")
    run = run or file.name.split(".")[0]
    if not is_name(run):
        raise SettingsError(f"{run!r} is no name for a run (letters, digits, _ -); give one with --run")

    last = time.monotonic()

    def shown(done: Imports) -> None:
        nonlocal last
        if time.monotonic() - last > _SHOWN_EVERY_S:
            last = time.monotonic()
            click.echo(f"{done.rollouts:,} rollouts …", err=True)

    redaction = Redaction.of(settings.lake) if settings is not None else None

    def found(now_ns: int) -> Iterator[Imported | BadPart]:
        return read_chats(file, now_ns) if source == "chat" else read_traces(file, source)

    with gateway_of(home, settings.gateway if settings is not None else GatewaySettings()) as gateway:
        done = import_rollouts(Lake(home), gateway, run, source, found, redaction, shown)
    for bad in done.bad:
        click.echo(f"{bad.where}: {bad.why}", err=True)
    if done.dropped > len(done.bad):
        click.echo(f"… and {done.dropped - len(done.bad):,} more", err=True)
    counts = f"{done.rollouts:,} rollouts with {done.spans:,} spans"
    counts += f"; {done.known:,} were there already" if done.known else ""
    counts += f"; {done.dropped:,} dropped (see above)" if done.dropped else ""
    if done.epoch is None and not done.known:
        raise SettingsError(f"{file}: nothing of it can be imported ({counts})")
    where = f"epoch {done.epoch} of run {run}" if done.epoch is not None else "nothing new"
    click.echo(f"{where}: {counts}")
