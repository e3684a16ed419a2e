"""The deployments of prefect.yaml, with the values that its build steps give them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from prefect.utilities.importtools import import_object
from prefect.utilities.templating import apply_values

FILE = Path(__file__).parents[1] / "prefect.yaml"


def deployments() -> list[dict[str, Any]]:
    """Return them as `prefect deploy --all` registers them from the root of the repository; it needs a server, this does not."""
    config = yaml.safe_load(FILE.read_text())
    outputs: dict[str, Any] = {}
    for step in config["build"]:
        ((name, inputs),) = step.items()
        own = inputs.pop("id")
        outputs[own] = import_object(name)(**inputs)
    return list(apply_values(config["deployments"], outputs))
