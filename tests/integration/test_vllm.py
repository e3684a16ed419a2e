"""A real vLLM: start, find, swap weights, load adapters, die, stop."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from lightning_core import names
from lightning_core.config import GatewaySettings, LoraSettings, PolicySettings, VllmSettings
from lightning_core.gateway.handle import GatewayHandle
from lightning_core.policies import redeploy
from lightning_core.policies.adapters import load_lora, route, unload_older
from lightning_core.policies.probe import Probe
from lightning_core.policies.redeploy import RedeployFailed, hot_swap, restart_with
from lightning_core.policies.vllm import VllmServer
from lightning_core.policies.vllm_client import CHECK_TOKENS, VllmClient, VllmError
from lightning_core.process.linux import group_members
from lightning_core.spool import spool
from tests.gateway_rig import attributes, float32, int32, spans_of
from tests.replies import plain
from tests.tiny_model import make_tiny_adapter, make_tiny_llama

pytestmark = pytest.mark.slow

GUIDANCE = ["--structured-outputs-config", '{"backend": "guidance"}']
SETTINGS = VllmSettings(dtype="float32", kv_cache_gb=0.05, max_model_len=512, max_num_seqs=8, extra_args=GUIDANCE)
PROMPT = {"model": "policy", "messages": [{"role": "user", "content": "12*7"}]}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    return [make_tiny_llama(folder / str(seed), seed=seed) for seed in (0, 1)]


@pytest.fixture(scope="module")
def progress() -> list[str]:
    return []


@pytest.fixture(scope="module")
def vllm(models: list[Path], progress: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_LOGGING_LEVEL", "ERROR")  # as in a process that has imported TRL
        server = VllmServer.start(
            SETTINGS, models[0], "policy", home=tmp_path_factory.mktemp("home"), on_progress=progress.append
        )
    yield server
    server.stop()


def answer(vllm: VllmServer, **more: Any) -> tuple[list[int], list[float]]:
    """Token ids and logprobs of a greedy answer."""
    body = {
        **PROMPT,
        "max_tokens": 12,
        "temperature": 0,
        "logprobs": True,
        "return_token_ids": True,
        "ignore_eos": True,
        **more,
    }
    with vllm.client() as client:
        choice = client.request("POST", "/v1/chat/completions", json=body)["choices"][0]
    return choice["token_ids"], [token["logprob"] for token in choice["logprobs"]["content"]]


def wait_until_running(vllm: VllmServer, calls: int) -> None:
    deadline = time.monotonic() + 30
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(vllm.socket)), base_url="http://vllm") as http:
        while time.monotonic() < deadline:
            running = re.search(r"^vllm:num_requests_running\S* (\S+)$", http.get("/metrics").text, re.MULTILINE)
            if running and float(running[1]) >= calls:
                return
            time.sleep(0.01)
    raise AssertionError(f"{calls} calls did not start")


def test_starting_shows_its_phases_and_ends_ready(vllm: VllmServer, progress: list[str]) -> None:
    assert any("importing" in line for line in progress)
    assert any("loading weights" in line or "KV cache" in line or "socket" in line for line in progress)
    assert "ready after" in progress[-1]
    vllm.check()


def test_only_this_user_reaches_the_socket_and_the_state(vllm: VllmServer) -> None:
    assert stat.S_IMODE(vllm.socket.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE((vllm.home / "services/vllm.json").stat().st_mode) == 0o600
    assert vllm.upstream == f"unix://{vllm.socket}"


def test_it_listens_on_no_port(vllm: VllmServer) -> None:
    listening = [
        c
        for p in group_members(vllm.state.pid, vllm.state.started)
        for c in psutil.Process(p).net_connections("tcp")
        if c.status == "LISTEN"
    ]
    assert [c for c in listening if not c.laddr.ip.startswith("127.")] == []


def test_a_running_one_is_found_and_no_second_is_started(vllm: VllmServer, models: list[Path]) -> None:
    found = VllmServer.find(vllm.home)
    assert found is not None and found.state == vllm.state
    with pytest.raises(VllmError, match="runs already"):
        VllmServer.start(SETTINGS, models[0], "policy", home=vllm.home)


def test_calls_come_with_token_ids_and_logprobs(vllm: VllmServer) -> None:
    ids, logprobs = answer(vllm)
    assert len(ids) == len(logprobs) == 12
    assert all(value <= 0 for value in logprobs)


def test_a_text_the_model_has_to_say_comes_in_the_tokenizers_own_tokens(vllm: VllmServer, models: list[Path]) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(models[0])
    for text in ('{"name": "search", "arguments": {"query": "Who?"}}', "SELECT zip  FROM Places", "Zo\u00eb 1932"):
        ids, _ = answer(vllm, structured_outputs={"choice": [text]}, max_tokens=96, temperature=1, ignore_eos=False)
        assert ids[:-1] == tokenizer.encode(text, add_special_tokens=False), tokenizer.convert_ids_to_tokens(ids)


def test_replies_through_the_gateway_are_vllms_own_field_by_field(vllm: VllmServer, tmp_path: Path) -> None:
    greedy = {**PROMPT, "max_tokens": 8, "temperature": 0, "ignore_eos": True}
    server = GatewayHandle.start(tmp_path, GatewaySettings(grpc_port=None), tmp_path / "log")
    direct = httpx.Client(transport=httpx.HTTPTransport(uds=str(vllm.socket)), base_url="http://vllm", timeout=60)
    try:
        served = {"upstream": vllm.upstream, "model": vllm.state.served_name, "version": "v0001"}
        server.set_routes({"policies": {"policy": served}})
        headers = {"Authorization": "Bearer " + server.mint("r", "a", "evaluate")}
        through = httpx.Client(base_url=server.attempt_url("r", "a"), headers=headers, timeout=60)
        for more in (
            {},
            {"logprobs": True, "top_logprobs": 2},
            {"return_token_ids": True},
            {"stream": True},
            {"stream": True, "stream_options": {"include_usage": True}},
            {"stream": True, "stream_options": {"include_usage": True}, "logprobs": True, "return_token_ids": True},
        ):
            found = [plain(http.post("/v1/chat/completions", json=greedy | more)) for http in (direct, through)]
            assert found[0] == found[1], more
        response = through.post("/v1/responses", json={"model": "policy", "input": "12*7", "max_output_tokens": 8})
        assert response.json()["usage"]["output_tokens"] == 8 or response.json()["status"] == "completed"
        refused = [http.post("/v1/chat/completions", json=greedy | {"n": -1}) for http in (direct, through)]
        assert refused[0].status_code == refused[1].status_code == 400
    finally:
        direct.close()
        server.stop()


def test_ids_of_the_spans_decode_to_the_text_the_client_got(
    vllm: VllmServer, models: list[Path], tmp_path: Path
) -> None:
    """Whole and streamed, at temperature 1: the tiny model says bytes that are no UTF-8, and special tokens."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(models[0])
    server = GatewayHandle.start(tmp_path, GatewaySettings(grpc_port=None), tmp_path / "log")
    try:
        served = {"upstream": vllm.upstream, "model": vllm.state.served_name, "version": "v0001"}
        server.set_routes({"policies": {"policy": served}})
        agent = openai.OpenAI(
            base_url=server.attempt_url("r", "a") + "/v1", api_key=server.mint("r", "a", "train"), max_retries=0
        )
        text: dict[str, str] = {}
        request: dict[str, Any] = {"model": "policy", "messages": PROMPT["messages"], "max_tokens": 40}
        for number in range(12):
            if number % 2:
                for chunk in agent.chat.completions.create(**request, stream=True, extra_body={"ignore_eos": True}):
                    text[chunk.id] = text.get(chunk.id, "") + (chunk.choices[0].delta.content or "")
            else:
                reply = agent.chat.completions.create(**request, extra_body={"ignore_eos": True})
                text[reply.id] = reply.choices[0].message.content or ""
        calls = [
            attributes(span) for _, _, record in spool.read(tmp_path / "spool", 0) for span in spans_of(record.body)
        ]
    finally:
        server.stop()
    assert len(text) == len(calls) == 12
    special = set(tokenizer.all_special_ids)
    assert any(special & set(int32(call[names.RESPONSE_TOKEN_IDS])) for call in calls)
    for call in calls:
        ids, got = int32(call[names.RESPONSE_TOKEN_IDS]), text[call[names.GEN_AI_RESPONSE_ID]]
        decoded = tokenizer.decode(ids, skip_special_tokens=True)
        assert len(ids) == 40 == len(float32(call[names.RESPONSE_LOGPROBS]))
        # A character whose last bytes were not sampled any more is in no stream.
        assert decoded.startswith(got) and decoded[len(got) :].strip("\ufffd") == ""
        assert json.loads(call[names.GEN_AI_OUTPUT_MESSAGES])[0]["content"] == got


