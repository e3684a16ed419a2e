"""Token ids for calls that came without: the text of models elsewhere, by the chat template of the policy that imitates it.

What sql/triplets/foreign_calls.sql finds becomes the table `tokenized_calls`, chunk by chunk: the prompt as vLLM would make it of
these messages, and the reply up to and with the token that ends a turn, as if the policy had answered so.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from lightning_core.config import SettingsError
from lightning_core.epoch.derive_inputs import TOKENIZED, model_files, tokenizing_policy
from lightning_core.epoch.epoch import Epoch
from lightning_core.lake import sql

logger = logging.getLogger(__name__)

_AT_ONCE = 512  # calls whose text is in memory
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")


class Template:
    """A policy's tokenizer with its chat template, and the tokens that end a turn of its model."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer  # heavy, and of the `train` extra

        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        if not self._tokenizer.chat_template:
            raise SettingsError(f"{folder}: its tokenizer has no chat template, so no chat can be tokenized; add one")
        ends: Any = None
        if (folder / "generation_config.json").is_file():
            ends = json.loads((folder / "generation_config.json").read_text()).get("eos_token_id")
        own = self._tokenizer.eos_token_id
        self._ends = {*(ends if isinstance(ends, list) else [ends]), own} - {None}
        self._end = own

    def rendered(self, asked: list[Any], answered: Any, tools: list[Any] | None) -> tuple[str, str]:
        """Return the text of the prompt, and what follows it with the reply. Raises ValueError where the template has
        no such form."""
        prompt = self._text(asked, tools, True)
        whole = self._text([*asked, answered], tools, False)
        if not whole.startswith(prompt):
            raise ValueError("with the reply, its text does not begin with the prompt's")
        return prompt, whole[len(prompt) :]

    def ids(self, texts: list[str]) -> list[list[int]]:
        return self._tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []

    def turn(self, ids: list[int], cut_off: bool) -> list[int]:
        """Return, of the tokens behind a prompt, those of the reply: with its end, and without where it was cut off."""
        last = max((place for place, token in enumerate(ids) if token in self._ends), default=None)
        if last is None:
            return ids if cut_off or self._end is None else [*ids, self._end]
        return ids[: last + (not cut_off)]

    def _text(self, messages: list[Any], tools: list[Any] | None, prompt: bool) -> str:
        text: str = self._tokenizer.apply_chat_template(
            messages, tools=tools, add_generation_prompt=prompt, tokenize=False
        )
        return text


def make_tokenized(con: duckdb.DuckDBPyConnection, epoch: Epoch) -> None:
    """Fill `tokenized_calls`. Raises SettingsError where the policy's tokenizer is not there."""
    if tokenizing_policy(epoch.settings.policies) is None:
        return
    sql.create(con, "triplets/foreign_calls", "VIEW")
    calls = con.cursor().sql("FROM foreign_calls").to_arrow_reader(_AT_ONCE)
    template: Template | None = None
    done = flawed = 0
    for batch in calls:
        if not batch.num_rows:
            continue
        template = template or Template(_folder(epoch))
        table = _tokenized(template, batch.to_pylist())
        con.from_arrow(table).insert_into("tokenized_calls")
        done, flawed = done + table.num_rows, flawed + table.num_rows - table["flaw"].null_count
        if done % (20 * _AT_ONCE) == 0:
            logger.info("%d calls without token ids are tokenized", done)
    if done:
        logger.info("%d calls without token ids: %d tokenized, %d not (see exclusions)", done, done - flawed, flawed)


def _tokenized(template: Template, rows: list[dict[str, Any]]) -> pa.Table:
    texts: dict[int, tuple[str, str]] = {}
    flaws: dict[int, str] = {}
    for place, row in enumerate(rows):
        try:
            asked, answered, tools = (_read(row[name]) for name in ("asked", "answered", "tools"))
            messages = [openai_message(one) for one in [*(asked or []), answered]]
        except (ValueError, TypeError, AttributeError):
            flaws[place] = "no_messages"
            continue
        if len(messages) < 2:
            flaws[place] = "no_messages"
            continue
        try:
            texts[place] = template.rendered(messages[:-1], messages[-1] | {"role": "assistant"}, tools or None)
        except Exception as error:  # noqa: BLE001 - a template is a program, and raises what it likes
            logger.debug("a call of rollout %s: %s", row["rollout_id"], error)
            flaws[place] = "no_template"
    prompts = template.ids([prompt for prompt, _ in texts.values()])
    replies = template.ids([reply for _, reply in texts.values()])
    made = {
        place: (prompt, template.turn(reply, bool(rows[place]["cut_off"])))
        for place, prompt, reply in zip(texts, prompts, replies, strict=True)
    }
    return pa.Table.from_pylist(
        [
            {name: row[name] for name in TOKENIZED.names[:5]}
            | {"flaw": flaws.get(n), "prompt_ids": made.get(n, (None, None))[0]}
            | {"response_ids": made.get(n, (None, None))[1]}
            for n, row in enumerate(rows)
        ],
        schema=TOKENIZED,
    )


def openai_message(message: Any) -> dict[str, Any]:
    """Return a message as vLLM gives it to a template: arguments of tool calls as objects, text parts as one text.

    Raises ValueError for what is no message, or has parts that are no text.
    """
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise ValueError("no message")
    found = {key: value for key, value in message.items() if value is not None}
    if isinstance(found.get("content"), list):
        found["content"] = "\n".join(_part(part) for part in found["content"])
    if calls := found.get("tool_calls"):
        found["tool_calls"] = [
            {"type": "function"} | call | {"function": _function(call["function"])} for call in calls
        ]
    elif found.get("content") is None:
        raise ValueError("it says nothing")
    return {"content": None} | found


def _part(part: Any) -> str:
    if not isinstance(part, dict) or not isinstance(part.get("text"), str):
        raise ValueError("a part is no text")
    return part["text"]


def _function(function: dict[str, Any]) -> dict[str, Any]:
    arguments = function.get("arguments")
    return function | {"arguments": json.loads(arguments or "{}") if isinstance(arguments, str | None) else arguments}


def _read(text: str | None) -> Any:
    return None if text is None else json.loads(text)


def _folder(epoch: Epoch) -> Path:
    """Return where the tokenizer of the version that is trained lies; of an adapter, that of its base model."""
    policy = tokenizing_policy(epoch.settings.policies)
    assert policy is not None, "there are calls for it"
    for file in model_files(epoch, policy):
        if any((file.parent / name).is_file() for name in _TOKENIZERS):
            return file.parent
    raise SettingsError(
        f"policies: {policy.name}: the tokenizer of its model {policy.model!r} is not on this machine, and calls without "
        "token ids are to be trained on; `lightning-flows model` fetches it"
    )
