"""Versions into the vLLMs, and the gateway's routes after them.

At no moment does a route name what is not served: routes change while a vLLM is paused (full weights), or between the
loading of one adapter and the unloading of another. Of several replicas one after another is swapped, while the others
serve; rollouts that began with the former version stay on a replica that still has it, until the last one is swapped.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_core.config import PolicySettings
from lightning_core.epoch.epoch import Run
from lightning_core.gateway.handle import GatewayHandle
from lightning_core.policies.adapters import load_lora, route, unload_older
from lightning_core.policies.redeploy import Redeployed, RedeployFailed, hot_swap, restart_with
from lightning_core.policies.sleep import wake
from lightning_core.policies.store import BASE_VERSION, Manifest, StoreError
from lightning_core.policies.vllm import VllmServer
from lightning_core.policies.vllm_client import VllmError

if TYPE_CHECKING:
    from lightning_core.epoch.services import Services

logger = logging.getLogger(__name__)

Fleet = list[VllmServer]
_RESTART_WAIT_S = 300.0  # in which calls wait for a vLLM that ended and is started again


def deploy(run: Run, services: Services, versions: dict[str, str]) -> dict[str, float]:
    """Make the vLLMs serve these versions (policy → version) and the gateway route to them; returns seconds by policy.

    Raises StoreError where a version's files are not what was published (nothing was touched then), and RedeployFailed;
    the gateway then routes to, and names, the version that is still served. A replica that misses its swap while another
    has the version is taken out of the routes; the next deploy tries it again.
    """
    settings, stores = run.settings, run.policies
    try:
        folders = {name: store.checked(versions[name]) for name, store in stores.items()}
    except StoreError:
        _wake(services.fleet)
        raise
    seconds = {}
    with contextlib.ExitStack() as held:
        for vllm in services.fleet:
            held.enter_context(vllm.exclusive())
            held.callback(wake, vllm)  # one that no version was swapped into
        routes = _Routes(run, services.gateway, services.fleet, versions)
        try:
            for policy in settings.policies:
                manifest = stores[policy.name].manifest(versions[policy.name])
                bring = _roll if policy.lora is None else _load
                done = bring(policy, folders[policy.name], manifest, services, routes)
                seconds[policy.name] = sum(sum(one.seconds.values()) for one in done)
                for one in done:
                    logger.info("%s: %s is verified: %s", policy.name, one.version, one.verified)
            routes.finish()
        except RedeployFailed:
            routes.back()
            raise
        except VllmError as error:
            routes.back()
            raise RedeployFailed(f"what vLLM serves now could not be asked: {error}", restored=False) from error
    for name, store in stores.items():
        store.set_current(versions[name])
    return seconds


def _roll(
    policy: PolicySettings, folder: Path, manifest: Manifest, services: Services, routes: _Routes
) -> list[Redeployed]:
    """Put full weights into one replica after another."""
    version, fleet = manifest.version, services.fleet
    # The folder too: another policy of this home has a version of that number.
    wanted = (version, folder.resolve())
    behind = [vllm for vllm in fleet if (vllm.state.version, Path(vllm.state.weights)) != wanted or not vllm.alive()]
    ready = [vllm for vllm in fleet if vllm not in behind]
    done = []
    for number, vllm in enumerate(behind):
        left = behind[number + 1 :]
        if len(fleet) > 1:
            routes.roll(policy.name, ready, left)

        def before_resume(serves: str, vllm: VllmServer = vllm, left: Fleet = left) -> None:
            if serves == version:
                routes.roll(policy.name, [*ready, vllm], left)
            elif ready:
                routes.roll(policy.name, ready, left)
            else:
                routes.back()

        swap = hot_swap if vllm.alive() else restart_with
        try:
            done.append(swap(vllm, folder, version, probe=manifest.probe, before_resume=before_resume))
            ready.append(vllm)
        except RedeployFailed as error:
            if not ready:
                raise
            _say_missed(vllm, error)
            routes.roll(policy.name, ready, left)
    routes.served[policy.name] = ready
    return done


def _load(
    policy: PolicySettings, folder: Path, manifest: Manifest, services: Services, routes: _Routes
) -> list[Redeployed]:
    """Load an adapter into every replica, then switch the routes, then unload what is older."""
    version = manifest.version
    routed, in_use = routes.name_before(policy.name), services.gateway.serving
    done, ready, failure = [], [], None
    for vllm in services.fleet:
        try:
            if not vllm.alive():
                _revive(vllm)
            if version != BASE_VERSION:  # which the base model serves: no adapter yet
                done.append(
                    load_lora(
                        vllm, policy.name, version, folder,
                        probe=manifest.probe, routed=routed, in_use=in_use, retire=routes.retire,
                    )
                )  # fmt: skip
            ready.append(vllm)
        except RedeployFailed as error:
            failure = error
            if len(services.fleet) > 1:
                _say_missed(vllm, error)
    if failure is not None and not ready:
        raise failure
    routes.served[policy.name] = ready
    if version == BASE_VERSION:
        return done
    routes.switch(policy.name)
    for vllm in ready:
        try:
            unload_older(vllm, policy.name, version, routed=routed, in_use=in_use, retire=routes.retire)
        except VllmError as error:
            logger.warning("older adapters of %s stay loaded: %s", policy.name, error)
    return done


def _revive(vllm: VllmServer) -> None:
    """Start a vLLM again that is gone, with what it served."""
    try:
        vllm.restart(Path(vllm.state.weights), vllm.state.version)
    except VllmError as error:
        raise RedeployFailed(f"vLLM is gone and does not start: {error}", restored=False) from error


def _say_missed(vllm: VllmServer, error: RedeployFailed) -> None:
    logger.error("replica %d of vLLM missed a version and gets no calls: %s", vllm.state.replica, error)


class _Routes:
    """The gateway's routes while a deploy goes on: those in force, those before it, and those it is to end with."""

    def __init__(self, run: Run, gateway: GatewayHandle, fleet: Fleet, versions: dict[str, str]) -> None:
        settings = run.settings
        limit = settings.evaluation.max_tokens
        self.served: dict[str, Fleet] = {p.name: fleet for p in settings.policies}  # who has the new version
        self._gateway, self._fleet, self._base_name = gateway, fleet, fleet[0].state.served_name
        self._policies = {p.name: p for p in settings.policies}
        self._frozen, self._aliases = settings.frozen, settings.aliases
        self._former = gateway.routes()
        self._now = dict(self._former["policies"])
        self._new: Callable[[str, Fleet], dict[str, Any]] = lambda name, on: route(
            self._policies[name], on, versions[name], evaluate_max_tokens=limit, restart_wait_s=_RESTART_WAIT_S
        )

    def name_before(self, name: str) -> str:
        """Return the name under which vLLM serves what a policy was routed to before the deploy."""
        return str(self._former["policies"].get(name, {}).get("model", ""))

    def roll(self, name: str, ready: Fleet, left: Fleet) -> None:
        """Set the route of a policy of full weights. Replicas in `ready` have the new version. Those in `left` get it
        later, and serve the former one if it was routed to them. A replica that missed the former one too gets no
        calls, like one in neither list.
        """
        before = self._former["policies"].get(name)
        if before is not None:
            left = [vllm for vllm in left if vllm.upstream in (before["upstream"], *before["replicas"])]
        if ready:
            self._now[name] = self._new(name, ready)
            if left and before is not None and before["version"] != self._now[name]["version"]:
                other = {"model": before["model"], "upstream": left[0].upstream}
                self._now[name]["loaded"] = {before["version"]: other}
        elif left and before is not None:
            addresses = [vllm.upstream for vllm in left]
            self._now[name] = before | {"upstream": addresses[0], "replicas": addresses[1:]}
        self._set()

    def switch(self, name: str) -> None:
        """Change the route of a policy of adapters to its new version. The others wait for theirs, which is not loaded
        yet."""
        self._now[name] = self._with_loaded(name)
        self._set()

    def retire(self, names: list[str]) -> None:
        """Take these names of vLLM's out of the routes: they are about to go."""
        for entry in (*self._now.values(), *self._former["policies"].values()):
            entry["loaded"] = {v: o for v, o in (entry.get("loaded") or {}).items() if o["model"] not in names}
        self._set()

    def finish(self) -> None:
        self._now = {
            name: self._new(name, self.served[name]) if policy.lora is None else self._with_loaded(name)
            for name, policy in self._policies.items()
        }
        self._set()

    def back(self) -> None:
        """Restore the routes from before the deploy, less the versions that it unloaded."""
        served: set[str] = set()
        for fleet in self.served.values():
            for vllm in fleet:
                try:
                    with vllm.client() as client:
                        served |= set(client.models())
                except VllmError as error:
                    logger.warning("what vLLM still serves is not known: %s", error)
        for entry in self._former["policies"].values():
            entry["loaded"] = {v: o for v, o in entry["loaded"].items() if o["upstream"] or o["model"] in served}
        self._gateway.set_routes(self._former)

    def _with_loaded(self, name: str) -> dict[str, Any]:
        """Return the new route, with the other versions that stay loaded: rollouts that began with them keep to
        them."""
        fleet, before = self.served[name], self._former["policies"].get(name)
        now, others = self._new(name, fleet), {BASE_VERSION: self._base_name}
        if before is not None and {before["upstream"], *before["replicas"]} & {vllm.upstream for vllm in fleet}:
            others |= {version: other["model"] for version, other in before["loaded"].items()}
            others[before["version"]] = before["model"]
        served = set.intersection(*(_models(vllm) for vllm in fleet))
        now["loaded"] = {v: {"model": m} for v, m in others.items() if v != now["version"] and m in served}
        return now

    def _set(self) -> None:
        # Frozen models have one address: that of a vLLM which missed nothing, and so is there.
        whole = [vllm for vllm in self._fleet if all(vllm in served for served in self.served.values())]
        base = {"upstream": (whole or self._fleet)[0].upstream, "model": self._base_name}
        frozen = dict.fromkeys(self._frozen, base)
        self._gateway.set_routes({"policies": self._now, "frozen": frozen, "aliases": self._aliases})


def _wake(fleet: Fleet) -> None:
    for vllm in fleet:
        if vllm.asleep:
            with vllm.exclusive():
                wake(vllm)


def _models(vllm: VllmServer) -> set[str]:
    with vllm.client() as client:
        return set(client.models())
