"""A version as a folder that leaves the store: an adapter, or full weights, merged where they were trained as an adapter."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from lightning_core.policies.model import Progress, check_model_folder, resolve_model
from lightning_core.policies.store import PolicyStore, StoreError
from lightning_core.policies.version_manifest import MANIFEST
from lightning_core.training.weights import load_adapter, load_model, save_weights, whole_folder

log = logging.getLogger(__name__)


def export(
    store: PolicyStore,
    version: str,
    into: Path,
    *,
    merged: bool,
    models: Path | None = None,
    on_progress: Progress = log.info,
) -> Path:
    """Write `version`, verified, to the new folder `into`; there whole or not at all.

    `merged`: full weights in float32 also of an adapter; its base model is taken from `models` or fetched. Else an
    adapter stays one, in peft's layout. Raises StoreError, ModelError and training's WeightsError.
    """
    if into.exists():
        raise StoreError(f"{into} is there already; give a folder that is not")
    source, manifest = store.checked(version), store.manifest(version)
    if not manifest.files and not merged:
        raise StoreError(f"{version} of {store.name} is the base without an adapter; export it merged")
    if manifest.kind == "full" or not merged:
        with whole_folder(into) as beside:
            shutil.copytree(source, beside, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST))
        return into
    base = resolve_model(manifest.base_model, models, on_progress).path
    model = load_model(base)
    if manifest.files:
        model = load_adapter(model, source).merge_and_unload(safe_merge=True)
        if hasattr(model, "peft_config"):  # else it would be written as an adapter again
            del model.peft_config
    with whole_folder(into) as beside:
        save_weights(model, base, beside)
        check_model_folder(beside)
    return into
