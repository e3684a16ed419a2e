"""MLflow's record of a run: parameters, metrics by epoch, datasets, policy versions.

One MLflow run per run of ours; its id is kept beside the run's optimizer state, so a resumed run goes on in it.
"""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Any

from lightning_core.config import Settings
from lightning_core.files import write_atomic

logger = logging.getLogger(__name__)


def tracking_uri(settings: Settings) -> str:
    """Where MLflow keeps its record: the settings' address, or a SQLite file in `home`."""
    return settings.tracking.mlflow_uri or f"sqlite:///{(settings.home / 'mlflow.db').resolve()}"


class MlflowRun:
    """The MLflow run of a run. Imports MLflow when made, which takes seconds."""

    def __init__(self, settings: Settings) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("DO_NOT_TRACK", "true")
        for noisy in ("alembic", "mlflow"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        from mlflow import MlflowClient

        self._settings = settings
        self._client = MlflowClient(tracking_uri=tracking_uri(settings), registry_uri=tracking_uri(settings))
        self._kept = settings.home / "training" / settings.run / "mlflow_run_id"
        self.run_id = self._find() or self._create()

    def tag(self, **tags: str) -> None:
        """Tags of the run, for example the Prefect flow run that works on it."""
        for name, value in tags.items():
            self._client.set_tag(self.run_id, name, value)

    def metrics(self, values: dict[str, float], epoch: int) -> None:
        """Metrics of an epoch; MLflow's step is the epoch."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        entries = [Metric(name, float(value), now, epoch) for name, value in sorted(values.items())]
        self._client.log_batch(self.run_id, metrics=entries)

    def document(self, content: dict[str, Any], path: str) -> None:
        """A JSON artifact, such as the settings and the dataset of an epoch."""
        self._client.log_dict(self.run_id, content, path)

    def version(self, policy: str, version: str, folder: Path, tags: dict[str, str]) -> None:
        """Register a policy's version as a model version that points to its folder; once, however often it is asked."""
        from mlflow.exceptions import MlflowException

        name = f"{self._settings.run}.{policy}"
        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        known = self._client.search_model_versions(f"name = '{name}'")
        if any(found.tags.get("version") == version for found in known):
            return
        made = self._client.create_model_version(
            name, source=folder.resolve().as_uri(), run_id=self.run_id, tags={"version": version, **tags}
        )
        self._client.set_registered_model_alias(name, "current", made.version)

    def _find(self) -> str | None:
        from mlflow.exceptions import MlflowException

        try:
            run_id = self._kept.read_text().strip()
            self._client.get_run(run_id)
        except (FileNotFoundError, MlflowException):
            return None
        return run_id

    def _create(self) -> str:
        from mlflow.exceptions import MlflowException

        name = self._settings.tracking.experiment
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            experiment = found.experiment_id
        else:
            artifacts = (self._settings.home / "mlflow-artifacts").resolve().as_uri()
            local = self._settings.tracking.mlflow_uri is None
            try:
                experiment = self._client.create_experiment(name, artifact_location=artifacts if local else None)
            except MlflowException:  # another process made it first
                experiment = self._client.get_experiment_by_name(name).experiment_id
        run = self._client.create_run(experiment, run_name=self._settings.run)
        run_id: str = run.info.run_id
        for key, value in _flat(self._settings.model_dump(mode="json")).items():
            self._client.log_param(run_id, key, value)
        write_atomic(self._kept, run_id.encode())
        return run_id


def _flat(value: Any, prefix: str = "") -> dict[str, str]:
    """Nested settings as MLflow's flat parameters: `rollout.group_size`, `policies.0.name`."""
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        items = {str(i): v for i, v in enumerate(value)}.items()
    else:
        return {prefix: str(value)[:6000]}
    flat: dict[str, str] = {}
    for key, inner in items:
        flat |= _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    return flat
