"""From "training done" to the first token of the new version, and what the clients notice of it.

    make bench-redeploy                     # SmolLM2-135M, about five minutes
    python -m bench.redeploy --model DIR    # any folder of weights

One JSON line a figure. "Training done" is a published version: its files were hashed and are durable. What that costs is
`redeploy_write`: saving, hashing, looking for numbers that are not finite, fsync and rename, against `save_file` and fsync
of the same tensors. Reads and writes are interleaved with what they are compared to. Everything goes through the store,
`deploy` and the gateway, as in an epoch.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import httpx

import lightning_core.epoch.deploy
from bench.redeploy_clients import Clients
from bench.report import figure, say
from lightning_core.config import GatewaySettings, Settings
from lightning_core.epoch.deploy import deploy
from lightning_core.epoch.epoch import Run
from lightning_core.epoch.services import Services
from lightning_core.gateway.handle import GatewayHandle
from lightning_core.policies.model import resolve_model
from lightning_core.policies.probe import Probe
from lightning_core.policies.redeploy import Redeployed, restart_with
from lightning_core.policies.store import Lineage, PolicyStore
from lightning_core.policies.vllm import VllmServer
from lightning_core.training.new_version import take_probe
from lightning_core.training.weights import load_model, lora_config, save_weights, whole_folder

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
PROMPT_IDS = [5, 11, 7, 23, 13, 42, 3, 17, 29, 31, 37, 41, 43, 47, 53, 59]
LORA_LIMIT_S, SWAP_SLACK_S, STALL_SLACK_S = 0.5, 0.5, 0.5
RESTART_LIMIT = 20
VLLM_ITSELF = "vllm.entrypoints.openai.api_server"  # its own launcher, in place of policies/vllm_main.py
LORA_RANK = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clients", type=int, default=32)
    options = parser.parse_args()
    home = Path("var/bench-redeploy").resolve()
    shutil.rmtree(home, ignore_errors=True)
    base = resolve_model(options.model, None, say).path
    try:
        _full(home / "full", base, options.rounds, options.clients)
        _lora(home / "lora", base, options.rounds)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _full(home: Path, base: Path, rounds: int, clients: int) -> None:
    store = PolicyStore(home, "policy")
    store.publish_base(base, "base")
    pairs = _write(store, base, max(3, rounds))
    ours, bare = _columns(pairs)
    figure("redeploy_write", ours, "s", bare, len(pairs), smaller_is_better=True, times_bare=ours / bare)
    settings = _settings(home, clients)
    with _running(settings, store.path("v0000"), lora_rank=None) as services, _steps("hot_swap") as steps:
        swaps = []
        versions = store.versions()[1:]
        for version in [versions[-1], *versions][: rounds + 1]:
            weights = store.path(version) / "model.safetensors"
            weights.read_bytes()
            began = time.perf_counter()
            weights.read_bytes()
            read = time.perf_counter() - began
            swaps.append((_to_first_token(settings, services, version), read))
        swap, read = _columns(swaps[1:])  # the first warms vLLM up
        figure(
            "redeploy_swap_s", swap, "s", read, len(swaps) - 1, smaller_is_better=True,
            limit=2 * read + SWAP_SLACK_S, all=[took for took, _ in swaps[1:]], steps=_medians(steps[1:]),
        )  # fmt: skip
        _stall(settings, services, versions[: max(2, rounds - 2)], clients)
        restart = _restart(services, store.path(versions[0]), versions[0])
        vllm = services.fleet[0]
        vllm.state = replace(vllm.state, command=[*vllm.state.command[:2], VLLM_ITSELF, *vllm.state.command[3:]])
        itself = _restart(services, store.path(versions[0]), versions[0])
        figure(
            "redeploy_restart_ratio", restart / swap, "x", RESTART_LIMIT, 1,
            restart_s=restart, swap_s=swap, vllm_itself_s=itself, vllm_itself_ratio=itself / swap,
        )  # fmt: skip


def _lora(home: Path, base: Path, rounds: int) -> None:
    store = PolicyStore(home, "policy")
    store.publish_base(base, "base", "lora")
    for number in range(rounds + 1):
        store.publish(*_adapter(base, home / "output", number))
    settings = _settings(home, 4, lora=True)
    with _running(settings, base, lora_rank=LORA_RANK) as services, _steps("load_lora") as steps:
        took = [_to_first_token(settings, services, version) for version in store.versions()[1:]][1:]
        median = statistics.median(took)
        figure(
            "redeploy_lora_s", median, "s", LORA_LIMIT_S, len(took), smaller_is_better=True,
            all=took, steps=_medians(steps[1:]),
        )  # fmt: skip


def _write(store: PolicyStore, base: Path, rounds: int) -> list[tuple[float, float]]:
    """(seconds to write and publish a version, seconds of bare save_file and fsync of its tensors), a pair a round."""
    import torch
    from safetensors.torch import save_file

    say("loading the model")
    model = load_model(base)
    pairs = []
    for number in range(rounds + 1):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1e-4 * (number + 1))
        os.sync()
        bare_file = store.folder / "bare.safetensors"
        began = time.perf_counter()
        tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
        save_file({k: v for k, v in model.state_dict().items() if k not in tied}, bare_file, metadata={"format": "pt"})
        descriptor = os.open(bare_file, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
        bare = time.perf_counter() - began
        bare_file.unlink()
        probe = take_probe(model, PROMPT_IDS, len(PROMPT_IDS) - 1)
        os.sync()
        began = time.perf_counter()
        with whole_folder(store.folder / "output") as beside:
            save_weights(model, base, beside)
        store.publish(
            store.folder / "output",
            Lineage(base_model="base", run="bench", epoch=number, parent="v0000", probe=Probe.model_validate(probe)),
        )
        pairs.append((time.perf_counter() - began, bare))
        say(f"version {number + 1}: {pairs[-1][0]:.2f} s, bare {bare:.2f} s")
    return pairs[1:]


def _adapter(base: Path, output: Path, number: int) -> tuple[Path, Lineage]:
    """A fresh adapter with numbers in it, as training would leave it."""
    import torch
    from peft import get_peft_model

    from lightning_core.config import LoraSettings

    torch.manual_seed(number)
    model = get_peft_model(load_model(base), lora_config(LoraSettings(rank=LORA_RANK)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=1e-2)
    with whole_folder(output) as beside:
        save_weights(model, base, beside)
    probe = Probe.model_validate(take_probe(model, PROMPT_IDS, len(PROMPT_IDS) - 1))
    return output, Lineage(base_model="base", kind="lora", run="bench", epoch=number, probe=probe)


def _settings(home: Path, clients: int, lora: bool = False) -> Settings:
    policy = {"lora": {"rank": LORA_RANK}} if lora else {}
    return Settings.model_validate(
        {
            "run": "bench",
            "home": home,
            "agent": {"command": "true"},
            "tasks": {"train": "tasks.jsonl"},
            "policies": [policy],
            "vllm": {"kv_cache_gb": 0.5, "max_model_len": 1024, "max_num_seqs": clients},
        }
    )


@contextmanager
def _running(settings: Settings, base: Path, lora_rank: int | None) -> Iterator[Services]:
    say("starting vLLM")
    vllm = VllmServer.start(settings.vllm, base, "policy", home=settings.home, lora_rank=lora_rank, on_progress=say)
    try:
        server = GatewayHandle.start(settings.home, GatewaySettings(grpc_port=None), settings.home / "gateway.log")
        try:
            services = cast(Services, SimpleNamespace(gateway=server, fleet=[vllm], model=None))
            deploy(Run(settings), services, {"policy": "v0000"})
            _first_token(services)
            yield services
        finally:
            server.stop()
    finally:
        vllm.stop()


def _to_first_token(settings: Settings, services: Services, version: str) -> float:
    began = time.perf_counter()
    deploy(Run(settings), services, {"policy": version})
    deployed = time.perf_counter() - began
    _first_token(services)
    took = time.perf_counter() - began
    _first_token(services)
    again = time.perf_counter() - began - took
    say(f"{version}: deployed after {deployed:.2f} s, first token after {took:.2f} s; another one takes {again:.2f} s")
    return took


def _restart(services: Services, folder: Path, version: str) -> float:
    began = time.perf_counter()
    restart_with(services.fleet[0], folder, version)
    _first_token(services)
    return time.perf_counter() - began


def _first_token(services: Services) -> None:
    """Of whatever the gateway serves now."""
    key = services.gateway.mint("first", "a", "train")
    body: dict[str, Any] = {"model": "policy", "prompt": PROMPT_IDS, "max_tokens": 1}
    url = services.gateway.attempt_url("first", "a") + "/v1/completions"
    httpx.post(url, json=body, headers={"Authorization": f"Bearer {key}"}, timeout=120).raise_for_status()


def _stall(settings: Settings, services: Services, versions: list[str], count: int) -> None:
    """The longest time any of `count` streaming clients hears nothing, while versions are swapped under them.

    How long until they hear as much as before is taken from moments without a swap too: a second holds few calls here.
    """
    found, back = [], []
    with Clients(services.gateway, count) as clients:
        began = time.perf_counter()
        time.sleep(10)
        quiet, rate = clients.longest_gap(began, time.perf_counter()), clients.rate(began, time.perf_counter())
        never_away = max(clients.back_after(began + second, rate) for second in range(9))
        for version in versions:
            began = time.perf_counter()
            deploy(Run(settings), services, {"policy": version})
            ended = time.perf_counter()
            found.append((clients.longest_gap(began, ended), ended - began))
            back.append(clients.back_after(ended, rate))
            say(f"{version}: swapped in {found[-1][1]:.2f} s under load, longest stall {found[-1][0]:.2f} s")
    worst, swap_s = max(found, key=lambda pair: pair[0] - pair[1])
    figure(
        "redeploy_stall_s", worst, "s", swap_s + STALL_SLACK_S, len(found), smaller_is_better=True,
        clients=count, swap_s=swap_s, without_a_swap_s=quiet, tokens_a_second=rate, failed=clients.failed,
        back_after_s=max(back), back_after_nothing_s=never_away,
    )  # fmt: skip


@contextmanager
def _steps(way: str) -> Iterator[list[dict[str, float]]]:
    """Where each `hot_swap` or `load_lora` of a deploy spends its time, in seconds."""
    found: list[dict[str, float]] = []
    real = getattr(lightning_core.epoch.deploy, way)

    def noted(*args: Any, **more: Any) -> Redeployed:
        done: Redeployed = real(*args, **more)
        found.append(done.seconds)
        return done

    with mock.patch.object(lightning_core.epoch.deploy, way, noted):
        yield found


def _medians(steps: list[dict[str, float]]) -> list[str]:
    return [f"{name} {statistics.median(one.get(name, 0) for one in steps):.3f}" for name in steps[-1]]


def _columns(pairs: list[tuple[float, float]]) -> tuple[float, float]:
    """Medians of both sides."""
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)


if __name__ == "__main__":
    main()
