"""`POST /v1/rollouts`: an agent elsewhere opens a rollout, works in it and ends it; the spans that say so are the gateway's alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from click.testing import CliRunner

from lightning_core import names
from lightning_core.client import SpanData, new_span_id, new_trace_id, post_spans
from lightning_core.epoch.decoding import ingest
from lightning_core.gateway.attempt_tokens import LIFETIME_S
from lightning_core.lake import catalog
from lightning_core.lake.lake import Lake
from lightning_flows.flows.cli import main
from tests.docs_blocks import ROOT, blocks
from tests.gateway_rig import Rig, client, rig

TASK = {"question": "1 + 1", "more": [None, 2.5]}
CHAT = {"model": "policy", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with rig(tmp_path_factory.mktemp("home")) as made:
        yield made


@pytest.fixture(scope="module")
def key(server: Rig) -> str:
    return server.handle.mint_opener(60)


def post(server: Rig, path: str, token: str, body: Any = None, **content: Any) -> httpx.Response:
    given = content if body is None else {"json": body}
    return httpx.post(server.handle.url + path, headers={"Authorization": f"Bearer {token}"}, **given)


def opened(server: Rig, key: str, **asked: Any) -> dict[str, Any]:
    answer = post(server, "/v1/rollouts", key, asked)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def asked_of(server: Rig, question: str, rollout: str) -> list[tuple[Any, ...]]:
    """Rows of the catalog about this rollout."""
    lake = Lake(server.home)
    ingest(lake, None)
    with catalog.connect(lake.root) as con:
        return con.execute(question, [rollout]).fetchall()


def test_a_rollout_is_opened_used_and_ended(server: Rig, key: str) -> None:
    mine = opened(server, key, task=TASK, task_id="t1", group="g")
    assert mine["path"] == f"/rollouts/{mine['rollout_id']}/attempts/{mine['attempt_id']}"
    assert LIFETIME_S - 60 < mine["expires"] - time.time() <= LIFETIME_S
    assert post(server, mine["path"] + "/v1/chat/completions", mine["token"], CHAT).status_code == 200
    assert post(server, mine["path"] + "/end", mine["token"], {"output": {"answer": 2}}).json() == {}
    found = asked_of(
        server,
        "SELECT op, sender, scope, task_id, group_id, task, output, outcome, error, attributes['lightning.opener'] "
        "FROM spans WHERE rollout_id = ? ORDER BY record_offset",
        mine["rollout_id"],
    )
    assert [row[:3] for row in found] == [(op, "gateway", "path") for op in ("rollout.opened", "llm", "rollout.ended")]
    assert found[0][3:9] == ("t1", "g", '{"question":"1 + 1","more":[null,2.5]}', None, None, None)
    assert len(found[0][9]) == 16
    assert found[2][3:9] == (None, None, None, '{"answer":2}', "ok", None)


def test_the_secret_opens_too_and_nothing_has_to_be_given(server: Rig) -> None:
    bare = post(server, "/v1/rollouts", server.handle.secret, content=b"")
    mine = bare.json()
    assert bare.status_code == 200
    for _ in range(2):  # the same again is no error: an answer may be lost
        ended = post(server, mine["path"] + "/end", mine["token"], {"error": "no luck"})
        assert (ended.status_code, ended.json()) == (200, {})
    found = asked_of(server, "SELECT op, outcome, error FROM spans WHERE rollout_id = ?", mine["rollout_id"])
    assert sorted(found, key=str) == [("rollout.ended", "error", "no luck")] * 2 + [("rollout.opened", None, None)]


def test_an_opener_key_opens_rollouts_and_nothing_else(server: Rig, key: str) -> None:
    mine = opened(server, key)
    for path in ("/v1/chat/completions", mine["path"] + "/v1/chat/completions", "/v1/traces", mine["path"] + "/end"):
        refused = post(server, path, key, CHAT)
        assert (refused.status_code, "opener key" in refused.text) == (401, True), path
    assert post(server, "/admin/seal", key, {}).status_code == 401
    assert post(server, "/v1/rollouts", mine["token"], {}).status_code == 401
    assert post(server, "/v1/rollouts", key[:-2] + ("AA" if key[-2:] != "AA" else "BB"), {}).status_code == 401
    assert httpx.post(server.handle.url + "/v1/rollouts", json={}).status_code == 401


def test_keys_and_tokens_end_and_a_key_can_be_revoked(server: Rig) -> None:
    assert post(server, "/v1/rollouts", server.handle.mint_opener(-1), {}).status_code == 401
    key = server.handle.mint_opener(60)
    mine, short = opened(server, key), opened(server, key, ttl_s=0.001)
    assert post(server, short["path"] + "/end", short["token"], {}).status_code == 401
    server.handle.revoke_opener(key)
    assert post(server, "/v1/rollouts", key, {}).status_code == 401
    assert post(server, mine["path"] + "/end", mine["token"], {}).status_code == 200
    with pytest.raises(ValueError, match="no opener key"):
        server.handle.revoke_opener(mine["token"])


def test_an_attempt_that_a_run_rolls_out_does_not_end_itself(server: Rig) -> None:
    token = server.handle.mint("r.1", "a1", "train")
    refused = post(server, "/rollouts/r.1/attempts/a1/end", token, {"output": 1})
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "not_opened")
    assert client(server).models.list().data


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("/v1/rollouts", b"{", "no JSON"),
        ("/v1/rollouts", b"[]", "no JSON object"),
        ("/v1/rollouts", b'{"tsak": 1}', "'tsak' is no field here; there are task, task_id, group, ttl_s"),
        ("/v1/rollouts", b'{"task_id": 1}', "`task_id` has to be a text"),
        ("/v1/rollouts", b'{"group": ""}', "`group` has to be a text of 1 to 1,000 characters"),
        ("/v1/rollouts", b'{"ttl_s": 2592001}', "`ttl_s` has to be a number of seconds above 0, at most 2592000"),
        ("/v1/rollouts", b'{"ttl_s": true}', "`ttl_s` has to be"),
        ("end", b'{"status": "infrastructure"}', "`status` has to be one of ok, error, timeout"),
        ("end", b'{"error": {"a": 1}}', "`error` has to be a text"),
        ("end", b'{"status": "ok", "error": "x"}', "leave one of the two out"),
        ("end", b'{"task": 1}', "'task' is no field here; there are output, status, error"),
    ],
)
def test_bad_input_is_a_400_that_says_what_to_do(server: Rig, key: str, path: str, body: bytes, says: str) -> None:
    mine = opened(server, key)
    where, token = (mine["path"] + "/end", mine["token"]) if path == "end" else (path, key)
    refused = post(server, where, token, content=body)
    assert (refused.status_code, says in refused.json()["error"]["message"]) == (400, True), refused.text


def test_spans_that_a_client_forges_change_no_task_and_no_end(server: Rig, key: str) -> None:
    mine = opened(server, key, task="real", task_id="t", group="g")
    now = time.time_ns()
    claims = {
        names.TASK: '"easy"',
        names.TASK_ID: "other",
        names.GROUP_ID: "other",
        names.OUTPUT: '"good"',
        names.STATUS: "ok",
    }
    forged = [
        SpanData(name, now, now, new_trace_id(), new_span_id(), attributes=claims)
        for name in (names.SPAN_ROLLOUT_OPENED, names.SPAN_ROLLOUT_ENDED)
    ]
    url = server.handle.url + mine["path"]
    post_spans(url, {"Authorization": f"Bearer {mine['token']}"}, {}, forged)
    resource = {names.ROLLOUT_ID: mine["rollout_id"], names.ATTEMPT_ID: "1", names.PROOF: mine["proof"]}
    proven = [SpanData(names.SPAN_ROLLOUT_ENDED, now, now, new_trace_id(), new_span_id(), attributes=claims)]
    post_spans(server.handle.url, {}, resource, proven)
    question = (
        "SELECT op, sender, scope, task, task_id, group_id, output, outcome, refused FROM spans WHERE rollout_id = ? "
        "ORDER BY record_offset, name DESC"
    )
    nothing = (None,) * 5
    assert asked_of(server, question, mine["rollout_id"]) == [
        ("rollout.opened", "gateway", "path", '"real"', "t", "g", None, None, None),
        ("other", "attempt", "path", *nothing, names.TASK),
        ("other", "attempt", "path", *nothing, names.TASK),
        ("other", "attempt", "proof", *nothing, names.TASK),
    ]


def test_a_body_past_the_limit_is_refused(tmp_path: Any) -> None:
    with rig(tmp_path, max_body_mb=1) as small:
        key = small.handle.mint_opener(60)
        assert post(small, "/v1/rollouts", key, {"task": "x" * 1_100_000}).status_code == 413
        mine = opened(small, key, task="x" * 900_000)
        assert post(small, mine["path"] + "/end", mine["token"], {"output": "x" * 1_100_000}).status_code == 413


@pytest.mark.skipif(shutil.which("curl") is None or shutil.which("openssl") is None, reason="the page uses both")
def test_the_commands_of_the_page_work(server: Rig, key: str) -> None:
    page = [block.text for block in blocks(ROOT / "docs" / "production.md") if block.language == "sh"]
    opening, ending, reward = (text for text in page if "curl" in text)
    names_them = 'path=$(echo "$said" | grep -o "/rollouts/[^\\"]*") && token=$(echo "$said" | grep -o "lf-[^\\"]*")'
    lines = ["set -e", f"said=$({opening.strip()})", names_them, ending, reward, "echo $path"]
    done = subprocess.run(
        ["bash", "-c", "\n".join(lines)],
        env=os.environ | {"GATEWAY": server.handle.url, "KEY": key},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    rollout = done.stdout.splitlines()[-1].split("/")[2]
    question = "SELECT op, task, output, reward FROM spans WHERE rollout_id = ? ORDER BY record_offset"
    assert asked_of(server, question, rollout) == [
        ("rollout.opened", '{"text":"…"}', None, None),
        ("rollout.ended", None, '{"answer":"…"}', None),
        ("reward", None, None, 1.0),
    ]


def command(server: Rig, *arguments: str) -> str:
    """What `lightning-flows token` prints, on stdout and stderr."""
    done = CliRunner().invoke(main, ["token", "--home", str(server.home), *arguments])
    assert done.exit_code == 0, done.output
    return done.output.strip()


def test_the_command_prints_an_environment_in_which_an_agent_works(server: Rig) -> None:
    printed = command(server, "--task", '{"q": 1}', "--group", "g", "--ttl", "60")
    environment = dict(line.split("=", 1) for line in printed.splitlines())
    calls = openai.OpenAI(base_url=environment["OPENAI_BASE_URL"], api_key=environment["OPENAI_API_KEY"])
    assert calls.models.list().data
    code = "from lightning_core.client import emit_reward; emit_reward(0.5)"
    subprocess.run([sys.executable, "-c", code], env=os.environ | environment, check=True, timeout=60)
    rollout = environment["OPENAI_BASE_URL"].split("/")[4]
    question = "SELECT op, sender, task, group_id, reward FROM spans WHERE rollout_id = ? ORDER BY record_offset"
    assert asked_of(server, question, rollout) == [
        ("rollout.opened", "gateway", '{"q":1}', "g", None),
        ("reward", "attempt", None, None, 0.5),
    ]
    assert command(server, "--revoke", environment["OPENAI_API_KEY"]) == f"revoked: rollout {rollout}, attempt 1"
    with pytest.raises(openai.AuthenticationError):
        calls.models.list()


def test_the_command_names_the_address_that_it_is_given(server: Rig) -> None:
    lines = command(server, "--url", "https://gw.example.com/lf/").splitlines()
    assert lines[0].startswith("OPENAI_BASE_URL=https://gw.example.com/lf/rollouts/opened-")
    assert lines[0].endswith("/attempts/1/v1")


def test_the_command_makes_and_revokes_opener_keys(server: Rig) -> None:
    key = command(server, "--opener")
    assert post(server, "/v1/rollouts", key, {}).status_code == 200
    command(server, "--revoke", key)
    assert post(server, "/v1/rollouts", key, {}).status_code == 401


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--task", "{a"], "--task: no JSON"),
        (["--group", ""], "`group` has to be a text"),
        (["--ttl", "2592001"], "`ttl_s` has to be a number of seconds above 0"),
        (["--revoke", "lf-x"], "no token of this gateway"),
        (["--revoke", "lfo-x"], "no opener key of this gateway"),
        (["--opener", "--group", "g"], "exclude each other"),
        (["--home", "/nowhere"], "/nowhere: no gateway runs there; start one with `lightning-flows serve"),
    ],
)
def test_what_the_command_cannot_do_is_one_line_with_the_remedy(server: Rig, arguments: list[str], says: str) -> None:
    done = CliRunner().invoke(main, ["token", "--home", str(server.home), *arguments])
    assert done.exit_code != 0
    assert says in done.output.splitlines()[-1]
