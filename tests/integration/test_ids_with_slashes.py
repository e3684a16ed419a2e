"""Ids of rollouts hold whatever a task's id does, slashes too: from the agent over every endpoint to the lake."""

from __future__ import annotations

from pathlib import Path

import httpx
import openai
import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from lightning_core.client import SpanData, post_spans
from lightning_core.epoch.decoding import decode_spool
from lightning_core.lake.lake import Lake
from tests.gateway_rig import rig


@pytest.mark.parametrize("rollout", ["train/calculator/7.json", "a/../b//c", "50% of 2/3?#ü", "%2F"])
def test_every_door_takes_a_rollout_id_with_slashes(tmp_path: Path, rollout: str) -> None:
    with rig(tmp_path) as made:
        made.route()
        url, token = made.handle.attempt_url(rollout, "a/1"), made.handle.mint(rollout, "a/1", "train")
        headers = {"authorization": f"Bearer {token}"}
        provider = TracerProvider()
        exporter = OTLPSpanExporter(endpoint=url + "/v1/traces", headers=headers)
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        provider.get_tracer("t").start_span("from the SDK").end()
        provider.shutdown()
        post_spans(url, headers, {}, [SpanData("from the light tracer", 1, 2, "74" * 16, "73" * 8)])
        client = openai.OpenAI(base_url=url + "/v1", api_key=token, max_retries=0)
        client.chat.completions.create(model="policy", messages=[{"role": "user", "content": "hi"}])
        assert made.handle.attempt(rollout, "a/1")["calls"] == 1
        other = made.handle.attempt_url(rollout + "/x", "a/1") + "/v1/traces"
        assert httpx.post(other, content=b"", headers=headers).status_code == 401
        assert httpx.post(url + "/v1/nothing", content=b"", headers=headers).status_code == 404
        decode_spool(Lake(made.home), None)
    with Lake(tmp_path).connect() as con:
        found = con.execute("SELECT rollout_id, attempt_id, scope, count(*) FROM spans GROUP BY ALL").fetchall()
    assert found == [(rollout, "a/1", "path", 3)]
