"""Rollouts as MLflow's traces: the repaired tree, once each, with rewards as assessments."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Trace
from mlflow.tracking.client import MlflowClient
from starlette.testclient import TestClient

from lightning_core.lake import catalog
from lightning_core.tracking.mlflow_backend import MlflowRun, tracking_uri
from lightning_core.tracking.traces import address, trace_id
from lightning_core.ui.app import app
from lightning_core.ui.guard import Allowed
from lightning_core.ui.one_file import report
from lightning_core.ui.serve import LOOPBACK
from tests.lake_maker import Attempt, derived, settings

pytestmark = pytest.mark.slow  # an MLflow database

REWARDS = (0.3, 1.0, 0.0, 0.6, 0.5)


def test_some_rollouts_are_traces_of_the_run_and_twice_adds_nothing(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    for number, reward in enumerate(REWARDS):
        made = Attempt(f"r.{number}", f"a{number}")
        made.root(task=json.dumps({"question": "6 times 7?"}), output=json.dumps("42"))
        agent = made.agent("worker")
        lost = made.span("step", (0.15, 0.5), agent)
        asked = json.dumps([{"role": "user", "content": "6 times 7?"}])
        made.call([1], [2], (0.2, 0.3), lost, input_messages=asked)
        made.span("search", (0.3, 0.35), "dead", op="tool", tool_result="42", status="error")
        made.reward(reward)
        rows += made.rows
    lake, epoch = derived(tmp_path, rows)
    lake.rebuild_catalog()
    given = settings(tmp_path)
    given = given.model_copy(update={"tracking": given.tracking.model_copy(update={"traces": 3})})
    run = MlflowRun(given)
    client = MlflowClient(tracking_uri(given.tracking, tmp_path))
    names = {trace_id("run", "train", 0, f"r.{number}"): number for number in range(len(REWARDS))}

    def sent() -> dict[int, Trace]:
        with catalog.connect(lake.root) as con:
            assert run.traces(con, epoch) == 3
        experiment = client.get_run(run.run_id).info.experiment_id
        return {names[t.info.trace_id]: t for t in client.search_traces(locations=[experiment], max_results=50)}

    first = sent()
    assert {1, 2} < first.keys() and len(first) == 3, "the best, the worst, and another one"
    assert sent().keys() == first.keys()
    trace = client.get_trace(trace_id("run", "train", 0, "r.1"))
    assert (trace.info.request_preview, trace.info.response_preview) == ("6 times 7?", '"42"')
    assert trace.info.trace_metadata["mlflow.sourceRun"] == run.run_id
    assert [(a.name, a.value, a.source.source_id) for a in trace.info.assessments] == [("reward", 1.0, "grader")]
    ids = {span.span_id: span.name for span in trace.data.spans}
    tree = {span.name: ids.get(span.parent_id or "") for span in trace.data.spans}
    assert tree["worker.run"] == "rollout" and tree["step"] == "worker.run" and tree["chat policy"] == "step"
    assert tree["search"] == "worker.run", "its declared parent never came, and the tree is the repaired one"
    spans = {span.name: span for span in trace.data.spans}
    assert spans["chat policy"].inputs == [{"role": "user", "content": "6 times 7?"}]
    assert (spans["search"].status.status_code, spans["search"].outputs) == ("ERROR", 42)

    shown = address(tmp_path, "run", "train", 0, "r.1")
    assert (
        shown
        == f"http://127.0.0.1:5000/#/experiments/{trace.info.experiment_id}/traces?selectedEvaluationId={trace.info.trace_id}"
    )
    assert address(tmp_path, "run", "evaluate", 0, "r.1") is address(tmp_path, "other", "train", 0, "r.1") is None
    with TestClient(app(tmp_path, Allowed(LOOPBACK)), base_url="http://127.0.0.1") as page:
        assert f'href="{shown}"' in html.unescape(page.get("/run/run/rollout/r.1").text)
    assert f'href="{shown}"' in html.unescape(report(tmp_path, "run")), "it stays a link in a report"

    none = MlflowRun(given.model_copy(update={"tracking": given.tracking.model_copy(update={"traces": 0})}))
    with catalog.connect(lake.root) as con:
        assert none.traces(con, epoch) == 0
