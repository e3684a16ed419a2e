"""MLflow's model registry: every version with its weights and lineage, aliases `champion` and `current`.

A registered model is called `<run>.<policy>`. A version's files are artifacts of the run that trained it: hard links
where the artifacts are a folder on the store's file system (no disk, but also no second copy), else an upload. So the
registry alone is enough to load a version, whatever becomes of `home`.

Whoever reaches MLflow's address writes into it, so what it says is not believed: a version's name has to be one, and its files are read
and removed only where the run that it names keeps them.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from lightning_core.files import link_or_copy, put_in_place, rename
from lightning_core.policies.removed import nearest
from lightning_core.policies.store import PolicyStore
from lightning_core.policies.version_manifest import (
    MANIFEST,
    Manifest,
    StoreError,
    check_files,
    is_version,
    read_manifest,
)

logger = logging.getLogger(__name__)

Weights = tuple[str, str]  # a version's name, and the digest of its files
REMOVED = "removed"  # of the tag `weights`
_NUMBERS = (
    "MLflow numbers versions from 1, in the order in which they were registered. The tag `version` has the policy's own name "
    "of each (`v0000` is before training). The tag `weights: removed` marks those whose files are gone; their description says why."
)
ARTIFACTS = "mlflow-artifacts"  # the folder beside mlflow.db


def connect(uri: str) -> Any:
    """Return an MLflow client for tracking and registry at `uri`. Imports MLflow, which takes seconds."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    from mlflow import MlflowClient

    for noisy in ("alembic", "mlflow"):  # after the import, which sets mlflow's own to INFO
        logging.getLogger(noisy).setLevel(logging.WARNING)

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def register(client: Any, run_id: str, name: str, store: PolicyStore, version: str) -> Any:
    """Register `version` in the registered model `name`; once, however often it is called. Returns the model version.

    Raises StoreError where the version is damaged: what is registered is what was published.
    """
    from mlflow.exceptions import MlflowException

    manifest = store.manifest(version)
    try:
        client.create_registered_model(name, tags={"policy": store.name}, description=_NUMBERS)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    place, root = _place(store.name, version), client.get_run(run_id).info.artifact_uri
    for found in _versions(client, name):
        if _weights(found) == (version, manifest.digest) and _is_own(client, found):
            return found
    folder, local = store.checked(version), _local(root)
    if local is not None:
        _link_folder(folder, local / place)
    else:
        client.log_artifacts(run_id, str(folder), place)
    return client.create_model_version(name, source=f"{root}/{place}", run_id=run_id, tags=_tags(manifest))


def point(client: Any, run_id: str, name: str, store: PolicyStore) -> dict[str, str]:
    """Set the aliases `current` and `champion` as in the store, and tag held-out results; returns alias → version."""
    pointed = {}
    for alias, version in (("current", store.current()), ("champion", store.best())):
        if version is None:
            continue
        made = register(client, run_id, name, store, version)
        client.set_registered_model_alias(name, alias, made.version)
        evaluation = store.manifest(version).evaluation
        if evaluation is not None:
            client.set_model_version_tag(name, made.version, "right", f"{evaluation.right:.6f}")
            client.set_model_version_tag(name, made.version, "held_out_tasks", str(evaluation.tasks))
        pointed[alias] = version
    return pointed


