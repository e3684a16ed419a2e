"""Versions into vLLM, and the gateway's routes after them.

At no moment does a route name what is not served: routes change while vLLM is paused (full weights), or between the
loading of one adapter and the unloading of another.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_core.config import PolicySettings, Settings
from lightning_core.policies.adapters import load_lora, route
from lightning_core.policies.redeploy import Redeployed, RedeployFailed, hot_swap, restart_with
from lightning_core.policies.store import BASE_VERSION, Manifest, PolicyStore
from lightning_core.policies.vllm import VllmServer
from lightning_core.policies.vllm_client import VllmError
from lightning_core.server.handle import ServerHandle

if TYPE_CHECKING:
    from lightning_core.services import Services

logger = logging.getLogger(__name__)


def deploy(settings: Settings, services: Services, versions: dict[str, str]) -> dict[str, float]:
    """Make vLLM serve these versions (policy → version) and the gateway route to them; returns seconds by policy.

    Raises StoreError where a version's files are not what was published (nothing was touched then), and RedeployFailed;
    the gateway then routes to, and names, the version that is still served.
    """
    stores = {p.name: PolicyStore(settings.home, p.name) for p in settings.policies}
    folders = {name: store.checked(versions[name]) for name, store in stores.items()}
    seconds = {}
    with services.vllm.exclusive():
        routes = _Routes(settings, services.server, services.vllm, versions)
        try:
            for policy in settings.policies:
                manifest = stores[policy.name].manifest(versions[policy.name])
                done = _bring(policy, folders[policy.name], manifest, services, routes)
                seconds[policy.name] = 0.0 if done is None else sum(done.seconds.values())
                if done is not None:
                    logger.info("%s: %s is verified: %s", policy.name, done.version, done.verified)
        except RedeployFailed:
            routes.back()
            raise
        routes.finish()
    for name, store in stores.items():
        store.set_current(versions[name])
    return seconds


def _bring(
    policy: PolicySettings, folder: Path, manifest: Manifest, services: Services, routes: _Routes
) -> Redeployed | None:
    """Load one policy's version; None where it is served already."""
    version, vllm = manifest.version, services.vllm
    gone = not vllm.alive()
    if policy.lora is not None:
        if gone:
            _revive(vllm)
        if version == BASE_VERSION:
            return None  # no adapter yet: the base model serves it
        return load_lora(
            vllm, policy.name, version, folder,
            probe=manifest.probe,
            in_use=services.server.serving(),
            retire=routes.retire,
            switch=lambda served: routes.switch(policy.name, served),
        )  # fmt: skip
    if vllm.state.version == version and not gone:
        return None

    def before_resume(serves: str) -> None:
        if serves == version:
            routes.switch(policy.name, [])
        else:
            routes.back()

    swap = restart_with if gone else hot_swap
    return swap(vllm, folder, version, probe=manifest.probe, before_resume=before_resume)


def _revive(vllm: VllmServer) -> None:
    """Start a vLLM again that is gone, with what it served."""
    try:
        vllm.restart(Path(vllm.state.weights), vllm.state.version)
    except VllmError as error:
        raise RedeployFailed(f"vLLM is gone and does not start: {error}", restored=False) from error


class _Routes:
    """The gateway's routes while a deploy goes on: those in force, those before it, and those it is to end with."""

    def __init__(self, settings: Settings, server: ServerHandle, vllm: VllmServer, versions: dict[str, str]) -> None:
        limit, wait = settings.evaluation.max_tokens, settings.vllm.restart_wait_s
        base = {"upstream": vllm.upstream, "model": vllm.state.served_name}
        self._server, self._vllm = server, vllm
        self._adapters = [p.name for p in settings.policies if p.lora is not None]
        self._former = server.routes()
        self._wanted: dict[str, Any] = {
            "policies": {
                p.name: route(p, vllm, versions[p.name], evaluate_max_tokens=limit, restart_wait_s=wait)
                for p in settings.policies
            },
            "frozen": {name: base for name in settings.frozen},
        }
        self._now = dict(self._former["policies"])

    def switch(self, name: str, served: list[str]) -> None:
        """Route a policy to its new version. The others wait for theirs, which is not loaded yet."""
        self._name_loaded(name, served)
        self._now[name] = self._wanted["policies"][name]
        self._server.set_routes(self._wanted | {"policies": self._now})

    def retire(self, names: list[str]) -> None:
        """These names of vLLM's are about to go: route nothing to them any more."""
        for entry in (*self._now.values(), *self._former["policies"].values()):
            entry["loaded"] = {v: o for v, o in (entry.get("loaded") or {}).items() if o["model"] not in names}
        self._server.set_routes(self._wanted | {"policies": self._now})

    def finish(self) -> None:
        for name in self._adapters:
            with self._vllm.client() as client:
                self._name_loaded(name, client.models())
        self._server.set_routes(self._wanted)

    def back(self) -> None:
        """The routes before the deploy, less the versions that it unloaded."""
        if not self._former["policies"]:
            return
        try:
            with self._vllm.client() as client:
                served = client.models()
        except VllmError as error:
            logger.warning("what vLLM still serves is not known: %s", error)
        else:
            for entry in self._former["policies"].values():
                entry["loaded"] = {v: o for v, o in entry["loaded"].items() if o["upstream"] or o["model"] in served}
        self._server.set_routes(self._former)

    def _name_loaded(self, name: str, served: list[str]) -> None:
        """Say which other versions of the policy stay served: rollouts that began with them go on with them."""
        now, before = self._wanted["policies"][name], self._former["policies"].get(name)
        others = {BASE_VERSION: self._vllm.state.served_name}
        if before is not None and before["upstream"] == now["upstream"]:
            others |= {version: other["model"] for version, other in before["loaded"].items()}
            others[before["version"]] = before["model"]
        now["loaded"] = {v: {"model": m} for v, m in others.items() if v != now["version"] and m in served}
