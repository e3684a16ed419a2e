"""The client code of the OpenAI Agents SDK, LangChain and AutoGen against the gateway, unchanged, in their own environment."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lightning_core import names
from lightning_core.agents.venv import interpreter
from lightning_core.config import SettingsError
from tests import gateway_rig
from tests.canned_vllm import TEXT, CannedVllm
from tests.gateway_rig import Rig, attributes, rig

pytestmark = pytest.mark.extra

CLIENTS = Path(__file__).parents[1] / "clients"
ENVIRONMENTS = Path(__file__).parents[2] / "var" / "environments"
CALL = {"id": "call_1", "type": "function", "function": {"name": "calc", "arguments": '{"x": "12*7"}'}}


class AsksForTheTool(CannedVllm):
    """Calls the tool until it has its result."""

    @property
    def said(self) -> dict[str, Any]:
        return {} if self.requests[-1]["messages"][-1]["role"] == "tool" else {"tool_calls": [CALL]}

    @said.setter
    def said(self, _: Any) -> None:
        pass


@pytest.fixture(scope="module")
def python() -> Path:
    try:
        return interpreter(CLIENTS / "requirements.txt", ENVIRONMENTS)
    except SettingsError as error:
        pytest.skip(f"the frameworks could not be installed: {error}")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(gateway_rig, "CannedVllm", AsksForTheTool)
        with rig(tmp_path_factory.mktemp("home")) as made:
            yield made


@pytest.mark.parametrize("way", ["", "-stream", "-responses", "-responses-stream"])
@pytest.mark.parametrize("client", ["agents", "langchain", "autogen"])
def test_a_frameworks_own_client_asks_calls_its_tool_and_answers(
    server: Rig, python: Path, client: str, way: str
) -> None:
    if client == "autogen" and "responses" in way:
        pytest.skip("AutoGen's client has no Responses API")
    before = len(server.spans())
    scope = {"OPENAI_BASE_URL": server.base_url(), "OPENAI_API_KEY": server.handle.mint("r.1", "a1", "train")}
    command = [str(python), str(CLIENTS / "agent.py"), client + way]
    done = subprocess.run(command, env=os.environ | scope, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == ("Hellold" if "stream" in way else TEXT)
    spans = [attributes(span) for span in server.spans()[before:]]
    assert len(spans) >= 2
    for span in spans:
        assert span[names.API] == ("responses" if "responses" in way else "chat")
        assert names.UNTRAINABLE not in span and span[names.RESPONSE_TOKEN_IDS]