def load(uri: str, name: str, version: str, into: Path) -> Path:
    """Fetch `version` (`v0007`, or an alias) of the registered model `name` to `into/<version>`, and verify it.

    Needs the registry alone. A registry that is a SQLite file finds its artifacts also in the folder beside it, so both
    can be copied to another place or machine. Raises StoreError; nothing is left behind then.
    """
    from mlflow.exceptions import MlflowException

    client = connect(uri)
    try:
        known_as = (found for found in _versions(client, name) if found.tags.get("version") == version)
        found = next(known_as, None) or client.get_model_version_by_alias(name, version)
        tags, source = found.tags, _source(client, found)
    except MlflowException as error:
        known = sorted(model.name for model in _models(client))
        raise StoreError(f"{uri}: no version or alias {version!r} of {name!r} ({error}); models: {known}") from None
    if tags.get("weights") == REMOVED:
        kept = [v.tags.get("version", "") for v in _versions(client, name) if "weights" not in v.tags]
        kept = [version for version in kept if is_version(version)]
        raise StoreError(
            f"{name}: {tags['version']} is not there: {found.description} In {uri} {nearest(tags['version'], kept)}"
        )
    target = into / tags["version"]
    if target.exists():
        raise StoreError(f"{target} is there already; remove it, or fetch into another folder")
    into.mkdir(parents=True, exist_ok=True)
    work = into / f".fetch-{secrets.token_hex(4)}"
    try:
        _download(uri, source, work / target.name)
        links = sorted(file for file in (work / target.name).rglob("*") if file.is_symlink())
        if links:
            raise StoreError(f"{source}: {links[0].name} is a link, and not what was registered")
        manifest = read_manifest(work / target.name, tags.get("policy", ""))
        check_files(work / target.name, manifest)
        if manifest.digest != tags.get("digest"):
            raise StoreError(f"{source}: other files than those registered as {tags['version']} of {name}")
        put_in_place(work / target.name, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def named(client: Any, policy: str) -> dict[Weights, list[str]]:
    """Return weights that the registry needs → why.

    An alias names them, or a registered model of the user's own is made of them.
    """
    models = list(_models(client))
    ours = {model.name: model.aliases for model in models if model.tags.get("policy") == policy}
    made = {name: _versions(client, name) for name in ours}
    found: dict[Weights, list[str]] = {}
    sources: dict[str, Weights] = {}
    for name, aliases in ours.items():
        for version in made[name]:
            weights = _weights(version)
            sources |= {version.source: weights, f"models:/{name}/{version.version}": weights}
            for alias, number in aliases.items():
                if str(number) == str(version.version):
                    found.setdefault(weights, []).append(f"alias {alias} of {name}")
    for model in models:
        for version in _versions(client, model.name) if model.name not in ours else ():
            if (known := sources.get(version.source)) is not None:
                found.setdefault(known, []).append(f"registered as {model.name} {version.version}")
    return found


def forget(client: Any, policy: str, why: dict[Weights, str]) -> int:
    """Remove the files of model versions of a policy and tag them `weights: removed`; returns how many were not so yet.

    `why` has the weights with what is written into the version's description. Lineage and results stay to be looked at;
    links to the files would keep the bytes on disk. A model version that names files elsewhere stays as it is, with a warning.
    """
    gone = 0
    models = [model.name for model in _models(client) if model.tags.get("policy") == policy]
    for name in models:
        for found in _versions(client, name):
            weights = _weights(found)
            if weights in why and found.tags.get("weights") != REMOVED:
                try:
                    _remove(client, found)
                except StoreError as error:
                    logger.warning("nothing of it is removed: %s", error)
                    continue
                client.update_model_version(name, found.version, description=f"The weights were {why[weights]}.")
                client.set_model_version_tag(name, found.version, "weights", REMOVED)
                gone += 1
    return gone


def _weights(found: Any) -> Weights:
    return found.tags.get("version", ""), found.tags.get("digest", "")


def pages(search: Callable[..., Any], **asked: str) -> Iterator[Any]:
    """Yield all that a search of MLflow's client finds, page after page."""
    token = None
    while True:
        page = search(**asked, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _models(client: Any) -> Iterator[Any]:
    return pages(client.search_registered_models)


def _versions(client: Any, name: str) -> list[Any]:
    quote = '"' if "'" in name else "'"
    return list(pages(client.search_model_versions, filter_string=f"name = {quote}{name}{quote}"))


def _place(policy: str, version: str) -> str:
    """Return where a version is among the artifacts of a run."""
    return f"policies/{policy}/{version}"


def _source(client: Any, found: Any) -> str:
    """Return the address of a model version's files.

    Raises StoreError where its tag is no version's name, or its files are not where its run keeps that version.
    """
    from mlflow.exceptions import MlflowException

    name, version = f"{found.name} {found.version}", found.tags.get("version", "")
    if not is_version(version):
        raise StoreError(f"{name}: its tag `version` is {version!r}, which is no version of a policy")
    try:
        root = client.get_run(found.run_id).info.artifact_uri if found.run_id else None
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        root = None
    source = str(found.source)
    if source != f"{root}/{_place(found.tags.get('policy', ''), version)}" or ".." in unquote(source).split("/"):
        raise StoreError(f"{name}: it says that {version} is in {source}, which is not where its run keeps versions")
    return source


def _is_own(client: Any, found: Any) -> bool:
    try:
        return bool(_source(client, found))
    except StoreError as error:
        logger.warning("%s; it is registered anew", error)
        return False


def _tags(manifest: Manifest) -> dict[str, str]:
    """Return the lineage, as tags of a model version."""
    facts = manifest.model_dump(
        include={
            "policy", "version", "parent", "run", "epoch", "kind", "base_model", "settings_digest", "sequences",
            "sequences_digest",
        }
    )  # fmt: skip
    return {key: str(value) for key, value in facts.items() if value is not None} | {"digest": manifest.digest}


def _local(uri: str) -> Path | None:
    parsed = urlparse(uri)
    return Path(unquote(parsed.path)) if parsed.scheme in ("", "file") else None


def _link_folder(source: Path, target: Path) -> None:
    """Make `target` with the files of `source`, by links where that can be; it is there whole or not at all."""
    if target.exists():  # of a registration that was cut off before the registry had it
        shutil.rmtree(target)
    beside = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        shutil.copytree(source, beside, copy_function=_link)
        put_in_place(beside, target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _link(source: str, target: str) -> None:
    if Path(source).name == MANIFEST:  # rewritten when the version is evaluated
        shutil.copyfile(source, target)
    else:
        link_or_copy(source, target)


def _download(uri: str, source: str, target: Path) -> None:
    local = _local(source)
    if local is None:
        from mlflow.artifacts import download_artifacts

        fetched = download_artifacts(artifact_uri=source, dst_path=str(target.parent / "download"), tracking_uri=uri)
        rename(Path(fetched), target)
        return
    if not local.is_dir() and uri.startswith("sqlite:///") and ARTIFACTS in local.parts:
        inside = local.parts[local.parts.index(ARTIFACTS) :]
        local = Path(uri.removeprefix("sqlite:///")).parent.joinpath(*inside)
    if not local.is_dir():
        raise StoreError(f"{source}: the registry's files are not here; copy {ARTIFACTS}/ to the folder of mlflow.db")
    shutil.copytree(local, target, symlinks=True)


def _remove(client: Any, found: Any) -> None:
    source, root = _source(client, found), client.get_run(found.run_id).info.artifact_uri
    place, local, folder = source.removeprefix(f"{root}/"), _local(source), _local(root)
    if local is None or folder is None:
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        get_artifact_repository(root).delete_artifacts(place)
    elif local.is_dir():
        if local.resolve() != folder.resolve() / place:
            raise StoreError(f"{local}: a link leads there, and what it leads to is not the registry's")
        if read_manifest(local, found.tags.get("policy", "")).digest != found.tags.get("digest"):
            raise StoreError(f"{local}: other files than those registered")
        shutil.rmtree(local, ignore_errors=True)
