"""The ids of a span, decoded again, are what the client got: text cut inside characters, special tokens, tool calls.

The upstream streams a tokenizer's ids as vLLM does: an incremental decoder gives a chunk's text, a chunk of tokens that
complete no character or belong to a tool call's markup has an empty delta, special tokens have no text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.decoders import DecodeStream

from lightning_core import names
from tests.gateway_rig import Rig, attributes, client, float32, int32, rig
from tests.tiny_model import END_OF_TEXT, TURN_END, TURN_START, make_tiny_tokenizer

MESSAGES: Any = [{"role": "user", "content": "hi"}]
TOKENIZER = make_tiny_tokenizer()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with rig(tmp_path_factory.mktemp("home")) as made:
        yield made


def markup(name: str, arguments: str) -> str:
    return f"<tool_call>{name} {arguments}</tool_call>"


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<"), min_size=1, max_size=12)
arguments = st.dictionaries(texts, texts | st.integers(), max_size=2).map(lambda d: json.dumps(d, ensure_ascii=False))
parts = st.lists(
    st.tuples(st.just("text"), texts | st.sampled_from(["👩‍👩‍👧", "日本語 12*7", "é\n\n"]))
    | st.tuples(st.just("special"), st.sampled_from([END_OF_TEXT, TURN_START]))
    | st.tuples(st.just("tool"), arguments),
    max_size=6,
)


def script(said: list[tuple[str, str]], sizes: list[int]) -> list[tuple[list[int], dict[str, Any]]]:
    """What vLLM would stream: chunks of as many tokens as `sizes` says, in turn."""
    decoder = DecodeStream(skip_special_tokens=True)
    chunks: list[tuple[list[int], dict[str, Any]]] = []
    calls = 0
    for what, value in said:
        text = markup("calc", value) if what == "tool" else value
        ids = TOKENIZER.encode(text, add_special_tokens=False)
        at = 0
        while at < len(ids):
            some = ids[at : at + sizes[len(chunks) % len(sizes)]]
            at += len(some)
            new = [decoder.step(TOKENIZER.backend_tokenizer, token) for token in some]
            delta: dict[str, Any] = {}
            if what == "tool" and at == len(ids):
                call = {"id": f"call_{calls}", "type": "function", "function": {"name": "calc", "arguments": value}}
                delta, calls = {"tool_calls": [{"index": calls, **call}]}, calls + 1
            elif what == "text" and (content := "".join(piece or "" for piece in new)):
                delta = {"content": content}
            chunks.append((some, delta))
    return [*chunks, ([TOKENIZER.convert_tokens_to_ids(TURN_END)], {})]


@settings(max_examples=40)
@given(said=parts, sizes=st.lists(st.integers(1, 4), min_size=1, max_size=5), stream=st.booleans())
def test_the_ids_decode_to_what_was_streamed(
    server: Rig, said: list[tuple[str, str]], sizes: list[int], stream: bool
) -> None:
    server.canned.script = script(said, sizes)
    agent = client(server)
    got, in_order = "", ""
    if stream:
        for chunk in agent.chat.completions.create(model="policy", messages=MESSAGES, stream=True):
            delta = chunk.choices[0].delta
            for call in delta.tool_calls or ():
                assert call.function is not None
                in_order += markup(str(call.function.name), str(call.function.arguments))
            got, in_order = got + (delta.content or ""), in_order + (delta.content or "")
    else:
        message = agent.chat.completions.create(model="policy", messages=MESSAGES).choices[0].message
        got = message.content or ""
        assert [call.function.arguments for call in message.tool_calls or ()] == [v for w, v in said if w == "tool"]  # type: ignore[union-attr]
    sampled = [token for ids, _ in server.canned.script for token in ids]
    span = attributes(server.spans()[-1])
    assert int32(span[names.RESPONSE_TOKEN_IDS]) == sampled and len(float32(span[names.RESPONSE_LOGPROBS])) == len(
        sampled
    )
    assert names.UNTRAINABLE not in span
    decoded = TOKENIZER.decode(int32(span[names.RESPONSE_TOKEN_IDS]), skip_special_tokens=True)
    assert got == "".join(value for what, value in said if what == "text")
    assert decoded == in_order or not stream
    assert decoded == "".join(markup("calc", v) if w == "tool" else v for w, v in said if w != "special")
    kept = json.loads(span[names.GEN_AI_OUTPUT_MESSAGES])[0]
    assert (kept.get("content") or "") == got
    assert [call["function"]["arguments"] for call in kept.get("tool_calls", ())] == [v for w, v in said if w == "tool"]