def test_a_swap_changes_the_answers_and_swapping_back_restores_them_to_the_bit(
    vllm: VllmServer, models: list[Path]
) -> None:
    before = answer(vllm)
    there = hot_swap(vllm, models[1], "v0001")
    assert there.changed and there.drained and there.paused_s > 0
    assert {"inspect", "drain", "reload", "compare", "reset_cache", "version", "resume", "check"} == set(there.seconds)
    other = answer(vllm)
    assert other != before
    found = VllmServer.find(vllm.home)
    assert found is not None and found.state.version == "v0001"
    hot_swap(vllm, models[0], "v0002")
    assert answer(vllm) == before
    with vllm.client() as client:
        assert client.version() == "v0002"


def test_swapped_in_weights_compute_what_transformers_computes(vllm: VllmServer, models: list[Path]) -> None:
    # vLLM's own reload leaves a tied output layer with the former weights: other answers, and wrong ones.
    for model, version in ((models[1], "v0001"), (models[0], "v0002")):
        probe = Probe(token_ids=CHECK_TOKENS, logprobs=transformers_logprobs(model))
        assert hot_swap(vllm, model, version, probe=probe).verified.startswith("6 tensors as in the files; logprobs ")
        with vllm.client() as client:
            assert client.logprobs("policy") == pytest.approx(probe.logprobs, abs=1e-4)


