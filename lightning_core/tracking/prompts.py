"""MLflow's prompt registry: every version of a prompt, under `<run>.prompts.<prompt>`, with the aliases `current` and `champion`.

MLflow numbers versions from 1; the tag `version` has the prompt's own name of each. `register_prompt` is not used: it also looks for an
experiment where this process's own MLflow would be, which is another one.
"""

from __future__ import annotations

from typing import Any

from lightning_core.prompts.store import PromptStore
from lightning_core.tracking.registry import pages


def register_prompts(client: Any, name: str, store: PromptStore) -> dict[str, str]:
    """Register the versions that MLflow has not, oldest first, and set the aliases; returns alias → version."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_prompt(name, tags={"prompt": store.name})
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    versions = pages(client.search_prompt_versions, name=name)
    known = {version.tags["version"]: version.version for version in versions if "version" in version.tags}
    for version in store.versions():
        if version not in known:
            found = store.version(version)
            tags = {"version": version, "digest": found.digest, "parent": found.parent or "", "made_by": found.made_by}
            known[version] = client.create_prompt_version(name, found.text, found.made_by, tags).version
    marked = {"current": store.marked("current"), "champion": store.marked("best")}
    pointed = {alias: version for alias, version in marked.items() if version is not None}
    for alias, version in pointed.items():
        client.set_prompt_alias(name, alias, known[version])
    return pointed
