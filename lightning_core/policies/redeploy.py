"""New weights into a running vLLM, and back again when they are no good.

Full weights are swapped in place: look at the files → pause → reload → reset the prefix cache → set the version →
resume → ask a fixed prompt. Adapters are loaded under a new name beside the old ones. Either way a failure leaves the
former version serving, and says so.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_core.config import PolicySettings
from lightning_core.policies.model import safetensors_problem
from lightning_core.policies.store import BASE_VERSION
from lightning_core.policies.vllm import VllmServer
from lightning_core.policies.vllm_client import VllmClient, VllmError, VllmTimeout
from lightning_core.policies.weights import nonfinite_tensor, shape_mismatch

log = logging.getLogger(__name__)


class _HalfLoaded(VllmError):
    """A reload that began and failed. vLLM then keeps tensors of it, and mixes them into the next one."""


class RedeployFailed(RuntimeError):
    """The new version is not being served. `restored`: the former one is; otherwise vLLM has to be started again."""

    def __init__(self, message: str, restored: bool) -> None:
        super().__init__(message)
        self.restored = restored


@dataclass
class Redeployed:
    """What a redeploy did. `seconds` by step; `paused_s` is how long no call was computed."""

    version: str
    model: str
    seconds: dict[str, float] = field(default_factory=dict)
    paused_s: float = 0.0
    drained: bool = True
    changed: bool = True
    unloaded: list[str] = field(default_factory=list)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - began


def hot_swap(
    vllm: VllmServer,
    weights_path: Path,
    version: str,
    *,
    drain_s: float = 30.0,
    before_resume: Callable[[], None] = lambda: None,
) -> Redeployed:
    """Swap the full weights in `weights_path` into `vllm` as `version`.

    Calls in flight get `drain_s` seconds to end on the old weights; those that take longer are frozen, and go on with
    the new ones (0 freezes all at once). `changed` is False where the check prompt's logprobs are what they were: right
    for equal weights, and for updates smaller than the served dtype resolves. `before_resume` is called while no call
    is computed: the gateway learns there which version comes next. Raises RedeployFailed.
    """
    weights_path = weights_path.resolve()
    former_path, former_version = Path(vllm.state.weights), vllm.state.version
    done = Redeployed(version, vllm.state.served_name)
    with done.step("inspect"):
        _inspect(weights_path, former_path, version, former_version)
    with vllm.client() as client:
        try:
            with done.step("check"):
                before = client.probe(vllm.state.served_name)
        except VllmError as error:
            raise RedeployFailed(
                f"{version} was not loaded, {former_version} was not touched: {error}", restored=vllm.alive()
            ) from error
        try:
            paused = time.monotonic()
            with done.step("drain"):
                done.drained = _pause(client, drain_s)
            _load(client, weights_path, version, done)
            with done.step("resume"):
                before_resume()
                client.resume()
            done.paused_s = time.monotonic() - paused
            with done.step("check"):
                after = client.probe(vllm.state.served_name)
        except BaseException as error:  # noqa: BLE001 - an interrupt too must not leave vLLM paused, or between versions
            _restore(vllm, client, former_path, former_version, version, error)
    done.changed = after != before
    if not done.changed:
        log.warning("%s answers the check prompt exactly as %s did; were the weights trained?", version, former_version)
    vllm.serves(weights_path, version)
    return done


def load_lora(
    vllm: VllmServer,
    policy: str,
    version: str,
    path: Path,
    *,
    keep: int = 2,
    before_unload: Callable[[list[str]], None] | None = None,
) -> Redeployed:
    """Load the adapter in `path` as `<policy>-<version>` beside the older ones; of those the last `keep` - 1 stay.

    `before_unload` is told the names that stay, while the others are still served: the time to change routes. Calls are not
    interrupted. A name is never loaded twice, since vLLM's cache is keyed by it. Raises RedeployFailed.
    """
    name = lora_name(policy, version)
    done = Redeployed(version, name)
    with vllm.client() as client:
        try:
            loaded = client.models()
            if name not in loaded:
                with done.step("load"):
                    client.load_lora(name, path.resolve())
            with done.step("check"):
                logprobs = client.probe(name)
                done.changed = logprobs != client.probe(vllm.state.served_name)
        except VllmError as error:
            _forget(client, name)
            raise RedeployFailed(
                f"{name} was not loaded, the older adapters serve on: {error}", restored=vllm.alive()
            ) from error
        older = sorted(
            (other for other in loaded if _is_version_of(other, policy) and other != name), key=_version_number
        )
        going = older[: max(0, len(older) - (keep - 1))]
        if before_unload is not None:
            before_unload([other for other in [*loaded, name] if other not in going])
        with done.step("unload"):
            for other in going:
                client.unload_lora(other)
                done.unloaded.append(other)
    return done


def lora_name(policy: str, version: str) -> str:
    """The name under which vLLM serves the adapter of a policy's version: `policy-v0007`."""
    return f"{policy}-{version}"


