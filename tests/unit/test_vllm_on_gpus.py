"""vLLM as it runs on a GPU, by Model Runner V2, which is never started here: what we call of it is there, by name and signature.

The classes are imported from the installed vLLM, whose CPU build has their source. What they compute is not tested.
"""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import lightning_core.policies.vllm_worker as extension
from bench.gpu.serving import hand_over
from lightning_core.config import VllmSettings
from lightning_core.policies import vllm_command
from lightning_core.policies.vllm_client import VllmClient
from lightning_core.policies.vllm_worker import ReloadExtension

pytestmark = pytest.mark.slow  # it imports vLLM


@pytest.fixture(scope="module")
def runners() -> list[Any]:
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner as V2
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner as V1

    assert V1 is not V2
    return [V2, V1]


@pytest.fixture(scope="module")
def worker() -> Any:
    from vllm.v1.worker.gpu_worker import Worker

    return Worker


def parameters(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters)


def test_the_reload_of_our_extension_reaches_either_model_runner(worker: Any, runners: list[Any]) -> None:
    assert "self.model_runner.reload_weights(*args, **kwargs)" in inspect.getsource(worker.reload_weights)
    for runner in runners:
        assert "weights_path" in parameters(runner.reload_weights), runner
        assert "self.model" in inspect.getsource(runner.get_model)


def test_what_our_extension_asks_of_a_worker_is_there_and_its_own_names_are_free(worker: Any) -> None:
    used = {
        node.attr
        for node in ast.walk(ast.parse(Path(extension.__file__).read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
    }
    made = inspect.getsource(worker) + "".join(inspect.getsource(base) for base in worker.__mro__[1:-1])
    for name in used:
        assert hasattr(worker, name) or f"self.{name}" in made, name
    ours = {name for name in vars(ReloadExtension) if not name.startswith("__")}
    assert not ours & set(dir(worker)), "vLLM refuses an extension that hides a method"


def test_the_worker_sleeps_and_wakes_in_parts_and_knows_the_two_tags(worker: Any) -> None:
    assert "level" in parameters(worker.sleep) and "tags" in parameters(worker.wake_up)
    from vllm.v1.engine.core import EngineCore

    assert {"level", "mode"} <= parameters(EngineCore.sleep)
    woken = inspect.getsource(EngineCore.wake_up)
    # A swap sets version and routes between the two: calls must go on with the second alone.
    assert "fully_awake = not self.model_executor.is_sleeping" in woken and "self.resume_scheduler()" in woken
    from vllm.v1.executor.abstract import SLEEP_TAGS

    assert set(SLEEP_TAGS) == {"weights", "kv_cache"}


def test_model_runner_v2_answers_the_probe(runners: list[Any]) -> None:
    """The probe is `prompt_logprobs`; a runner without them would answer without any."""
    from vllm.v1.worker.gpu.sample import prompt_logprob

    assert "compute_prompt_logprobs" in dir(prompt_logprob.PromptLogprobsWorker)
    assert "prompt_logprobs" in inspect.getsource(runners[0])


def test_on_cuda_graphs_are_on_and_a_card_is_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = {}
    for cpu in (True, False):
        monkeypatch.setattr(vllm_command, "cpu_build", lambda cpu=cpu: cpu)
        lines[cpu] = vllm_command.command(VllmSettings(), Path("m"), "p", Path("s"), None, 0)
    assert "--enforce-eager" in lines[True] and "--enforce-eager" not in lines[False]
    at = lines[True].index("--max-num-seqs") + 1
    assert lines[True][at] == "64" and "--max-num-seqs" not in lines[False], "vLLM knows how many a card takes"


def test_weights_that_the_kit_hands_over_reach_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of vLLM's way but the card's memory: sender, requests, routes, the worker's engine."""
    import torch
    from fastapi import FastAPI
    from fastapi.testclient import TestClient
    from vllm.distributed.weight_transfer import ipc_engine
    from vllm.engine.arg_utils import EngineArgs
    from vllm.entrypoints.rl.online.api_router import router
    from vllm.model_executor.model_loader import reload
    from vllm.utils.argparse_utils import FlexibleArgumentParser
    from vllm.v1.worker.gpu_worker import Worker

    memory: list[Any] = []
    monkeypatch.setenv("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="card"))
    monkeypatch.setattr(torch.cuda, "ipc_collect", lambda: None)
    shared = lambda tensor: memory.append(tensor) or (None, (len(memory) - 1, *[0] * 6))  # noqa: E731
    monkeypatch.setattr(ipc_engine, "reduce_tensor", shared)
    monkeypatch.setattr(ipc_engine, "rebuild_cuda_tensor", lambda at, *_: memory[at])
    steps: list[str] = []
    monkeypatch.setattr(reload, "initialize_layerwise_reload", lambda model: steps.append("start"))
    monkeypatch.setattr(reload, "finalize_layerwise_reload", lambda model, config: steps.append("finish"))
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda *_: None)

    line = ["--model", "m", "--weight-transfer-config", '{"backend": "ipc"}', "--gpu-memory-utilization", "0.5"]
    parsed = EngineArgs.from_cli_args(EngineArgs.add_cli_args(FlexibleArgumentParser()).parse_args(line))
    assert parsed.weight_transfer_config.backend == "ipc"
    trained, received = torch.nn.Linear(3, 2), {}
    served = SimpleNamespace(load_weights=lambda weights: received.update(weights))
    config = SimpleNamespace(parallel_config=None, model_config=None)
    engine = ipc_engine.IPCWeightTransferEngine(parsed.weight_transfer_config, config, torch.device("cuda", 0), served)
    worker = Worker.__new__(Worker)
    worker.__dict__ |= {
        "weight_transfer_engine": engine, "vllm_config": config, "_weight_update_active": False, "device": engine.device,
        "model_runner": SimpleNamespace(reset_lora_state=lambda: None),
    }  # fmt: skip

    class Engine:
        async def init_weight_transfer_engine(self, request: Any) -> None:
            worker.init_weight_transfer_engine(request.init_info)

        async def start_weight_update(self) -> None:
            worker.start_weight_update()

        async def update_weights(self, request: Any) -> None:
            worker.update_weights(request.update_info)

        async def finish_weight_update(self, version: str | None) -> None:
            worker.finish_weight_update()

    app = FastAPI()
    app.include_router(router)
    app.state.engine_client = Engine()
    client = VllmClient(Path("none"))
    client._http = TestClient(app)  # type: ignore[assignment]
    hand_over(trained, client)
    assert steps == ["start", "finish"] and callable(torch._C._accelerator_setAllocatorSettings)
    assert {name: value.tolist() for name, value in received.items()} == {
        name: value.tolist() for name, value in trained.named_parameters()
    }
