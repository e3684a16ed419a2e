"""LoRA adapters: a version is loaded under a name of its own beside the older ones, and no call is interrupted.

vLLM holds `lora_slots` of them. Past that it would drop the least recently used in silence and read it again when it is
asked for; so what goes is chosen here: never what new rollouts are routed to, never what live ones began with.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from lightning_core.config import PolicySettings
from lightning_core.policies.probe import Probe
from lightning_core.policies.redeploy import Redeployed, RedeployFailed, agreement
from lightning_core.policies.store import BASE_VERSION
from lightning_core.policies.vllm import VllmServer
from lightning_core.policies.vllm_client import CHECK_TOKENS, VllmClient, VllmError

log = logging.getLogger(__name__)

Names = list[str]


def load_lora(
    vllm: VllmServer,
    policy: str,
    version: str,
    path: Path,
    *,
    probe: Probe | None = None,
    routed: str = "",
    in_use: Callable[[], Collection[str]] = tuple,
    retire: Callable[[Names], None] = lambda names: None,
) -> Redeployed:
    """Load the adapter in `path` as `<policy>-<version>` and verify it; the older ones stay, as far as there are slots.

    `routed` is the name that the policy's calls go to now: it stays, whatever its number. `in_use` returns the names
    that have calls in flight; `retire` is called with those that are about to be unloaded: the time to change routes. A
    name is never loaded twice, since vLLM's cache is keyed by it. Raises RedeployFailed; what was routed to is served
    on then.
    """
    name = lora_name(policy, version)
    done = Redeployed(version, name)
    with vllm.client() as client:
        loaded: Names = []
        try:
            loaded = client.models()
            if name not in loaded:
                _check_rank(vllm, path)
                with done.step("unload"):
                    done.unloaded += _make_room(
                        vllm, client, _versions_of(policy, loaded, routed), loaded, in_use, retire
                    )
                with done.step("load"):
                    client.load_lora(name, path.resolve())
            if name not in vllm.state.adapters:  # also where a flow was killed before it noted that
                vllm.holds({**vllm.state.adapters, name: str(path.resolve())})
            with done.step("check"):
                tokens = probe.token_ids if probe is not None else CHECK_TOKENS
                done.verified = agreement(client.logprobs(name, tokens), probe, vllm.dtype)
        except (VllmError, OSError, ValueError) as error:
            if name not in loaded:
                _forget(vllm, client, name)
            raise RedeployFailed(
                f"{name} was not loaded, the older adapters serve on: {error}", restored=vllm.alive()
            ) from error
    return done


def unload_older(
    vllm: VllmServer,
    policy: str,
    version: str,
    *,
    keep: int = 2,
    routed: str = "",
    in_use: Callable[[], Collection[str]] = tuple,
    retire: Callable[[Names], None] = lambda names: None,
) -> Names:
    """Unload the policy's older adapters, and return their names.

    `version`, the last `keep` - 1 of the others (`routed` is the last of them), and those in use stay.
    """
    with vllm.client() as client:
        older = [name for name in _versions_of(policy, client.models(), routed) if name != lora_name(policy, version)]
        busy = in_use()
        going = [name for name in older[: max(0, len(older) - (keep - 1))] if name not in busy]
        return _unload(vllm, client, going, in_use, retire)


def lora_name(policy: str, version: str) -> str:
    """Return the name under which vLLM serves the adapter of a policy's version: `policy-v0007`."""
    return f"{policy}-{version}"


def route(
    policy: PolicySettings,
    fleet: Sequence[VllmServer],
    version: str,
    *,
    evaluate_max_tokens: int | None = None,
    restart_wait_s: float = 0.0,
) -> dict[str, Any]:
    """Return what the gateway has to know of a policy: where it is served, under which name, how it samples.

    `fleet` has one vLLM at least.
    """
    adapter = policy.lora is not None and version != BASE_VERSION
    return {
        "upstream": fleet[0].upstream,
        "replicas": [vllm.upstream for vllm in fleet[1:]],
        "model": lora_name(policy.name, version) if adapter else fleet[0].state.served_name,
        "version": version,
        "restart_wait_s": restart_wait_s,
        "sampling": policy.sampling.model_dump(),
        "evaluate_max_tokens": evaluate_max_tokens,
        "api_key": None,
    }


def _check_rank(vllm: VllmServer, folder: Path) -> None:
    if vllm.state.lora_rank is None:
        raise VllmError(
            "vLLM was started for full weights and takes no adapters; stop it, and start it with these settings"
        )
    rank = json.loads((folder / "adapter_config.json").read_bytes()).get("r")
    if not isinstance(rank, int) or rank > vllm.state.lora_rank:
        raise VllmError(
            f"{folder / 'adapter_config.json'}: rank {rank}, and vLLM was started for up to {vllm.state.lora_rank}; "
            "stop it, and start it with these settings (it takes the highest `lora.rank` of the policies)"
        )


def _make_room(
    vllm: VllmServer,
    client: VllmClient,
    mine: Names,
    loaded: Names,
    in_use: Callable[[], Collection[str]],
    retire: Callable[[Names], None],
) -> Names:
    """Unload so many adapters, the first of `mine`, that one more fits; return their names. The last stays."""
    adapters, busy = [name for name in loaded if name != vllm.state.served_name], set(in_use())
    too_many = max(0, len(adapters) + 1 - vllm.state.lora_slots)
    spare = [name for name in mine[:-1] if name not in busy]
    gone: Names = []
    if too_many <= len(spare):
        gone = _unload(vllm, client, spare[:too_many], in_use, retire)
    if len(gone) < too_many:
        live = ", ".join(sorted(set(adapters) & {*busy, *in_use()})) or "none"
        raise VllmError(
            f"vLLM has {vllm.state.lora_slots} slots for adapters, all taken ({', '.join(adapters)}), and none of "
            f"this policy's can go (live rollouts use {live}); wait for them to end, or raise `vllm.lora_slots`"
        )
    return gone


def _unload(
    vllm: VllmServer,
    client: VllmClient,
    names: Names,
    in_use: Callable[[], Collection[str]],
    retire: Callable[[Names], None],
) -> Names:
    """Unload these, except those that a call began to use before their routes were changed; return the names."""
    if not names:
        return []
    retire(names)
    busy = in_use()
    going = [name for name in names if name not in busy]
    if going:
        log.info("adapters that nothing uses any more are unloaded: %s", ", ".join(going))
    for name in going:
        client.unload_lora(name)
        vllm.holds({other: folder for other, folder in vllm.state.adapters.items() if other != name})
    return going


def _forget(vllm: VllmServer, client: VllmClient, name: str) -> None:
    try:
        if name in client.models():
            _unload(vllm, client, [name], tuple, lambda _: None)
    except VllmError as error:
        log.warning("adapter %s could not be unloaded: %s", name, error)


def _versions_of(policy: str, names: Names, routed: str = "") -> Names:
    """Return the policy's adapters among `names`, oldest first, but `routed` last: an older version can be in use."""
    prefix = f"{policy}-v"
    mine = [name for name in names if name.startswith(prefix) and name[len(prefix) :].isdigit()]
    return sorted(mine, key=lambda name: (name == routed, int(name.rpartition("-v")[2])))
