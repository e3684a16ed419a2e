"""Calls without token ids: which are tokenized for whom, from which convention's messages, and how the sequences flag them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from lightning_core.config import PolicySettings
from lightning_core.epoch.production import Choice, choose
from tests.lake_maker import SECOND, Attempt, derived, settings, table
from tests.tiny_model import make_tiny_tokenizer
from tests.unit.test_production import learning

pytestmark = pytest.mark.slow  # it loads transformers

QUESTION = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}]
ANSWER = {"role": "assistant", "content": "4"}
OPENAI = {"input_messages": json.dumps(QUESTION), "output_messages": json.dumps([ANSWER])}
GEN_AI = {
    "input_messages": json.dumps([{"role": "user", "parts": [{"type": "text", "content": "2+2?"}]}]),
    "output_messages": json.dumps(
        [{"role": "assistant", "parts": [{"type": "reasoning", "content": "hm"}, {"type": "text", "content": "4"}]}]
    ),
    "attributes": [("gen_ai.system_instructions", json.dumps([{"type": "text", "content": "Be brief."}]))],
}
OPEN_INFERENCE = {
    "attributes": [
        ("llm.input_messages.0.message.role", "system"),
        ("llm.input_messages.0.message.content", "Be brief."),
        ("llm.input_messages.1.message.role", "user"),
        ("llm.input_messages.1.message.contents.0.message_content.type", "text"),
        ("llm.input_messages.1.message.contents.0.message_content.text", "2+2?"),
        ("llm.output_messages.0.message.role", "assistant"),
        ("llm.output_messages.0.message.content", "4"),
    ]
}
MLFLOW = {
    "attributes": [
        ("mlflow.spanInputs", json.dumps({"model": "gpt-4o", "messages": QUESTION})),
        ("mlflow.spanOutputs", json.dumps({"choices": [{"message": ANSWER, "finish_reason": "stop"}]})),
    ]
}
TEXT = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>"


def foreign(rollout: str = "r.0", **columns: Any) -> Attempt:
    """A rollout with one call of a model elsewhere, and a reward."""
    attempt = Attempt(rollout, group=rollout)
    attempt.root()
    without = {"policy_version": None, "prompt_ids": None, "response_ids": None, "response_logprobs": None}
    attempt.call([], [], policy=None, **(without | columns))
    attempt.reward(1.0)
    return attempt


def made(home: Path, rows: list[dict[str, Any]], **changes: Any) -> tuple[list[dict[str, Any]], list[str]]:
    """The sequences of an epoch, and the reasons of what is in none. Its policy begins with a tiny tokenizer."""
    make_tiny_tokenizer().save_pretrained(home / "policies" / "policy" / "v0000")
    lake, epoch = derived(home, rows, versions={"policy": "v0000"}, **changes)
    return table(lake, epoch, "sequences"), [row["reason"] for row in table(lake, epoch, "exclusions")]


TAKING = {"algorithm": "sft", "sft": {"without_ids": "tokenize"}}


@pytest.mark.parametrize(
    "said", [OPENAI, GEN_AI, OPEN_INFERENCE, MLFLOW], ids=["openai", "genai", "openinference", "mlflow"]
)
def test_the_text_of_a_call_is_tokenized_whichever_convention_wrote_it(tmp_path: Path, said: dict[str, Any]) -> None:
    [sequence], left_out = made(tmp_path, foreign(**said).rows, **TAKING)
    tokenizer = make_tiny_tokenizer()
    assert (tokenizer.decode(sequence["token_ids"]), sequence["tokenized"], left_out) == (TEXT, True, [])
    trained = [t for t, on in zip(sequence["token_ids"], sequence["loss_mask"], strict=True) if on]
    assert tokenizer.decode(trained) == "4<|im_end|>"
    assert set(sequence["logprobs"]) == {0.0} and sequence["policy"] == "policy"


def test_only_sft_trains_on_it_and_only_where_the_settings_say_so(tmp_path: Path) -> None:
    for n, changes in enumerate(({}, {"algorithm": "sft"}, {"algorithm": "grpo", "advantages": "reinforce"})):
        assert made(tmp_path / str(n), foreign(**OPENAI).rows, **changes) == ([], ["other_policy"])
    chat = foreign(**OPENAI, resource=[("lightning.imported", "chat")])
    assert [s["tokenized"] for s in made(tmp_path / "chat", chat.rows, algorithm="sft")[0]] == [True]
    assert made(tmp_path / "rl", chat.rows, advantages="reinforce") == ([], ["other_policy"])
    for row in chat.rows:
        row["sender"] = "attempt"
    assert made(tmp_path / "posed", chat.rows, algorithm="sft") == ([], ["other_policy"]), "an agent says it is a chat"


def test_two_policies_that_take_it_are_an_error(tmp_path: Path) -> None:
    lora = {"rank": 2}
    taking = [PolicySettings.model_validate({"name": name, "lora": lora} | TAKING) for name in ("a", "b")]
    with pytest.raises(ValidationError, match="of a and b: a call without token ids can train one"):
        settings(tmp_path, policies=taking)


def test_a_sampled_sequence_beside_it_is_not_flagged(tmp_path: Path) -> None:
    sampled = Attempt("r.1", group="h")
    sampled.root()
    sampled.call([1, 2], [3])
    sampled.reward(1.0)
    found, _ = made(tmp_path, foreign(**OPENAI).rows + sampled.rows, **TAKING)
    assert {s["rollout_id"]: s["tokenized"] for s in found} == {"r.0": True, "r.1": False}


def test_what_has_no_text_is_counted_by_reason(tmp_path: Path) -> None:
    image = json.dumps([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}])
    no_role = json.dumps([{"content": "who?"}])
    rows = foreign("r.0").rows + foreign("r.1", **OPENAI | {"input_messages": image}).rows
    rows += foreign("r.2", **OPENAI | {"input_messages": no_role}).rows + foreign("r.3", **OPENAI, status="error").rows
    _, left_out = made(tmp_path, rows, **TAKING)
    assert sorted(left_out) == ["failed_call", "no_messages", "no_messages", "no_messages"]


def test_a_reply_that_was_cut_off_is_not_taught_to_end_there(tmp_path: Path) -> None:
    [sequence], _ = made(tmp_path, foreign(**OPENAI, finish_reasons='["length"]').rows, **TAKING)
    assert make_tiny_tokenizer().decode(sequence["token_ids"]).endswith("assistant\n4")


def test_learn_takes_rollouts_of_models_elsewhere_where_the_settings_say_so(tmp_path: Path) -> None:
    attempt = Attempt(rollout="p", attempt="1")
    none: dict[str, Any] = {"policy": None, "prompt_ids": None, "response_ids": None, "response_logprobs": None}
    attempt.call([], [], **none, **OPENAI)  # type: ignore[arg-type]
    derived(tmp_path, attempt.rows)
    epoch = learning(tmp_path)
    assert choose(epoch, Choice(), 10_000 * SECOND).left_out == {"no_sampled_call": 1}
    epoch.settings = settings(tmp_path, **TAKING)
    assert [row["rollout_id"] for row in choose(epoch, Choice(), 10_000 * SECOND).rollouts] == ["p"]
