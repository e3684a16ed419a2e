"""Which calls become one sequence, why a sequence begins, and what is left of one that is too long."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import duckdb
import pytest

from tests import sql_rig

MERGES = (
    "triplets/triplet_ends",
    "triplets/followed_calls",
    "triplets/conversations",
    "triplets/token_drifts",
    "triplets/merges",
)
SYSTEM, USER = {"role": "system", "content": "be brief"}, {"role": "user", "content": "2+2?"}


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


class Calls:
    """Calls of attempt `a` (others by name), in the order they are made."""

    def __init__(self) -> None:
        self.triplets: list[dict[str, Any]] = []
        self.rows: list[dict[str, Any]] = []
        self.spans: list[dict[str, Any]] = []

    def call(
        self,
        prompt: list[int],
        *responses: list[int],
        messages: list[dict[str, Any]] | None = None,
        replies: list[dict[str, Any]] | None = None,
        attempt: str = "a",
        policy: str = "policy",
    ) -> Calls:
        number = len(self.rows)
        scope = {"rollout_id": "r." + attempt, "attempt_id": attempt}
        for choice, response in enumerate(responses):
            logprobs = [-0.5] * len(response)
            self.triplets.append(
                scope
                | {"call_id": number, "choice": choice, "group_id": "g", "policy": policy, "policy_version": "v0000"}
                | {"prompt_tokens": len(prompt), "response_tokens": len(response)}
                | {"prompt_ids": prompt, "response_ids": response, "response_logprobs": logprobs, "reward": 1.0}
            )
        self.rows.append(scope | {"call_id": number, "record_offset": number, "record_index": 0, "policy": policy})
        text = {
            "input_messages": json.dumps(messages) if messages is not None else None,
            "output_messages": json.dumps(replies) if replies is not None else None,
        }
        self.spans.append({"record_offset": number, "record_index": 0, "prompt_ids": prompt} | text)
        return self

    def merged(self, home: Path, **changes: Any) -> duckdb.DuckDBPyConnection:
        con = sql_rig.connection(home, **changes)
        sql_rig.put(con, "triplets", sql_rig.TRIPLETS, self.triplets)
        sql_rig.put(con, "call_rows", sql_rig.ROWS, self.rows)
        columns = "call_id BIGINT, rollout_id VARCHAR, attempt_id VARCHAR, policy VARCHAR"
        sql_rig.put(con, "policy_calls", columns, self.rows)
        sql_rig.put(con, "spans", sql_rig.SPANS, self.spans)
        sql_rig.run(con, *MERGES)
        return con

    def reasons(self, home: Path, **changes: Any) -> list[str]:
        con = self.merged(home, **changes)
        return [row["reason"] for row in sql_rig.rows(con, "FROM merges ORDER BY call_id, choice")]

    def sequences(
        self, home: Path, left_out: dict[int, str] | None = None, **changes: Any
    ) -> tuple[list[dict[str, Any]], dict[str, str]]:
        """Sequences, and left-out triplets with their reasons. Every call has an advantage of its number + 1, save those
        of `left_out` (call → reason)."""
        con = self.merged(home, **changes)
        calls = [row for row in self.triplets if row["choice"] == 0]
        returns = [
            {k: row[k] for k in ("call_id", "policy", "group_id", "rollout_id", "attempt_id")}
            | {"agent": "", "step": row["call_id"], "reward": 1.0, "return": 1.0}
            for row in calls
        ]
        sql_rig.put(con, "call_returns", sql_rig.RETURNS, returns)
        con.execute("CREATE TABLE sampled_calls AS SELECT call_id, NULL::VARCHAR AS finish_reasons FROM call_returns")
        reasons = left_out or {}
        advantages = [
            row
            | {"advantage": None if row["call_id"] in reasons else row["call_id"] + 1.0}
            | {"left_out": reasons.get(row["call_id"])}
            for row in returns
        ]
        sql_rig.put(con, "advantages", sql_rig.RETURNS + ", advantage DOUBLE", advantages)
        sql_rig.run(con, "advantages/kept_triplets", "advantages/sequences")
        lost = sql_rig.rows(con, "FROM kept_triplets WHERE NOT trained ORDER BY call_id, choice")
        found = sql_rig.rows(con, "FROM sequences ORDER BY sequence_id")
        for row in found:
            assert len({len(row[n]) for n in ("token_ids", "loss_mask", "logprobs", "advantages")}) == 1
        return found, {f"{row['call_id']}.{row['choice']}": row["left_out"] for row in lost}


def test_a_call_does_not_go_on_from_one_that_differs_in_a_single_token(tmp_path: Path) -> None:
    """Forms that are filled in at one place: of two hundred tokens, one differs, and the shorter one is the history."""
    form = list(range(200))
    other = [*form[:70], -1, *form[71:]]
    calls = Calls().call(form[:150], [150]).call(other, [200]).call([*form, 200, 201], [7]).call([*other, 200, 9], [7])
    con = calls.merged(tmp_path)
    assert con.sql("SELECT call_id, earlier_call FROM followed_calls ORDER BY ALL").fetchall() == [(2, 0), (3, 1)]


def test_a_call_goes_on_from_the_longest_earlier_one(tmp_path: Path) -> None:
    calls = (
        Calls().call([1, 2], [3]).call([1, 2, 3, 4], [5]).call([1, 2, 3, 4, 5, 6], [7]).call([1, 2, 3, 4, 5, 6, 7], [8])
    )
    con = calls.merged(tmp_path)
    assert con.sql("SELECT call_id, earlier_call FROM followed_calls ORDER BY ALL").fetchall() == [
        (1, 0),
        (2, 1),
        (3, 2),
    ]
    merges = con.sql("SELECT sequence_id, place, reason, tokens FROM merges ORDER BY call_id").fetchall()
    assert merges == [
        ("0.0", 1, "first_call", 3),
        ("0.0", 2, "continues", 5),
        ("0.0", 3, "continues", 7),
        ("0.0", 4, "continues", 8),
    ]


def test_a_longer_candidate_that_only_looks_alike_does_not_hide_the_right_one(tmp_path: Path) -> None:
    """The longest earlier triplet agrees in length and in every token that is looked at first; one token is another."""
    prompt, response = list(range(40)), [7] * 12
    other = [*prompt[:5], 99, *prompt[6:]]
    calls = Calls().call(prompt, response[:6]).call(other, response).call([*prompt, *response, 8], [9])
    con = calls.merged(tmp_path)
    assert con.sql("SELECT call_id, earlier_call FROM followed_calls").fetchall() == [(2, 0)]


def test_nothing_is_merged_over_attempts_or_policies(tmp_path: Path) -> None:
    lora = {"rank": 4}
    policies = [{"name": "policy", "lora": lora}, {"name": "other", "lora": lora}]
    calls = Calls().call([1], [2]).call([1, 2, 3], [4], attempt="b").call([1, 2, 3], [4], policy="other")
    assert calls.reasons(tmp_path, policies=policies) == ["first_call"] * 3


def test_branches_begin_sequences_that_share_their_prefix(tmp_path: Path) -> None:
    calls = Calls().call([1], [2]).call([1, 2, 3], [4]).call([1, 2, 5], [6]).call([1, 2, 5, 6, 7], [8])
    found, lost = calls.sequences(tmp_path)
    assert lost == {}
    assert [(s["token_ids"], s["loss_mask"]) for s in found] == [
        ([1, 2, 3, 4], [0, 1, 0, 1]),
        ([1, 2, 5, 6, 7, 8], [0, 0, 0, 1, 0, 1]),
    ]
    assert calls.reasons(tmp_path) == ["first_call", "continues", "branch", "continues"]


def test_choices_and_a_prompt_sampled_again_are_branches(tmp_path: Path) -> None:
    calls = Calls().call([1, 2], [3], [4], [3]).call([1, 2], [5]).call([1, 2, 4, 6], [7])
    assert calls.reasons(tmp_path) == ["first_call", "branch", "branch", "branch", "continues"]
    found, _ = calls.sequences(tmp_path)
    assert sorted((s["token_ids"], sum(s["loss_mask"])) for s in found) == [
        ([1, 2, 3], 1),
        ([1, 2, 3], 1),
        ([1, 2, 4, 6, 7], 2),
        ([1, 2, 5], 1),
    ]


def test_per_call_merges_nothing(tmp_path: Path) -> None:
    calls = Calls().call([1], [2]).call([1, 2, 3], [4])
    assert calls.reasons(tmp_path, merge="per_call") == ["per_call", "per_call"]
    found, _ = calls.sequences(tmp_path, merge="per_call")
    assert [s["loss_mask"] for s in found] == [[0, 1], [0, 0, 0, 1]]


def test_drift_is_the_same_text_in_other_tokens(tmp_path: Path) -> None:
    """Sampled 20 21 22 23 9 ("four" in pieces), sent back as 20 50 23 9: two tokens came otherwise, from the second on."""
    history = [SYSTEM, USER, said("four"), {"role": "user", "content": "sure?"}]
    calls = (
        Calls()
        .call([1, 2, 3], [20, 21, 22, 23, 9], messages=[SYSTEM, USER], replies=[said("four")])
        .call([1, 2, 3, 20, 50, 23, 9, 4, 5], [6], messages=history, replies=[said("yes")])
    )
    con = calls.merged(tmp_path)
    last = sql_rig.rows(con, "FROM merges ORDER BY call_id")[-1]
    assert (last["reason"], last["drift_position"], last["drift_tokens"]) == ("token_drift", 4, 2)


def test_drift_is_from_the_latest_call_that_gave_the_reply_never_from_one_still_to_come(tmp_path: Path) -> None:
    history, reply = [USER, said("four"), USER], [said("four")]
    calls = (
        Calls()
        .call([7], [8], messages=[SYSTEM, USER])
        .call([1, 2, 20, 50, 9], [6], messages=history)  # before anyone said it
        .call([1, 2], [20, 9], messages=[USER], replies=reply)
        .call([1, 2], [20, 51, 9], messages=[USER], replies=reply)
        .call([1, 2, 20, 50, 9], [7], messages=history)
    )
    con = calls.merged(tmp_path)
    assert con.sql("SELECT call_id, earlier_call, drift_position FROM token_drifts").fetchall() == [(4, 3, 3)]


def test_a_reply_that_was_changed_is_a_rewritten_prompt(tmp_path: Path) -> None:
    history = [SYSTEM, USER, said("five"), {"role": "user", "content": "sure?"}]
    calls = (
        Calls()
        .call([1, 2, 3], [20, 21, 9], messages=[SYSTEM, USER], replies=[said("four")])
        .call([1, 2, 3, 20, 50, 9, 4], [6], messages=history, replies=[said("yes")])
    )
    con = calls.merged(tmp_path)
    last = sql_rig.rows(con, "FROM merges ORDER BY call_id")[-1]
    assert (last["reason"], last["drift_position"], last["drift_tokens"]) == ("prompt_rewritten", None, None)


def test_a_template_that_renders_the_same_prompt_otherwise_is_a_rewritten_prompt(tmp_path: Path) -> None:
    calls = (
        Calls()
        .call([1, 2, 3], [20, 9], messages=[SYSTEM, USER], replies=[said("four")])
        .call([1, 7, 3, 20, 9, 4], [6], messages=[SYSTEM, USER, said("four"), USER], replies=[said("yes")])
    )
    assert calls.reasons(tmp_path) == ["first_call", "prompt_rewritten"]


def test_tool_calls_and_fields_that_clients_add_are_the_same_reply(tmp_path: Path) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
    sampled = {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "hm"}
    sent = {"tool_calls": [call | {"index": 0}], "content": "", "role": "assistant", "refusal": None}
    calls = (
        Calls()
        .call([1, 2], [20, 21, 9], messages=[USER], replies=[sampled])
        .call([1, 2, 20, 50, 9, 4], [6], messages=[USER, sent, {"role": "tool", "content": "4"}], replies=[said("4")])
    )
    assert calls.reasons(tmp_path) == ["first_call", "token_drift"]


@pytest.mark.parametrize("shared", [True, False])
def test_a_conversation_is_new_where_not_even_the_opening_message_is_shared(tmp_path: Path, shared: bool) -> None:
    second = [SYSTEM, USER, {"role": "user", "content": "and 3+3?"}] if shared else [SYSTEM, said("hello"), USER]
    calls = Calls().call([1, 2], [3], messages=[SYSTEM, USER], replies=[said("4")]).call([1, 7], [8], messages=second)
    assert calls.reasons(tmp_path) == ["first_call", "prompt_rewritten" if shared else "new_conversation"]


def test_without_messages_the_first_tokens_say_whether_a_conversation_is_new(tmp_path: Path) -> None:
    opening = list(range(64))
    calls = Calls().call([*opening, 1], [2]).call([*opening, 3], [4]).call([9, *opening], [5])
    assert calls.reasons(tmp_path) == ["first_call", "prompt_rewritten", "new_conversation"]


def test_messages_that_are_no_json_are_no_messages(tmp_path: Path) -> None:
    calls = Calls().call([1], [2]).call([3], [4])
    calls.spans[0]["input_messages"] = "{broken"
    calls.spans[1]["input_messages"] = '"text"'
    assert calls.reasons(tmp_path) == ["first_call", "new_conversation"]


def test_a_call_left_out_is_context_and_the_sequence_ends_with_the_last_that_trains(tmp_path: Path) -> None:
    calls = Calls().call([1], [2]).call([1, 2, 3], [4, 5]).call([1, 2, 3, 4, 5], [6]).call([1, 2, 3, 4, 5, 6, 7], [8])
    found, lost = calls.sequences(tmp_path, left_out={1: "no_spread", 3: "no_spread"})
    assert lost == {"1.0": "no_spread", "3.0": "no_spread"}
    (only,) = found
    assert only["token_ids"] == [1, 2, 3, 4, 5, 6]
    assert only["loss_mask"] == [0, 1, 0, 0, 0, 1]
    assert only["logprobs"] == [0, -0.5, 0, 0, 0, -0.5]
    assert only["advantages"] == [0, 1, 0, 0, 0, 3]
    assert (only["call_ids"], only["advantage"], only["prompt_length"]) == (["0.0", "2.0"], 2.0, 1)


def test_a_sequence_whose_first_call_is_left_out_begins_with_context(tmp_path: Path) -> None:
    calls = Calls().call([1], [2]).call([1, 2, 3], [4])
    (only,), _ = calls.sequences(tmp_path, left_out={0: "no_spread"})
    assert (only["loss_mask"], only["prompt_length"]) == ([0, 0, 0, 1], 3)


def test_a_sequence_without_a_call_that_trains_is_none(tmp_path: Path) -> None:
    found, lost = Calls().call([1], [2]).sequences(tmp_path, left_out={0: "no_spread"})
    assert (found, lost) == ([], {"0.0": "no_spread"})


def long_calls() -> Calls:
    return Calls().call([1] * 8, [2] * 4).call([1] * 8 + [2] * 4 + [3], [4] * 4).call([9] * 3, [5] * 2)


LIMIT: dict[str, Any] = {"training": {"max_sequence_tokens": 16}}


def test_whole_calls_are_dropped_from_the_end_of_a_sequence_that_is_too_long(tmp_path: Path) -> None:
    found, lost = long_calls().sequences(tmp_path, **LIMIT)
    assert lost == {"1.0": "sequence_too_long"}
    assert [(len(s["token_ids"]), sum(s["loss_mask"])) for s in found] == [(12, 4), (5, 2)]


def test_a_sequence_as_long_as_the_limit_fits(tmp_path: Path) -> None:
    found, lost = Calls().call([1] * 8, [2] * 8).call([3] * 9, [4] * 8).sequences(tmp_path, **LIMIT)
    assert ([len(s["token_ids"]) for s in found], lost) == ([16], {"1.0": "sequence_too_long"})


def test_or_the_rollout_is_left_out(tmp_path: Path) -> None:
    calls = long_calls().call([6], [7], attempt="b")
    found, lost = calls.sequences(tmp_path, too_long="drop_rollout", **LIMIT)
    assert lost == {"0.0": "rollout_too_long", "1.0": "rollout_too_long", "2.0": "rollout_too_long"}
    assert [s["rollout_id"] for s in found] == ["r.b"]


def test_a_long_chain_is_one_sequence(tmp_path: Path) -> None:
    calls, history = Calls(), [1]
    for number in range(60):
        calls.call(list(history), [number, 7])
        history += [number, 7, 8]
    found, _ = calls.sequences(tmp_path)
    assert [(len(s["call_ids"]), sum(s["loss_mask"])) for s in found] == [(60, 120)]
