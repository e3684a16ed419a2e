"""New full weights into a running vLLM, and back again when they are no good. Adapters: adapters.py.

Look at the files → pause → reload → compare with the files → reset the prefix cache → set the version and read it back →
resume → ask a fixed prompt, and compare with what the trainer computed. A failure at any step puts the former version
back, and says so. One that sleeps (sleep.py) wakes up in place of the pause, and its KV cache in place of the resume.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from lightning_core.errors import LightningError
from lightning_core.policies.model import safetensors_problem
from lightning_core.policies.probe import Probe, difference, tolerance
from lightning_core.policies.tensor_files import nonfinite_tensor, shape_mismatch
from lightning_core.policies.vllm import VllmServer
from lightning_core.policies.vllm_client import CHECK_TOKENS, VllmClient, VllmError, VllmTimeout

log = logging.getLogger(__name__)


class _HalfLoaded(VllmError):
    """A reload that began and failed. vLLM then keeps tensors of it, and mixes them into the next one."""


class RedeployFailed(LightningError):
    """The new version is not being served. `restored`: the former one is; otherwise vLLM has to be started again."""

    def __init__(self, message: str, restored: bool) -> None:
        super().__init__(message)
        self.restored = restored


@dataclass
class Redeployed:
    """What a redeploy did. `seconds` by step; `paused_s` is how long no call was computed; `verified`, in words."""

    version: str
    model: str
    seconds: dict[str, float] = field(default_factory=dict)
    paused_s: float = 0.0
    drained: bool = True
    changed: bool = True
    verified: str = ""
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
    probe: Probe | None = None,
    drain_s: float = 30.0,
    before_resume: Callable[[str], None] = lambda version: None,
) -> Redeployed:
    """Swap the full weights in `weights_path` into `vllm` as `version`.

    Calls in flight get `drain_s` seconds to end on the old weights; those that take longer are frozen, and go on with
    the new ones (0 freezes all at once). `probe` is what the trainer computed with these weights. Without one the swap
    is verified by the version, by the tensors that vLLM keeps as they are in the files, and by answers that are finite.
    `changed` is False where these are what they were: right for equal weights, and for updates smaller than the served
    dtype resolves. `before_resume` is called with the version while no call is computed: the gateway learns there which
    comes next, also where that is the former one again. Raises RedeployFailed.
    """
    weights_path = weights_path.resolve()
    former_path, former_version = Path(vllm.state.weights), vllm.state.version
    done = Redeployed(version, vllm.state.served_name)
    tokens = probe.token_ids if probe is not None else CHECK_TOKENS
    with done.step("inspect"):
        _inspect(weights_path, former_path, version, former_version)
    with vllm.client() as client:
        try:
            with done.step("check"):
                before = None if vllm.asleep else client.logprobs(vllm.state.served_name, tokens)
        except VllmError as error:
            raise RedeployFailed(
                f"{version} was not loaded, {former_version} was not touched: {error}", restored=vllm.alive()
            ) from error
        try:
            paused = time.monotonic()
            if vllm.asleep:
                with done.step("wake"):
                    client.wake_up("weights")
            else:
                with done.step("drain"):
                    done.drained = _pause(client, drain_s)
            equal = _load(client, weights_path, version, done)
            with done.step("resume"):
                before_resume(version)
                _resume(vllm, client)
            done.paused_s = time.monotonic() - paused
            with done.step("check"):
                after = client.logprobs(vllm.state.served_name, tokens)
                agrees = agreement(after, probe, vllm.dtype)
            vllm.serves(weights_path, version)
        except BaseException as error:  # noqa: BLE001 - an interrupt too must not leave vLLM paused, or between versions
            answers = None if before is None else Probe(token_ids=tokens, logprobs=before)
            former = Former(former_path, former_version, answers)
            _restore(vllm, client, former, version, error, before_resume)
    done.changed, done.verified = after != before, f"{equal} tensors as in the files; {agrees}"
    if not done.changed:
        log.warning("%s answers the check prompt exactly as %s did; were the weights trained?", version, former_version)
    return done


def restart_with(
    vllm: VllmServer,
    weights_path: Path,
    version: str,
    *,
    probe: Probe | None = None,
    before_resume: Callable[[str], None] = lambda version: None,
) -> Redeployed:
    """Start vLLM anew with the weights: the last resort for one that is gone, some fifty times as long as a swap.

    Calls wait at the gateway meanwhile. Raises RedeployFailed.
    """
    weights_path = weights_path.resolve()
    former_path, former_version = Path(vllm.state.weights), vllm.state.version
    done = Redeployed(version, vllm.state.served_name, drained=False)
    with done.step("inspect"):
        _inspect(weights_path, former_path, version, former_version)
    try:
        with done.step("restart"):
            before_resume(version)
            vllm.restart(weights_path, version)
        with done.step("check"), vllm.client() as client:
            tokens = probe.token_ids if probe is not None else CHECK_TOKENS
            done.verified = agreement(client.logprobs(vllm.state.served_name, tokens), probe, vllm.dtype)
    except VllmError as error:
        with vllm.client() as client:
            former = Former(former_path, former_version, None)
            _restore(vllm, client, former, version, _HalfLoaded(str(error)), before_resume)
    return done


def agreement(logprobs: list[float], probe: Probe | None, dtype: str) -> str:
    """Return how far the server's logprobs are from the trainer's, in words. Raises VllmError where that is too far."""
    if probe is None:
        return "answers are finite (the version has no logprobs of a trainer)"
    off, allowed = difference(logprobs[-len(probe.logprobs) :], probe.logprobs), tolerance(probe, dtype)
    if off > allowed:
        raise VllmError(
            f"vLLM's logprobs of the check prompt are {off:.2g} nats off the trainer's, more than {allowed:.2g}: "
            "it does not compute what was trained"
        )
    return f"logprobs {off:.1e} nats off the trainer's (at most {allowed:.1e})"


@dataclass(frozen=True)
class Former:
    """What is put back: weights, their version, and what they answered."""

    weights: Path
    version: str
    answers: Probe | None


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
    """Pause vLLM; return True where every call in flight ended."""
    if drain_s > 0:
        try:
            client.pause("wait", timeout_s=drain_s)
            return True
        except VllmTimeout:
            log.info("calls in flight did not end within %.0f s; they go on with the new weights", drain_s)
    client.pause("keep")
    return False


def _resume(vllm: VllmServer, client: VllmClient) -> None:
    if vllm.asleep:
        client.wake_up("kv_cache")  # by which vLLM resumes too
        vllm.asleep = False
    else:
        client.resume()


def _load(client: VllmClient, weights: Path, version: str, done: Redeployed) -> int:
    """Reload, compare, forget what the old weights cached, set the version and read it back. vLLM is paused.

    Returns how many tensors were compared with the files.
    """
    with done.step("reload"):
        try:
            client.reload_weights(weights)
        except VllmError as error:
            raise _HalfLoaded(str(error)) from error
    with done.step("compare"):
        equal = client.compare(weights)
    with done.step("reset_cache"):
        client.reset_prefix_cache()
    with done.step("version"):
        client.set_version(version)
        serves = client.version()
    if serves != version:
        raise VllmError(f"vLLM says it serves {serves!r} after it was given {version!r}")
    return equal


def _restore(
    vllm: VllmServer,
    client: VllmClient,
    former: Former,
    failed: str,
    error: BaseException,
    before_resume: Callable[[str], None],
) -> None:
    """Put the former version back, then raise: RedeployFailed, or the interrupt that brought us here."""
    log.warning("redeploying %s failed (%s); restoring %s", failed, error, former.version)
    how = f"{former.version} serves again"
    try:
        try:
            if isinstance(error, _HalfLoaded):
                raise error
            if not vllm.asleep:
                client.pause("keep")
            _load(client, former.weights, former.version, Redeployed(former.version, vllm.state.served_name))
            _announce(before_resume, former.version)
            _resume(vllm, client)
            if former.answers is not None:
                answers = client.logprobs(vllm.state.served_name, former.answers.token_ids)
                agreement(answers, former.answers, vllm.dtype)
        except VllmError:
            log.warning("vLLM is restarted with %s, since it cannot be trusted to reload in place", former.version)
            _announce(before_resume, former.version)
            vllm.restart(former.weights, former.version)
            how += ", after a restart of vLLM"
    except (VllmError, OSError) as second:
        raise RedeployFailed(
            f"{failed} could not be loaded ({error}), and neither could {former.version} again ({second}); start vLLM anew",
            restored=False,
        ) from error
    if not isinstance(error, Exception):
        raise error
    raise RedeployFailed(f"{failed} could not be loaded ({error}); {how}", restored=True) from error


def _announce(before_resume: Callable[[str], None], version: str) -> None:
    """Call `before_resume` and only log its failure, which must not keep the former version from being restored.

    The gateway names one version too many then.
    """
    try:
        before_resume(version)
    except Exception as error:  # noqa: BLE001 - whatever the caller's gateway raises
        log.warning("the gateway does not know that %s serves again: %s", version, error)
