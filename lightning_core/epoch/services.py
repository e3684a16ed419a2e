"""The processes an epoch needs: the gateway and vLLM.

Found if they run, started if not; only what was started here is stopped here. What a killed flow left running has no
owner any more: whoever finds it takes it over, and stops it in the end. Gateway and vLLMs have owners of their own: under
`lightning-flows up` the stack owns the gateway, and a flow its vLLM.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lightning_core.config import GatewaySettings, PolicySettings, VllmSettings
from lightning_core.epoch.epoch import Run
from lightning_core.gateway.handle import GatewayError, GatewayHandle
from lightning_core.lake.manifest import LakeError
from lightning_core.policies.model import ModelFolder, resolve_model
from lightning_core.policies.sharing import serving, takes_turns
from lightning_core.policies.sleep import Level, asleep
from lightning_core.policies.store import BASE_VERSION, PolicyStore, StoreError
from lightning_core.policies.supervisor import Supervisor
from lightning_core.policies.vllm import START_TIMEOUT_S, VllmServer
from lightning_core.policies.vllm_client import VllmError
from lightning_core.policies.vllm_command import command, without_weights
from lightning_core.process.linux import created, end_group
from lightning_core.process.own import Owner

logger = logging.getLogger(__name__)

Say = Callable[[str], None]

_UNKNOWN_S = 30.0  # between a process's claim to a vLLM and its start


@dataclass
class Services:
    """Handles of the running processes, and the base model of the policies."""

    gateway: GatewayHandle
    fleet: list[VllmServer]  # `vllm.replicas` of them, which serve the same
    model: ModelFolder


@contextlib.contextmanager
def running(run: Run, say: Say = logger.info) -> Iterator[Services]:
    """Run the gateway and vLLM while the block runs, on the versions last deployed; a flow deploys those it wants. What
    a living process owns is left running."""
    settings, model = run.settings, base_model(run, say)
    with contextlib.ExitStack() as stack:
        gateway = stack.enter_context(gateway_running(run, say))
        fleet = []
        for replica in range(settings.vllm.replicas):
            vllm = stack.enter_context(_others(run.home, replica, say))
            if vllm is None:
                vllm = _left_behind(run, model, replica, say) or _start_vllm(run, model, replica, say)
                stack.callback(vllm.stop)
                stack.callback(_let_calls_fail, gateway)
                stack.enter_context(Supervisor(vllm, on_giving_up=lambda: _let_calls_fail(gateway)))
            fleet.append(vllm)
        yield Services(gateway, fleet, model)


@contextlib.contextmanager
def vllm_asleep(run: Run, services: Services) -> Iterator[None]:
    """Let vLLM sleep while the block trains, if the two share a card; under full weights it sleeps until `deploy`."""
    level: Level = 1 if any(policy.lora for policy in run.settings.policies) else 2
    with contextlib.ExitStack() as stack:
        for vllm in services.fleet if takes_turns(run.settings) else ():
            stack.enter_context(vllm.exclusive())
            stack.enter_context(asleep(vllm, level))
        yield


@contextlib.contextmanager
def gateway_running(run: Run, say: Say = logger.info) -> Iterator[GatewayHandle]:
    """Run the gateway alone: for work on rollouts that are there, which samples nothing."""
    with gateway_of(run.home, run.settings.gateway, say) as gateway:
        yield gateway


@contextlib.contextmanager
def gateway_of(home: Path, settings: GatewaySettings, say: Say = logger.info) -> Iterator[GatewayHandle]:
    """Give the gateway of a home: the one that runs, or one that is started. One that was started here, or that no
    living process owns, is stopped in the end."""
    with contextlib.ExitStack() as stack:
        owner = _owner(home)
        ours = owner.claim()
        if ours:
            stack.callback(owner.release)
        gateway = GatewayHandle.find(home)
        if gateway is None:
            say("starting the gateway")
            gateway = GatewayHandle.start(home, settings, home / "logs" / "gateway.log")
            stack.callback(gateway.stop)
        elif ours:
            stack.callback(end_group, gateway.pid, created(gateway.pid), 30)
        yield gateway


def _let_calls_fail(gateway: GatewayHandle) -> None:
    """Let calls to vLLM fail without a wait: nobody starts it again from now on."""
    try:
        routes = gateway.routes()
        for route in routes["policies"].values():
            route["restart_wait_s"] = 0
        gateway.set_routes(routes)
    except GatewayError as error:
        logger.warning("calls to vLLM wait in vain for a while: %s", error)


@contextlib.contextmanager
def _others(home: Path, replica: int, say: Say) -> Iterator[VllmServer | None]:
    """Give the vLLM that a living process looks after, once it is ready. Give None where no process does, or none gets
    ready in time: it is ours then, also what a killed one left."""
    keeper, began = _owner(home, f"vllm-{replica}-keeper"), time.monotonic()
    while not keeper.claim():
        found = VllmServer.find(home, replica)
        if found is not None:
            with found.exclusive():  # it is ready when its keeper lets go
                pass
            if found.alive():
                yield found
                return
        known = VllmServer.known(home, replica) is not None
        if time.monotonic() - began > (START_TIMEOUT_S if known else _UNKNOWN_S):
            yield None
            return
        say("vLLM is not there; the process that looks after it should start it")
        time.sleep(2)
    try:
        yield None
    finally:
        keeper.release()


def _left_behind(run: Run, model: ModelFolder, replica: int, say: Say) -> VllmServer | None:
    """Return the vLLM that a killed flow left running, where it still is what these settings ask for; else stop it."""
    vllm = VllmServer.find(run.home, replica)
    if vllm is None:
        return None
    if not _is_as_started(vllm, run, model):
        say("vLLM was left behind with other settings; starting it anew")
    elif not _answers(vllm):
        say("vLLM was left behind in the middle of something; starting it anew")
    else:
        return vllm
    vllm.stop()
    return None


def claim_services(home: Path) -> bool:
    """Take the services of a home where no living process owns them, and return whether that was so: they stay while
    this process lives, whatever flows begin and end."""
    return _owner(home).claim()


def stop_orphans(home: Path) -> None:
    """Stop what a killed flow left running for `home`. Raises LakeError where a living flow owns it."""
    if not _owner(home).claim():
        raise LakeError(f"a flow is at work in {home}; stop it first")
    gateway = GatewayHandle.find(home)
    if gateway is not None:
        end_group(gateway.pid, created(gateway.pid), 30)
    for vllm in VllmServer.all_known(home):
        vllm.stop()  # of one that is gone, what it left


def _answers(vllm: VllmServer) -> bool:
    """Return whether a vLLM that a killed flow left computes, and with the recorded version: that flow may have died
    while starting it, between pause and resume, or before it noted what it had loaded.
    """
    try:
        with vllm.client(timeout_s=30) as client:
            client.logprobs(vllm.state.served_name)
            return client.version() == vllm.state.version
    except VllmError:
        return False


def _owner(home: Path, name: str = "owner") -> Owner:
    """Return who stops the services of a home, or looks after one: the process that began to, while it lives."""
    return Owner(home / "services" / f"{name}.json")


def base_model(run: Run, say: Say = logger.info) -> ModelFolder:
    """Return the weights that the policies begin with, on disk; every policy has its v0000 afterwards."""
    policies = run.settings.policies
    model = resolve_model(policies[0].model, run.settings.models, say)
    for policy in policies:
        store = run.policies[policy.name]
        first = store.publish_base(model.path, policy.model, "lora" if policy.lora else "full")
        if store.current() is None:
            store.set_current(first)
    return model


def _start_vllm(run: Run, model: ModelFolder, replica: int, say: Say) -> VllmServer:
    """Start vLLM on the current full weights, or on the base model where the policies are adapters."""
    settings, first = run.settings, run.settings.policies[0]
    rank, slots = _adapters(settings.policies, settings.vllm)
    store = run.policies[first.name]
    version = BASE_VERSION if rank is not None else store.current() or BASE_VERSION
    if rank is None and _damaged(
        store, version
    ):  # by a power cut, before it was written; the flow deploys what it wants
        version = BASE_VERSION
    folder = model.path if rank is not None else store.checked(version)
    return VllmServer.start(
        serving(settings),
        folder,
        first.name,
        home=run.home,
        lora_rank=rank,
        lora_slots=slots,
        version=version,
        replica=replica,
        on_progress=say,
    )


def _damaged(store: PolicyStore, version: str) -> bool:
    try:
        store.verify(version)
    except StoreError as error:
        logger.warning("vLLM starts with %s: %s", BASE_VERSION, error)
        return True
    return False


def _is_as_started(vllm: VllmServer, run: Run, model: ModelFolder) -> bool:
    """Return whether `_start_vllm` would start it so. Full weights of a policy of this home have one base, whatever the
    version."""
    settings, first = run.settings, run.settings.policies[0]
    rank, slots = _adapters(settings.policies, settings.vllm)
    if rank is not None and vllm.state.weights != str(model.path):
        return False
    if vllm.state.device != settings.vllm.device(vllm.state.replica):
        return False
    wanted = command(serving(settings), model.path, first.name, vllm.socket, rank, slots)
    return without_weights(vllm.state.command) == without_weights(wanted)


def _adapters(policies: list[PolicySettings], vllm: VllmSettings) -> tuple[int | None, int]:
    """Return the highest rank of the policies' adapters (None: full weights), and how many are loaded at one time."""
    ranks = [p.lora.rank for p in policies if p.lora is not None]
    # A version and the one before it, and room for a next.
    return max(ranks, default=None), vllm.lora_slots or 2 * len(ranks) + 1
