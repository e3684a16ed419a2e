"""bench/gateway.py's side with a vLLM of one's own: what it sends and counts, at a Unix socket."""

from __future__ import annotations

from pathlib import Path

from bench.gateway import gateway
from bench.gateway_vllm import CONCURRENT, TOKENS, tokens_a_second
from tests.gateway_rig import rig


def test_both_sides_send_the_same_flags_and_no_prompt_twice(tmp_path: Path) -> None:
    with rig(tmp_path, unix=True) as made:
        with gateway(tmp_path / "beside", made.upstream, "served-name") as (ours, _):
            pairs = tokens_a_second(ours, made.upstream, "served-name", rounds=2)
        requests = made.canned.requests
    assert len(pairs) == 2 and all(mine > 0 and bare > 0 for mine, bare in pairs)
    assert len(requests) == 3 * 2 * CONCURRENT and {request["model"] for request in requests} == {"served-name"}
    assert len({request["messages"][0]["content"] for request in requests}) == len(requests)
    for key, value in {"logprobs": True, "return_token_ids": True, "max_tokens": TOKENS, "temperature": 1.0}.items():
        assert {request[key] for request in requests} == {value}
