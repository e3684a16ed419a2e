"""Streams within bounds, and the environment of an attempt."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from lightning_core.agents import capture as module
from lightning_core.agents.attempt import AttemptSpec, jsonable
from lightning_core.agents.capture import Capture, Stream
from lightning_core.agents.environment import attempt_environment, base_environment
from lightning_core.agents.runner import new_attempt_id
from lightning_core.config import AgentSettings


@given(st.lists(st.binary(max_size=30), max_size=30), st.integers(1, 40), st.integers(1, 40))
def test_a_capture_keeps_both_ends_whatever_the_pieces(pieces: list[bytes], head: int, tail: int) -> None:
    before = module.HEAD_BYTES, module.TAIL_BYTES
    module.HEAD_BYTES, module.TAIL_BYTES = head, tail
    try:
        kept = Capture()
        for piece in pieces:
            kept.add(piece)
        everything = b"".join(pieces)
        assert kept.total == len(everything)
        assert kept.left_out == max(0, len(everything) - head - tail)
        if kept.left_out:
            assert kept.end() == everything[-tail:]
            assert bytes(kept._head) == everything[:head]
        else:
            assert kept.end() == everything
    finally:
        module.HEAD_BYTES, module.TAIL_BYTES = before


def test_memory_stays_within_bounds() -> None:
    kept = Capture()
    for _ in range(2000):
        kept.add(b"x" * 65536)
    assert kept.total == 2000 * 65536
    assert sum(map(len, kept._tail)) < 2 * module.TAIL_BYTES


def test_the_last_line_says_when_its_beginning_is_missing() -> None:
    kept = Capture()
    kept.add(b"a\n" + b"x" * 600_000)
    assert kept.last_line()[1]
    kept.add(b"\n  42  \n\n")
    assert kept.last_line() == ("42", False)


def test_a_stream_is_read_to_its_end_which_is_that_of_its_last_writer() -> None:
    with Stream(1_000_000) as stream:
        other = os.dup(stream.given)
        os.write(stream.given, b"first ")
        stream.hand_over()
        assert stream.read() and stream.read()
        os.write(other, b"second")
        os.close(other)
        assert stream.read() and not stream.read()
        assert stream.text() == "first second"


def test_resource_attributes_of_the_user_are_kept_and_scope_is_ours() -> None:
    outer = {
        "OTEL_RESOURCE_ATTRIBUTES": "service.name=mine,lightning.rollout_id=old,lightning.proof=old,team=a%2Cb",
        "PATH": "/bin",
        "X": "1",
    }
    base = base_environment(AgentSettings(command="x", environment={"NO_PROXY": "corp"}), outer)
    where = "http://127.0.0.1:1/x/"
    spec = AttemptSpec("r", 1, "train", "r/1", new_attempt_id(), "g", "t", {}, where, "a b", "c d", "1.ab")
    own = attempt_environment(base, spec, Path("task.json"), "planner")
    assert own["OTEL_RESOURCE_ATTRIBUTES"].split(",") == [
        "service.name=mine",
        "team=a%2Cb",
        "lightning.rollout_id=r%2F1",
        f"lightning.attempt_id={spec.attempt_id}",
        "lightning.proof=1.ab",
    ]
    assert "OTEL_SERVICE_NAME" not in base
    assert "X" not in base
    assert base["NO_PROXY"].split(",") == ["corp", "127.0.0.1", "localhost", "::1"]
    assert own["OPENAI_BASE_URL"] == "http://127.0.0.1:1/x/v1"
    assert own["OTEL_EXPORTER_OTLP_HEADERS"] == "authorization=Bearer%20a%20b"
    assert own["LIGHTNING_MODEL"] == "planner"
    assert not [secret for secret in ("a b", "c d", "1.ab") if secret in repr(spec)]
    assert not [value for value in own.values() if "c d" in value or "c%20d" in value]


def test_outputs_become_json_or_say_why_not() -> None:
    assert jsonable({"a": (1, 2)}) == ({"a": [1, 2]}, None)
    shown, note = jsonable({1, 2})
    assert (shown, "repr" in (note or "")) == ("{1, 2}", True)
    loop: list[object] = []
    loop.append(loop)
    assert jsonable(loop)[0] == "[[...]]"
    assert len(jsonable("x" * 2_000_000)[0]) == 1_000_000
