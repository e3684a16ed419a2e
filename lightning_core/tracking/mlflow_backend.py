"""MLflow's record of a run: parameters, metrics by epoch, data sets, policy versions, and how it ended.

One MLflow run per run of ours; its id is kept beside the run's optimizer state, so a resumed run goes on in it.
"""

from __future__ import annotations

import json
import os
import shlex
import time
from pathlib import Path
from typing import Any, Literal

import duckdb

from lightning_core.config import Settings, TrackingSettings
from lightning_core.files import write_atomic
from lightning_core.lake.manifest import EpochManifest
from lightning_core.policies.store import PolicyStore
from lightning_core.prompts.store import PromptStore
from lightning_core.settings_file import flat
from lightning_core.tracking import registry, traces
from lightning_core.tracking.page import WEIGHED
from lightning_core.tracking.prompts import register_prompts
from lightning_core.tracking.signals import Signal

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]

_NOTE = f"""The step of a metric is the epoch, counted from 0. `held_out_*` at step n is measured after n epochs of training: step 0 is
before training. The other metrics at step n are of epoch n, which begins with these versions. `<policy>/reward…` is over the rollouts in which
the policy acted, `mean_reward` over all.
`trained_calls` of the `calls` were trained on. {WEIGHED}
"""


def tracking_uri(tracking: TrackingSettings, home: Path) -> str:
    """Return where MLflow keeps its record: the settings' address, or a SQLite file in `home`."""
    return tracking.mlflow_uri or f"sqlite:///{(home / 'mlflow.db').resolve()}"


def is_tracked(tracking: TrackingSettings, home: Path, run: str) -> bool:
    """Return whether the run has an MLflow run already; without importing MLflow."""
    return "mlflow" in tracking.backends and _kept(home, run).is_file()


def _kept(home: Path, run: str) -> Path:
    return home / "training" / run / "mlflow_run_id"


class MlflowRun:
    """The MLflow run of a run; a new one has begun at `began` (seconds since 1970; None: now). Imports MLflow, which takes seconds."""

    def __init__(self, settings: Settings, began: float | None = None) -> None:
        self._settings = settings
        self._uri = tracking_uri(settings.tracking, settings.home)
        self._is_served = self._uri.startswith(("http://", "https://"))
        self._ui = self._uri.rstrip("/") if self._is_served else "http://127.0.0.1:5000"  # else the stack's
        self._client = registry.connect(self._uri)
        self._kept = _kept(settings.home, settings.run)
        self.run_id = self._find() or self._create(began or time.time())

    def tag(self, **tags: str) -> None:
        """Set tags of the run, for example the Prefect flow run that works on it."""
        for name, value in tags.items():
            self._client.set_tag(self.run_id, name, value)

    def metrics(self, values: dict[str, float], epoch: int) -> None:
        """Log metrics of an epoch; MLflow's step is the epoch."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        entries = [Metric(name, float(value), now, epoch) for name, value in sorted(values.items())]
        self._client.log_batch(self.run_id, metrics=entries)

    def send(self, epoch: EpochManifest, signals: list[Signal]) -> None:
        """Send signals as metrics `policy/signal`; no seconds of an evaluation: they would stand for the epoch's."""
        self.metrics(
            {
                f"{s.policy}/{s.name}" if s.policy else s.name: s.value
                for s in signals
                if epoch.mode == "train" or not s.name.startswith("seconds/")
            },
            epoch.epoch,
        )

    def dataset(self, name: str, digest: str, source: str, rows: int, context: str) -> None:
        """Log a data set that the run has read, once over all calls. `source`: a path, or `module:function`."""
        from mlflow.entities import Dataset, DatasetInput, InputTag
        from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

        local = Path(source).exists()
        place = {"uri": str(Path(source).resolve())} if local else {"tags": {"function": source}}
        dataset = Dataset(
            name, digest, "local" if local else "code", json.dumps(place), profile=json.dumps({"num_rows": rows})
        )
        self._client.log_inputs(self.run_id, [DatasetInput(dataset, [InputTag(MLFLOW_DATASET_CONTEXT, context)])])

    def status(self, status: Status) -> None:
        """Set the status of the run in MLflow: how it goes, or how it ended."""
        if status == "RUNNING":
            self._client.update_run(self.run_id, status)
        else:
            self._client.set_terminated(self.run_id, status)

    def document(self, content: dict[str, Any], path: str) -> None:
        """Log a JSON artifact, such as the settings and the dataset of an epoch."""
        self._client.log_dict(self.run_id, content, path)

    def traces(self, con: duckdb.DuckDBPyConnection, epoch: EpochManifest) -> int:
        """Log rollouts of an epoch as traces, as many as the settings say; returns how many. `con`: the catalog."""
        many = self._settings.tracking.traces
        if not many:
            return 0
        experiment = self._client.get_run(self.run_id).info.experiment_id
        sent = traces.send(self._uri, experiment, self.run_id, con, epoch, many)
        traces.keep(self._settings.home, self._settings.run, f"{self._ui}/#/experiments/{experiment}", sent)
        return len(sent)

    def version(self, store: PolicyStore, version: str) -> None:
        """Register a policy's version with its files and lineage; once, however often it is called."""
        registry.register(self._client, self.run_id, self._model(store), store, version)

    def aliases(self, store: PolicyStore) -> dict[str, str]:
        """Let `current` and `champion` name what the store calls current and best; returns alias → version."""
        return registry.point(self._client, self.run_id, self._model(store), store)

    def prompts(self, store: PromptStore) -> dict[str, str]:
        """Register a prompt's versions, each once, and let `current` and `champion` name those that the store does."""
        return register_prompts(self._client, f"{self._settings.run}.prompts.{store.name}", store)

    def link(self) -> str:
        """Return Markdown that links to the run: at the tracking server, else at the stack's MLflow UI."""
        run, command = self._client.get_run(self.run_id).info, f"mlflow ui --backend-store-uri {shlex.quote(self._uri)}"
        shown = "" if self._is_served else f" (while `lightning-flows up` runs, or `{command}`)"
        return f"[MLflow run {run.run_name}]({self._ui}/#/experiments/{run.experiment_id}/runs/{self.run_id}){shown}"

    def _model(self, store: PolicyStore) -> str:
        return f"{self._settings.run}.{store.name}"

    def _find(self) -> str | None:
        from mlflow.exceptions import MlflowException

        try:
            run_id = self._kept.read_text().strip()
            self._client.get_run(run_id)
        except FileNotFoundError:
            return None
        except MlflowException as error:
            # A gateway that is away for a moment begins no second run.
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return run_id

    def _create(self, began: float) -> str:
        from mlflow.exceptions import MlflowException

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "lightning-flows")  # as MLflow's own client takes it
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            experiment = found.experiment_id
        else:
            artifacts = (self._settings.home / registry.ARTIFACTS).resolve().as_uri()
            local = self._settings.tracking.mlflow_uri is None
            try:
                experiment = self._client.create_experiment(name, artifact_location=artifacts if local else None)
            except MlflowException:  # another process made it first
                experiment = self._client.get_experiment_by_name(name).experiment_id
        note = {"mlflow.note.content": _NOTE}  # the run's description in the UI
        run = self._client.create_run(experiment, int(began * 1000), run_name=self._settings.run, tags=note)
        run_id: str = run.info.run_id
        for key, value in flat(self._settings.model_dump(mode="json")).items():
            self._client.log_param(run_id, key, value)
        write_atomic(self._kept, run_id.encode())
        return run_id
