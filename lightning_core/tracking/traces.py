"""Rollouts as traces in MLflow: the repaired tree of each, with its rewards as assessments.

The id of a trace is made of run, epoch and rollout, so that an epoch that is recorded again adds none.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import shlex
from pathlib import Path
from typing import Any

import duckdb

from lightning_core.files import write_atomic
from lightning_core.lake import sql
from lightning_core.lake.conversation import json_or_text
from lightning_core.lake.manifest import EpochManifest

Row = dict[str, Any]
_KINDS = {"llm": "CHAT_MODEL", "tool": "TOOL", "agent": "AGENT", "embedding": "EMBEDDING", "retriever": "RETRIEVER"}


def trace_id(run: str, mode: str, epoch: int, rollout: str) -> str:
    """Return the id that MLflow has for a rollout of an epoch."""
    return f"tr-{hashlib.sha256(f'{run}/{mode}/{epoch}/{rollout}'.encode()).hexdigest()[:32]}"


def address(home: Path, run: str, mode: str, epoch: int, rollout: str) -> str | None:
    """Return where MLflow's UI shows the trace of a rollout; None where there is none. Imports no MLflow."""
    try:
        kept = json.loads(_kept(home, run).read_text())
    except (FileNotFoundError, ValueError):
        return None
    name = trace_id(run, mode, epoch, rollout)
    return f"{kept['experiment']}/traces?selectedEvaluationId={name}" if name in kept["traces"] else None


def opened_by(uri: str) -> str | None:
    """Return the command that has to run for `address` to open, with MLflow's record at `uri`.

    None where a tracking server of the user's has it.
    """
    return f"mlflow ui --backend-store-uri {shlex.quote(uri)}" if uri.startswith("sqlite:") else None


def keep(home: Path, run: str, experiment: str, traces: list[str]) -> None:
    """Note which traces of a run there are, and the address of their experiment, for `address`."""
    try:
        known = json.loads(_kept(home, run).read_text())["traces"]
    except (FileNotFoundError, ValueError):
        known = []
    content = {"experiment": experiment, "traces": sorted({*known, *traces})}
    write_atomic(_kept(home, run), json.dumps(content, indent=1).encode())


def _kept(home: Path, run: str) -> Path:
    return home / "training" / run / "mlflow_traces.json"


def send(
    tracking_uri: str, experiment: str, run_id: str, con: duckdb.DuckDBPyConnection, epoch: EpochManifest, traces: int
) -> list[str]:
    """Log so many of an epoch's rollouts as traces of an MLflow run, once each; returns their ids. `con`: the catalog."""
    from mlflow.tracing.client import TracingClient

    scope = {"run": epoch.run, "epoch": epoch.epoch, "mode": epoch.mode, "traces": traces}
    relation = con.execute(sql.text("tracking/traced_spans"), scope)
    columns = [column[0] for column in relation.description or []]
    rows = [dict(zip(columns, row, strict=True)) for row in relation.fetchall()]
    client, names = TracingClient(tracking_uri), []
    for rollout, spans in itertools.groupby(rows, key=lambda row: row["rollout_id"]):
        names.append(trace_id(epoch.run, epoch.mode, epoch.epoch, rollout))
        _send(client, experiment, run_id, names[-1], epoch, list(spans))
    return names


def _send(client: Any, experiment: str, run_id: str, name: str, epoch: EpochManifest, spans: list[Row]) -> None:
    from mlflow.entities import TraceInfo, TraceLocation, TraceState

    first = spans[0]
    known = client.start_trace(
        TraceInfo(
            trace_id=name,
            trace_location=TraceLocation.from_experiment_id(experiment),
            request_time=first["began_ns"] // 1_000_000,
            execution_duration=(first["ended_ns"] - first["began_ns"]) // 1_000_000,
            state=TraceState.OK if first["outcome"] == "ok" else TraceState.ERROR,
            request_preview=first["task_text"],
            response_preview=first["output"],
            tags={
                "mlflow.traceName": first["rollout_id"],
                "lightning.epoch": f"{epoch.mode} {epoch.epoch}",
                "lightning.group": first["group_id"] or "",
            },
            trace_metadata={"mlflow.sourceRun": run_id},
        )
    )
    client.log_spans(experiment, _spans(name, spans))
    if not known.assessments:
        for assessment in _assessments(spans):
            client.log_assessment(name, assessment)


def _spans(name: str, rows: list[Row]) -> list[Any]:
    """Return MLflow's spans of the tree.

    Of two records of one call, that of the gateway is shown; what has no start is left out.
    """
    from mlflow.entities import Span
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import SpanContext, Status, StatusCode, TraceFlags

    above = {row["node"]: row["parent_node"] for row in rows}
    shown = {row["node"]: row for row in rows if row["start_ns"] is not None and row["twin_node"] is None}

    def context(node: int) -> SpanContext:
        # Its number too: of spans that share an id each is one.
        span = hashlib.sha256(f"{node}/{shown[node]['span_id']}".encode()).hexdigest()[:16]
        return SpanContext(int(name.removeprefix("tr-"), 16), int(span, 16), False, TraceFlags(1))

    def parent(node: int) -> SpanContext | None:
        over = above[node]
        while over is not None and over not in shown:
            over = above.get(over)
        return None if over is None else context(over)

    found = []
    for node, row in shown.items():
        attributes = {
            "mlflow.traceRequestId": name,
            "mlflow.spanType": _KINDS.get(row["op"], "UNKNOWN"),
            "mlflow.spanInputs": json_or_text(row["inputs"]),
            "mlflow.spanOutputs": json_or_text(row["outputs"]),
            "lightning.agent": row["agent"],
            "lightning.placed_by": f"{row['method']} {row['confidence']:.2f}",
            "lightning.reward": row["reward"],
        }
        found.append(
            Span(
                ReadableSpan(
                    row["name"],
                    context=context(node),
                    parent=parent(node),
                    start_time=row["start_ns"],
                    end_time=row["end_ns"] if row["end_ns"] is not None else row["start_ns"],
                    attributes={key: json.dumps(value) for key, value in attributes.items() if value is not None},
                    status=Status(StatusCode.ERROR if row["failed"] else StatusCode.OK),
                )
            )
        )
    return found


def _assessments(rows: list[Row]) -> list[Any]:
    from mlflow.entities import AssessmentSource, Feedback

    return [
        Feedback(
            name=row["reward_name"] or "reward",
            value=row["reward"],
            source=AssessmentSource("CODE", row["reward_source"] or "agent"),
        )
        for row in rows
        if row["reward"] is not None and math.isfinite(row["reward"]) and row["reward_source"] != "refused"
    ]
