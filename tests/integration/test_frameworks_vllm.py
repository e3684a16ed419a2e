"""An example of examples/frameworks with the real vLLM and a real model behind the gateway: SmolLM2-135M-Instruct.

It is too small to call tools; what counts is that every call of an unmodified agent has the ids that were sampled.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_core.config import GatewaySettings, VllmSettings
from lightning_core.doctor.trial import try_agent
from lightning_core.gateway.handle import GatewayHandle
from lightning_core.lake import catalog
from lightning_core.policies.model import resolve_model
from lightning_core.policies.vllm import VllmServer
from tests.frameworks.cases import CASES, TASKS

pytestmark = pytest.mark.extra

SETTINGS = VllmSettings(
    kv_cache_gb=0.25,
    max_model_len=1024,
    max_num_seqs=4,
    dtype="float32",
    extra_args=["--enable-auto-tool-choice", "--tool-call-parser", "hermes"],
)


def test_calls_of_a_real_framework_to_a_real_model_have_the_ids_that_were_sampled(tmp_path: Path) -> None:
    model = resolve_model("HuggingFaceTB/SmolLM2-135M-Instruct").path
    vllm = VllmServer.start(SETTINGS, model, "policy", home=tmp_path)
    try:
        server = GatewayHandle.start(tmp_path, GatewaySettings(grpc_port=None), tmp_path / "log")
        try:
            policy = {"upstream": vllm.upstream, "model": "policy", "version": "v0000"}
            sampling = {"temperature": 1.0, "top_p": 1.0, "max_tokens": 32}
            server.set_routes({"policies": {"policy": policy | {"sampling": sampling}}})
            trial = try_agent(server, CASES["openai_agents_openinference"].settings(tmp_path), TASKS)
        finally:
            server.stop()
    finally:
        vllm.stop()
    assert {result.status for result in trial.results.values()} == {"ok"}, trial.results
    with catalog.connect(trial.epoch.lake.root) as con:
        calls = con.sql(
            """
            SELECT policy_calls.agent, policy_calls.left_out, prompt_ids, response_ids, response_logprobs, spans.input_tokens,
                spans.output_tokens
            FROM policy_calls JOIN spans USING (rollout_id, attempt_id, response_id)
            WHERE spans.policy = 'policy'
            """
        ).fetchall()
    assert {agent for agent, *_ in calls} == {"planner", "executor"}
    for agent, left_out, prompt, response, logprobs, input_tokens, output_tokens in calls:
        assert (len(prompt), len(response), len(logprobs)) == (input_tokens, output_tokens, output_tokens)
        assert left_out == (None if agent == "executor" else "agent_not_matched"), left_out