def route(
    policy: PolicySettings, vllm: VllmServer, version: str, *, evaluate_max_tokens: int | None = None
) -> dict[str, Any]:
    """What the gateway has to know of a policy: where it is served, under which name, and how it samples in training."""
    adapter = policy.lora is not None and version != BASE_VERSION
    return {
        "upstream": vllm.upstream,
        "model": lora_name(policy.name, version) if adapter else vllm.state.served_name,
        "version": version,
        "sampling": policy.sampling.model_dump(),
        "evaluate_max_tokens": evaluate_max_tokens,
        "api_key": None,
    }


def _inspect(weights: Path, former: Path, version: str, former_version: str) -> None:
    """Refuse broken files before vLLM sees them: a reload that fails half-way costs a pause and a restore."""
    files = sorted(weights.glob("*.safetensors")) if weights.is_dir() else []
    problem = None if files else f"{weights} holds no *.safetensors"
    for file in files:
        problem = problem or (f"{file} {found}" if (found := safetensors_problem(file)) else None)
    if problem is None and (found := shape_mismatch(weights, former)):
        problem = f"{weights} does not fit the model being served: {found}"
    if problem is None and (found := nonfinite_tensor(weights)):
        problem = f"{weights} holds numbers that are not finite ({found}); training diverged, lower `learning_rate`"
    if problem is not None:
        raise RedeployFailed(f"{version} was not loaded, {former_version} serves on: {problem}", restored=True)


def _pause(client: VllmClient, drain_s: float) -> bool:
    """Pause; True where every call in flight came to its end."""
    if drain_s > 0:
        try:
            client.pause("wait", timeout_s=drain_s)
            return True
        except VllmTimeout:
            log.info("calls in flight did not end within %.0f s; they go on with the new weights", drain_s)
    client.pause("keep")
    return False


def _load(client: VllmClient, weights: Path, version: str, done: Redeployed | None = None) -> None:
    """Reload, forget what the old weights cached, set the version, and look whether it is set. vLLM is paused."""
    done = done or Redeployed(version, "")
    with done.step("reload"):
        try:
            client.reload_weights(weights)
        except VllmError as error:
            raise _HalfLoaded(str(error)) from error
    with done.step("reset_cache"):
        client.reset_prefix_cache()
    with done.step("version"):
        client.set_version(version)
        said = client.version()
    if said != version:
        raise VllmError(f"vLLM says it serves {said!r} after it was told {version!r}")


def _restore(
    vllm: VllmServer, client: VllmClient, weights: Path, version: str, failed: str, error: BaseException
) -> None:
    """Put the former version back, then raise: RedeployFailed, or the interrupt that brought us here."""
    log.warning("redeploying %s failed (%s); restoring %s", failed, error, version)
    how = f"{version} serves again"
    try:
        try:
            if isinstance(error, _HalfLoaded):
                raise error
            client.pause("keep")
            _load(client, weights, version)
            client.resume()
        except VllmError:
            log.warning("vLLM is restarted with %s, since it cannot be trusted to reload in place", version)
            vllm.restart(weights, version)
            how += ", after a restart of vLLM"
    except VllmError as second:
        raise RedeployFailed(
            f"{failed} could not be loaded ({error}), and neither could {version} again ({second}); start vLLM anew",
            restored=False,
        ) from error
    if not isinstance(error, Exception):
        raise error
    raise RedeployFailed(f"{failed} could not be loaded ({error}); {how}", restored=True) from error


def _forget(client: VllmClient, name: str) -> None:
    try:
        if name in client.models():
            client.unload_lora(name)
    except VllmError as error:
        log.warning("adapter %s could not be unloaded: %s", name, error)


def _is_version_of(name: str, policy: str) -> bool:
    return name.startswith(f"{policy}-v") and name[len(policy) + 2 :].isdigit()


def _version_number(name: str) -> int:
    return int(name.rpartition("-v")[2])
