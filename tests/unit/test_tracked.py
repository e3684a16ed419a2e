"""How a run ended, as MLflow says it."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from prefect.exceptions import CancelledRun, TerminationSignal

from lightning_core.config import Settings
from lightning_core.epoch.epoch import Run
from lightning_core.lake.lake import Lake
from lightning_core.tracking.mlflow_backend import MlflowRun
from lightning_flows.tasks.track import _tracked, tracked
from tests.lake_maker import settings

pytestmark = pytest.mark.slow  # an MLflow database


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A run that MLflow knows."""
    given = settings(tmp_path_factory.mktemp("home"))
    MlflowRun(given)
    return given


def status(run: Settings) -> str:
    made = MlflowRun(run)
    return str(made._client.get_run(made.run_id).info.status)


def test_a_run_is_running_inside_and_finished_after(run: Settings) -> None:
    with tracked(Run(run)):
        assert status(run) == "RUNNING"
        with pytest.raises(ValueError), tracked(Run(run)):
            raise ValueError("of a flow within another, which goes on all the same")
        assert status(run) == "RUNNING"
    assert status(run) == "FINISHED"
    with tracked(Run(run)):
        assert status(run) == "RUNNING", "resumed"


@pytest.mark.parametrize(
    ("error", "ended"),
    [
        (ValueError("no"), "FAILED"),
        (KeyboardInterrupt(), "KILLED"),
        (TerminationSignal(15), "KILLED"),
        (CancelledRun("in Prefect's UI"), "KILLED"),
    ],
)
def test_a_run_that_is_ended_says_by_what(run: Settings, error: BaseException, ended: str) -> None:
    with pytest.raises(type(error)), tracked(Run(run)):
        raise error
    assert status(run) == ended


def test_a_run_whose_interrupt_became_an_error_is_killed_and_says_so(run: Settings) -> None:
    """DuckDB raises a RuntimeError where Ctrl-C comes amid a query."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt) as raised, tracked(Run(run)):
            with contextlib.suppress(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
            raise RuntimeError("Query interrupted")
    finally:
        signal.signal(signal.SIGINT, before)
    assert str(raised.value.__cause__) == "Query interrupted"
    assert status(run) == "KILLED"


def test_a_link_says_what_has_to_run_for_it(run: Settings) -> None:
    link = MlflowRun(run).link()
    assert link.startswith("[MLflow run run](http://127.0.0.1:5000/#/experiments/")
    assert f"`mlflow ui --backend-store-uri sqlite:///{run.home / 'mlflow.db'}`" in link


def test_a_process_that_is_refused_the_run_says_nothing_of_it(run: Settings) -> None:
    with tracked(Run(run)):
        pass
    other, done = threading.Event(), threading.Event()

    def work() -> None:
        with Lake(run.home).working_on(run.run):
            other.set()
            done.wait(60)

    thread = threading.Thread(target=work)
    thread.start()
    other.wait(60)
    try:
        with pytest.raises(ValueError), tracked(Run(run)):
            assert status(run) == "FINISHED"
            raise ValueError("another process works on it")
    finally:
        done.set()
        thread.join()
    assert status(run) == "FINISHED"


def test_an_mlflow_that_is_away_hides_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    away = settings(tmp_path, tracking={"mlflow_uri": "sqlite:////proc/no/such/folder/mlflow.db"})
    kept = tmp_path / "training" / "run" / "mlflow_run_id"
    kept.parent.mkdir(parents=True)
    kept.write_text("0" * 32)
    with pytest.raises(ValueError, match="the flow's own"), tracked(Run(away)):
        raise ValueError("the flow's own")
    assert "MLflow does not know that run run is FAILED" in caplog.text


def test_data_sets_are_named_once_with_digest_rows_and_source(run: Settings, tmp_path: Path) -> None:
    made, file = MlflowRun(run), tmp_path / "tasks.jsonl"
    file.write_text("{}\n")
    for _ in range(2):
        made.dataset("tasks.train", "abc", str(file), 1, "training")
        made.dataset("tasks.evaluate", "def", "my_tasks:held_out", 2, "evaluation")
    found = made._client.get_run(made.run_id).inputs.dataset_inputs
    datasets = {i.dataset.name: (i.dataset.digest, i.dataset.source, i.dataset.profile, i.tags[0].value) for i in found}
    assert len(found) == 2
    assert datasets == {
        "tasks.train": ("abc", f'{{"uri": "{file}"}}', '{"num_rows": 1}', "training"),
        "tasks.evaluate": ("def", '{"tags": {"function": "my_tasks:held_out"}}', '{"num_rows": 2}', "evaluation"),
    }


def test_an_mlflow_run_begins_with_its_flow_and_not_with_the_first_record(tmp_path: Path) -> None:
    given = settings(tmp_path)
    with tracked(Run(given)):
        began = time.time()
        time.sleep(0.1)
        made = MlflowRun(given, _tracked[given.home.resolve(), given.run])
        assert made._client.get_run(made.run_id).info.start_time <= began * 1000