def test_weights_that_compute_something_else_than_the_trainer_are_taken_back(
    vllm: VllmServer, models: list[Path]
) -> None:
    before, version = answer(vllm), vllm.state.version
    resumed: list[str] = []
    lie = Probe(token_ids=CHECK_TOKENS, logprobs=transformers_logprobs(models[0]))
    with pytest.raises(RedeployFailed, match=rf"nats off the trainer's.*; {version} serves again$") as failure:
        hot_swap(vllm, models[1], "v0099", probe=lie, before_resume=resumed.append)
    assert failure.value.restored
    # The gateway was told what is served before either was.
    assert resumed == ["v0099", version]
    assert (answer(vllm), vllm.state.version) == (before, version)


def test_a_reload_that_vllm_only_claims_to_have_done_is_noticed_before_any_call_is_answered(
    vllm: VllmServer, models: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, version = answer(vllm), vllm.state.version
    resumed: list[str] = []
    monkeypatch.setattr(VllmClient, "reload_weights", lambda *_: None)
    with pytest.raises(
        RedeployFailed, match=f"does not hold model.embed_tokens.weight as it is in .*; {version} serves again"
    ) as failure:
        hot_swap(vllm, models[1], "v0099", before_resume=resumed.append)
    assert failure.value.restored and resumed == [version]
    assert (answer(vllm), vllm.state.version) == (before, version)


def test_calls_in_flight_survive_a_swap_that_does_not_wait(vllm: VllmServer, models: list[Path]) -> None:
    before = answer(vllm, max_tokens=100)
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(answer(vllm, max_tokens=400))) for _ in range(4)]
    for thread in threads:
        thread.start()
    wait_until_running(vllm, 4)
    swapped = hot_swap(vllm, models[1], "v0003", drain_s=0)
    for thread in threads:
        thread.join()
    assert not swapped.drained
    assert [len(ids) for ids, _ in answers] == [400] * 4
    hot_swap(vllm, models[0], "v0004")
    assert answer(vllm, max_tokens=100) == before


def test_a_drain_that_takes_too_long_freezes_the_calls_instead(vllm: VllmServer, models: list[Path]) -> None:
    threads = [threading.Thread(target=answer, args=(vllm,), kwargs={"max_tokens": 450}) for _ in range(4)]
    for thread in threads:
        thread.start()
    wait_until_running(vllm, 4)
    swapped = hot_swap(vllm, models[1], "v0005", drain_s=0.01)
    for thread in threads:
        thread.join()
    assert not swapped.drained
    assert hot_swap(vllm, models[0], "v0006").drained


def test_weights_that_diverged_never_reach_vllm(vllm: VllmServer, models: list[Path], tmp_path: Path) -> None:
    before, version = answer(vllm), vllm.state.version
    broken = make_tiny_llama(tmp_path / "nan", seed=2)
    file = broken / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-4:] = struct.pack("<f", float("nan"))
    file.write_bytes(content)
    with pytest.raises(RedeployFailed, match=r"not finite .*lower `learning_rate`") as failure:
        hot_swap(vllm, broken, "v0007")
    assert failure.value.restored
    assert (answer(vllm), vllm.state.version) == (before, version)


