"""Messages of a call as they are shown, whatever an agent's telemetry has in their place."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_core.lake.conversation import messages_of
from tests import any_json

CALLS = st.lists(st.fixed_dictionaries({"function": any_json.values}) | any_json.values, max_size=2)
OTHERS = dict.fromkeys(("role", "content", "parts", "name", "tool_call_id"), any_json.values)
MESSAGES = st.fixed_dictionaries({"tool_calls": CALLS | any_json.values}, optional=OTHERS)


@pytest.mark.parametrize(
    ("call", "shown"),
    [
        ({"function": {"name": "add", "arguments": "{}"}}, [("add", "{}")]),
        ({"name": "add", "arguments": {"a": 1}}, [("add", '{"a": 1}')]),
        ({"function": None, "name": "add", "arguments": "1"}, [("add", "1")]),
        ({"function": "add"}, [("?", "")]),
        ("add", [("?", "")]),
    ],
)
def test_a_tool_call_is_shown_however_it_is_recorded(call: Any, shown: list[tuple[str, str]]) -> None:
    (message,) = messages_of(json.dumps([{"role": "assistant", "tool_calls": [call]}]))
    assert message.tool_calls == shown


@given(st.lists(MESSAGES | any_json.values, max_size=3))
def test_every_entry_of_a_list_is_a_message(entries: list[Any]) -> None:
    assert len(messages_of(json.dumps(entries))) == len(entries)
