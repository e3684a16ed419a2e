"""Files of other systems as rollouts: exports of the real MLflow and Phoenix (tests/data/imports says how they were made), and bad ones."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import orjson
import pytest

from lightning_core.epoch.chat_file import read_chats
from lightning_core.epoch.imported import BadPart, Imported, Imports, import_rollouts
from lightning_core.epoch.trace_file import read_traces
from lightning_core.lake import sql
from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import LakeError
from lightning_core.otlp.from_json import trace_envelope
from lightning_core.spool.spool import Record, SpoolWriter

EXPORTS = Path(__file__).parents[1] / "data" / "imports"
OTLP = EXPORTS / "openinference_otlp.json"


class Gateway:
    """Takes what is posted into a spool, as the gateway does for who holds its secret; fails after so many posts."""

    def __init__(self, home: Path, posts: int | None = None) -> None:
        self._home, self._left = home, posts

    def post(self, body: bytes) -> None:
        import asyncio

        if self._left == 0:
            raise ConnectionError("killed")
        self._left = None if self._left is None else self._left - 1

        async def put() -> None:
            writer = SpoolWriter(self._home / "spool", 1 << 30)
            await writer.append(Record(None, None, "none", 0, "secret", body))
            writer.close()

        asyncio.run(put())


def imported(home: Path, file: Path, source: str, posts: int | None = None, run: str = "taught") -> Imports:
    def found(now_ns: int) -> Any:
        return read_chats(file, now_ns) if source == "chat" else read_traces(file, source)

    return import_rollouts(Lake(home), Gateway(home, posts), run, source, found, None, lambda done: None)  # type: ignore[arg-type]


def asked(home: Path, question: str) -> list[Any]:
    with Lake(home).connect() as con:
        return con.execute(question).fetchall()


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("mlflow", "mlflow"),
        ("phoenix", "openinference"),
        ("phoenix_otlp", "openinference"),
        ("phoenix_otlp", "otlp"),
        ("openinference_otlp", "otlp"),
    ],
)
def test_a_trace_of_a_real_system_is_a_rollout_with_its_calls_and_tools(tmp_path: Path, file: str, source: str) -> None:
    done = imported(tmp_path, EXPORTS / f"{file}.json", source)
    assert (done.rollouts, done.spans, done.dropped, done.epoch) == (1, 4, 0, 0)
    again = imported(tmp_path, EXPORTS / f"{file}.json", source)
    assert (again.rollouts, again.known, again.epoch) == (0, 1, None)
    ops = asked(tmp_path, "SELECT op, count(*) FROM spans GROUP BY ALL ORDER BY ALL")
    assert ops == [("agent", 1), ("llm", 2), ("reward", 1), ("rollout", 1), ("tool", 1)]
    [root] = asked(tmp_path, "SELECT run, epoch, outcome, task, output FROM spans WHERE op = 'rollout'")
    question = '{"question": "What is 12*7?"}' if source == "mlflow" else '"What is 12*7?"'
    assert root == ("taught", 0, "ok", question, '"84"' if source == "mlflow" else "84")
    [tool] = asked(tmp_path, "SELECT tool_name, tool_arguments, tool_result FROM spans WHERE op = 'tool'")
    assert tool == ("calc", '{"expression": "12*7"}', "84")
    assert asked(tmp_path, "SELECT reward, reward_name FROM spans WHERE op = 'reward'") == [
        (1.0, "correctness" if source == "mlflow" else "reward")
    ]
    with Lake(tmp_path).connect() as con:
        con.execute("CREATE TABLE counted_attempts AS SELECT DISTINCT rollout_id, attempt_id FROM spans")
        con.execute("CREATE TABLE tokenizing AS SELECT 'policy' AS policy, true AS every")
        rows = con.execute(
            f"SELECT asked, answered, tools FROM ({sql.text('triplets/foreign_calls')}) ORDER BY len(asked)"
        ).fetchall()
    said = [[m["role"] for m in json.loads(row[0])] for row in rows]
    first = ["user"] if source == "mlflow" else ["system", "user"]
    assert said == [first, [*first, "assistant", "tool"]]
    call = json.loads(rows[0][1])["tool_calls"][0]
    assert (call["id"], call["function"]) == ("c1", {"name": "calc", "arguments": '{"expression": "12*7"}'})
    assert json.loads(rows[1][0])[-1]["tool_call_id"] == "c1" and json.loads(rows[1][1])["content"] == "84"
    assert [t["function"]["name"] for t in json.loads(rows[0][2])] == ["calc"]


def test_otlp_comes_whole_a_request_a_line_or_in_protobuf(tmp_path: Path) -> None:
    whole = json.loads(OTLP.read_text())
    lines, binary = tmp_path / "lines.jsonl", tmp_path / "trace.pb"
    spans = whole["resourceSpans"][0]["scopeSpans"]
    each = [{"resourceSpans": [{"scopeSpans": [group]}]} for group in spans]
    lines.write_text("\n".join([*(json.dumps(one) for one in each), "{oops", '{"resourceSpans": 3}']) + "\n")
    binary.write_bytes(trace_envelope(whole)[0].SerializeToString())
    for file in (OTLP, binary):
        assert [one.spans for one in read_traces(file, "otlp") if isinstance(one, Imported)] == [4]
    found = list(read_traces(lines, "otlp"))
    bad = [one for one in found if isinstance(one, BadPart)]
    assert [one.where for one in bad] == [f"{lines}:{len(each) + 1}", f"{lines}:{len(each) + 2}"]
    assert all('it reads {"resourceSpans"' in one.why for one in bad)
    [rollout] = [one for one in found if isinstance(one, Imported)]
    assert rollout.spans == 4, "the spans of a trace are one rollout, whichever line they are on"


def test_an_empty_page_of_spans_and_a_trace_without_spans_are_no_rollouts(tmp_path: Path) -> None:
    page, lines = tmp_path / "page.json", tmp_path / "traces.jsonl"
    page.write_text('{"data": [], "next_cursor": null}')
    assert list(read_traces(page, "openinference")) == []
    feedback = {"assessments": [{"assessment_name": "right", "feedback": {"value": 1}}]}
    empty = {"info": feedback, "data": {"spans": []}}
    whole = json.loads((EXPORTS / "mlflow.json").read_text())
    lines.write_text(json.dumps(empty) + "\n" + json.dumps(whole) + "\n")
    [rollout] = read_traces(lines, "mlflow")
    assert isinstance(rollout, Imported) and rollout.spans == 4


@pytest.mark.parametrize("source", ["otlp", "openinference", "mlflow"])
def test_a_file_of_another_kind_is_named_with_what_is_read(tmp_path: Path, source: str) -> None:
    file = tmp_path / "chats.jsonl"
    file.write_text('{"messages": []}\n[1]\n')
    found = list(read_traces(file, source))
    assert [type(one) for one in found] == [BadPart, BadPart]
    assert all(f"no traces of {source}" in one.why for one in found if isinstance(one, BadPart))


def test_no_file_says_what_only_the_gateway_or_its_holder_may(tmp_path: Path) -> None:
    export = json.loads(OTLP.read_text())
    span = export["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
    span["name"] = "rollout"
    for key, value in (("run", "mine"), ("policy", "policy"), ("reward", "0.5"), ("reward.source", "grader")):
        span["attributes"].append({"key": f"lightning.{key}", "value": {"stringValue": value}})
    export["resourceSpans"][0]["resource"]["attributes"].append(
        {"key": "lightning.rollout_id", "value": {"stringValue": "mine.0"}}
    )
    file = tmp_path / "posing.json"
    file.write_text(json.dumps(export))
    imported(tmp_path / "home", file, "otlp")
    assert asked(
        tmp_path / "home", "SELECT DISTINCT run, starts_with(rollout_id, 'trace-') FROM spans WHERE op = 'rollout'"
    ) == [("taught", True)]
    assert asked(
        tmp_path / "home", "SELECT count(*) FROM spans WHERE policy IS NOT NULL OR reward_source = 'grader'"
    ) == [(0,)]
    assert asked(tmp_path / "home", "SELECT count(*) FROM spans WHERE reward = 0.5") == [(1,)], "a reward is one"


def chats(file: Path, number: int, size: int = 20) -> Path:
    with file.open("wb") as lines:
        for n in range(number):
            asked = {"role": "user", "content": f"{n} " + "x" * size}
            lines.write(orjson.dumps({"messages": [asked, {"role": "assistant", "content": "y"}]}) + b"\n")
    return file


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("[]", "no list `messages`"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "no reply to learn from"),
        ('{"messages": [{"role": "assistant", "content": "a"}]}', "no reply to learn from"),
        (
            '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]}',
            "of a weight above 0",
        ),
        ('{"messages": [{"role": "function", "content": "a"}]}', "messages[0]: its role is none of system"),
        ('{"messages": [{"role": "assistant", "function_call": {}}]}', "write `tool_calls`"),
        ('{"messages": [{"role": "assistant", "tool_calls": [{}]}]}', "a tool call without `function.name`"),
        (
            '{"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "x"}}]}]}',
            "the arguments of f",
        ),
        ('{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', "only texts are trained on"),
        ('{"messages": [{"role": "user", "content": "a"}], "tools": "calc"}', "`tools` is no list"),
    ],
)
def test_a_bad_line_is_named_with_the_remedy(tmp_path: Path, line: str, why: str) -> None:
    file = chats(tmp_path / "chats.jsonl", 1)
    file.write_text(file.read_text() + line + "\n")
    good, bad = read_chats(file, 0)
    assert isinstance(good, Imported) and isinstance(bad, BadPart)
    assert bad.where == f"{file}:2" and why in bad.why


def test_chats_are_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = chats(tmp_path / "chats.jsonl", 6_000, 10_000)
    posted = []
    monkeypatch.setattr(Gateway, "post", lambda self, body: posted.append(len(body)))
    tracemalloc.start()
    done = imported(tmp_path / "home", file, "chat")
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert done.rollouts == 6_000 and sum(posted) > file.stat().st_size
    assert max(posted) < 6 << 20 and most < 0.5 * file.stat().st_size


def test_an_import_that_was_killed_begins_anew_and_leaves_nothing_twice(tmp_path: Path) -> None:
    file = chats(tmp_path / "chats.jsonl", 500, 20_000)
    with pytest.raises(ConnectionError):
        imported(tmp_path / "home", file, "chat", posts=1)
    done = imported(tmp_path / "home", file, "chat")
    assert (done.rollouts, done.epoch) == (500, 0)
    manifest = Lake(tmp_path / "home").manifests.epoch("taught", 0)
    assert manifest is not None and len(manifest.planned) == 500
    with Lake(tmp_path / "home").connect(manifest.span_range) as con:
        assert con.execute("SELECT count(*), count(DISTINCT rollout_id) FROM spans WHERE op = 'llm'").fetchall() == [
            (500, 500)
        ]


def test_what_is_new_becomes_another_epoch_and_a_run_at_work_is_refused(tmp_path: Path) -> None:
    home, file = tmp_path / "home", chats(tmp_path / "chats.jsonl", 2)
    imported(home, file, "chat")
    done = imported(home, chats(tmp_path / "more.jsonl", 3), "chat")
    assert (done.epoch, done.rollouts, done.known) == (1, 1, 2)
    Lake(home).open_epoch("busy", 0, "train", {"policy": "v0000"})
    with pytest.raises(LakeError, match="epoch 0 of run 'busy' is not finished"):
        imported(home, file, "chat", run="busy")


def test_a_chat_of_many_turns_is_sent_in_requests_that_the_gateway_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn = [{"role": "user", "content": "x" * 30_000}, {"role": "assistant", "content": "y"}]
    (tmp_path / "chats.jsonl").write_text(json.dumps({"messages": turn * 40}) + "\n")
    sizes: list[int] = []
    post = Gateway.post

    def noted(gateway: Gateway, body: bytes) -> None:
        sizes.append(len(body))
        post(gateway, body)

    monkeypatch.setattr(Gateway, "post", noted)
    done = imported(tmp_path, tmp_path / "chats.jsonl", "chat")
    assert (done.rollouts, done.spans) == (1, 40)
    assert sum(sizes) > 20 << 20 and max(sizes) < 10 << 20
    assert asked(tmp_path, "SELECT op, count(*) FROM spans GROUP BY ALL ORDER BY ALL") == [
        ("llm", 40), ("reward", 1), ("rollout", 1),
    ]  # fmt: skip


@pytest.mark.parametrize("calls", [5, "x", {"a": 1}, True])
def test_tool_calls_that_are_no_list_are_a_bad_line(tmp_path: Path, calls: Any) -> None:
    chat = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "tool_calls": calls}]}
    (tmp_path / "chats.jsonl").write_text(json.dumps(chat) + "\n")
    [bad] = read_chats(tmp_path / "chats.jsonl", 0)
    assert isinstance(bad, BadPart) and "`tool_calls` is no list" in bad.why


def test_a_chat_that_no_policy_could_read_is_left_out_and_the_next_is_read(tmp_path: Path) -> None:
    chats = [[{"role": "user", "content": "x" * size}, {"role": "assistant", "content": "y"}] for size in (5 << 20, 3)]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    bad, good = read_chats(tmp_path / "chats.jsonl", 0)
    assert isinstance(bad, BadPart) and bad.where.endswith(":1") and "longer than 4 MiB" in bad.why
    assert isinstance(good, Imported)