def test_a_swap_that_fails_inside_vllm_restores_the_former_version_by_a_restart(
    vllm: VllmServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, version = answer(vllm), vllm.state.version
    wrong = make_tiny_llama(tmp_path / "wide", seed=3, hidden=128)
    monkeypatch.setattr(redeploy, "_inspect", lambda *_: None)
    with pytest.raises(RedeployFailed, match=f"{version} serves again, after a restart") as failure:
        hot_swap(vllm, wrong, "v0008")
    assert failure.value.restored
    assert answer(vllm) == before
    with vllm.client() as client:
        assert client.version() == version


def test_weights_broken_only_in_use_are_taken_back(
    vllm: VllmServer, models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, version = answer(vllm), vllm.state.version
    broken = make_tiny_llama(tmp_path / "nan", seed=2)
    file = broken / "model.safetensors"
    head = 8 + struct.unpack("<Q", file.read_bytes()[:8])[0]
    content = file.read_bytes()
    file.write_bytes(content[:head] + struct.pack("<f", float("nan")) * ((len(content) - head) // 4))
    monkeypatch.setattr(redeploy, "_inspect", lambda *_: None)
    with pytest.raises(RedeployFailed) as failure:
        hot_swap(vllm, broken, "v0009")
    assert failure.value.restored
    assert (answer(vllm), vllm.state.version) == (before, version)


def test_adapters_are_served_side_by_side_and_old_ones_go(models: list[Path], tmp_path: Path) -> None:
    adapters = [make_tiny_adapter(models[0], tmp_path / f"adapter{seed}", seed) for seed in (1, 2, 3)]
    policy = PolicySettings(name="math", lora=LoraSettings(rank=4))
    vllm = VllmServer.start(SETTINGS, models[0], "base", home=tmp_path / "home", lora_rank=4)
    try:
        answers = {"v0000": answer(vllm, model="base")}
        for number, adapter in enumerate(adapters, 1):
            version = f"v{number:04d}"
            loaded = load_lora(vllm, "math", version, adapter)
            gone = unload_older(vllm, "math", version)
            answers[version] = answer(vllm, model=loaded.model)
            assert loaded.model == route(policy, [vllm], version)["model"] == f"math-{version}"
        assert len({tuple(logprobs) for _, logprobs in answers.values()}) == 4
        assert gone == ["math-v0001"]
        assert answer(vllm, model="math-v0002") == answers["v0002"]
        with vllm.client() as client:
            assert client.models() == ["base", "math-v0002", "math-v0003"]
        assert load_lora(vllm, "math", "v0003", adapters[2]).seconds.get("load") is None
        with pytest.raises(RedeployFailed, match="older adapters serve on"):
            load_lora(vllm, "math", "v0004", tmp_path / "nothing")
        assert route(policy, [vllm], "v0000")["model"] == "base"
        os.kill(vllm.state.pid, signal.SIGKILL)
        restart_with(vllm, models[0], "v0000")
        assert answer(vllm, model="math-v0003") == answers["v0003"]
    finally:
        vllm.stop()
    assert group_members(vllm.state.pid, vllm.state.started) == []


def test_an_early_exit_names_the_cause_and_the_log_and_leaves_nothing(models: list[Path], tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"extra_args": ["--no-such-argument"]})
    with pytest.raises(VllmError, match=r"vllm\.extra_args.*no-such-argument.*vllm\.log"):
        VllmServer.start(settings, models[0], "policy", home=tmp_path)
    assert VllmServer.find(tmp_path) is None
    assert not (tmp_path / "services/vllm.json").exists()


def test_kill_9_is_noticed_and_leaves_no_engine_behind(vllm: VllmServer) -> None:
    state = vllm.state
    os.kill(state.pid, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while group_members(state.pid, state.started) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert group_members(state.pid, state.started) == []
    assert not vllm.alive()
    assert VllmServer.find(vllm.home) is None
    with pytest.raises(VllmError, match=r"is gone; see .*vllm\.log"):
        vllm.check()
    vllm.stop()
    assert not vllm.socket.parent.exists()


def transformers_logprobs(model: Path) -> list[float]:
    """Logprobs of the check prompt's tokens, computed without vLLM."""
    import torch
    from transformers import AutoModelForCausalLM

    ids = torch.tensor([CHECK_TOKENS])
    with torch.no_grad():
        logprobs = torch.log_softmax(AutoModelForCausalLM.from_pretrained(model)(ids).logits[0, :-1], -1)
    return logprobs.gather(-1, ids[0, 1:, None])[:, 0].tolist()
