"""vLLM as it runs on a GPU, by Model Runner V2, which is never started here: what we call of it is there, by name and signature.

The classes are imported from the installed vLLM, whose CPU build has their source. What they compute is not tested.
"""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any

import pytest

import lightning_core.policies.vllm_worker as extension
from lightning_core.config import VllmSettings
from lightning_core.policies import vllm_command
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
