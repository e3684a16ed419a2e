"""Trainer and vLLM on one card: vLLM gives its memory back while the trainer works, and takes it again afterwards.

Level 2 forgets weights and KV cache: for full weights, which the trainer is about to replace. Then vLLM sleeps on until the
new version is swapped in (redeploy.py), so the old one is not read again. Level 1 keeps the weights in the machine's
memory: for adapters, under which the base model stays. Needs CUDA; here only the order of requests is tested.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from lightning_core.policies.vllm import VllmServer
from lightning_core.policies.vllm_client import VllmError

log = logging.getLogger(__name__)

Level = Literal[1, 2]
SLEEP_FLAG = "--enable-sleep-mode"


@contextlib.contextmanager
def asleep(vllm: VllmServer, level: Level) -> Iterator[None]:
    """Have `vllm` hold no memory of the card while the block runs; calls that come wait.

    Afterwards it serves what it served before, but at level 2 it sleeps on (`vllm.asleep`) if the trainer did not fail:
    swap a version in, or call `wake`. Raises VllmError.
    """
    if SLEEP_FLAG not in vllm.state.command:
        raise VllmError(
            "this vLLM was started without `vllm.colocated` and cannot sleep; stop it, and start the flow again"
        )
    with vllm.client() as client:
        client.sleep(level)
    vllm.asleep = True
    try:
        yield
    except BaseException:
        wake(vllm, level)
        raise
    if level == 1:
        wake(vllm, level)


def wake(vllm: VllmServer, level: Level = 2) -> None:
    """Have a `vllm` that sleeps serve what it served before; one that does not wake up is started anew."""
    if not vllm.asleep:
        return
    try:
        _wake(vllm, level)
    except VllmError as error:
        log.warning("vLLM did not wake up (%s); starting it anew with %s", error, vllm.state.version)
        vllm.restart(Path(vllm.state.weights), vllm.state.version)
    vllm.asleep = False


def _wake(vllm: VllmServer, level: Level) -> None:
    with vllm.client() as client:
        if level == 1:
            client.wake_up()
        else:
            # The cache comes after the weights are there, so that both never share the card with a copy of either.
            client.wake_up("weights")
            client.reload_weights(Path(vllm.state.weights))
            client.wake_up("kv_cache")
            client.reset_prefix_cache()
        client.logprobs(vllm.state.served_name)
