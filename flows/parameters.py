"""How a flow takes its settings: whole, with `overrides` on top, and judged by us.

Prefect would validate the parameters before the flow begins, in pydantic's words. Here the flow itself makes its
`Settings`; what is wrong with them is in the message of its Failed state as `lightning-flows settings` prints it. The form of
Prefect's UI is the same as with validation.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from prefect.runtime import flow_run
from pydantic import SkipValidation

from lightning_core.config import Settings, SettingsError
from lightning_core.epoch.epoch import Run
from lightning_core.events import named
from lightning_core.settings_file import make_settings

# Parameters of a deployment are plain values, those of a caller in Python are Settings; `resolve` takes both.
GivenSettings = SkipValidation[Settings]
Overrides = SkipValidation[dict[str, Any]]
NO_OVERRIDES: Overrides = {}


def resolve(settings: Settings, overrides: dict[str, Any] | None = None) -> Settings:
    """Return the settings with `overrides`, dotted keys to values, on top.

    Raises SettingsError for what cannot be used.
    """
    if not isinstance(settings, Settings):
        return make_settings(settings, overrides)
    return make_settings(settings.model_dump(exclude_unset=True), overrides) if overrides else settings


def run_name(pattern: str) -> Callable[[], str]:
    """Return a function that names a flow run by the pattern.

    In it, `{run}` is the settings' run, `{epoch}` the epoch, and `{evaluation}` what the evaluation is called, also
    where the number is left to the flow. With wrong settings the flow run keeps Prefect's own name.
    """

    def name() -> str:
        given = flow_run.parameters
        with contextlib.suppress(SettingsError):
            settings, epoch = resolve(given["settings"], given.get("overrides")), given.get("epoch")
            if "{epoch}" in pattern or "{evaluation}" in pattern:
                epoch = Run(settings).next_epoch() if epoch is None else epoch
                return pattern.format(run=settings.run, epoch=epoch, evaluation=named("evaluate", epoch))
            return pattern.format(run=settings.run)
        return str(flow_run.name)

    return name
