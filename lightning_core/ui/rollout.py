"""All that is shown of one rollout: its tree, its calls with tokens, its group, and the way of its reward."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_core.lake.conversation import Message, messages_of, new_messages
from lightning_core.lake.explain import explain, query, repaired_tree, why_not
from lightning_core.lake.manifest import LakeError
from lightning_core.ui.figures import Figures, Row, filled
from lightning_core.ui.tokens import Token, tokenizer_of, tokens_of
from lightning_core.ui.words import number

# Fields of a task that hold what is expected of it, the likeliest first.
_EXPECTED = (
    "answer",
    "answers",
    "expected",
    "expected_output",
    "target",
    "solution",
    "gold",
    "reference",
    "label",
    "query",
    "sql",
)
_SMOOTHS = 0.0001  # what GRPO and REINFORCE++ add to a deviation (sql/advantages)
_GOT = ("answer", "output", "result", "reply", "text")


@dataclass(frozen=True)
class Span:
    """A span on a time line: `starts_s` and `seconds` from the rollout's begin."""

    name: str
    kind: str
    starts_s: float
    seconds: float
    agent: int  # its colour
    href: str | None = None


@dataclass(frozen=True)
class Call:
    """A call of the rollout: `earlier` messages of its prompt were shown before, `messages` are new; `tokens` of each choice."""

    number: int
    row: Row  # of explain: agent, policy, advantage, …
    text: Row  # of call_texts: messages and what they cost
    earlier: int
    messages: list[Message]
    replies: list[Message]
    choices: list[list[Token]]
    why_not: str | None
    agent: int  # its colour


@dataclass(frozen=True)
class Seen:
    """A rollout as its page has it."""

    rollout: Row
    found: Row  # of lake.explain
    tree: list[tuple[int, Row]]
    spans: list[Span]
    calls: list[Call]
    tools: list[Row]
    agents: list[str]
    got: str
    expected: str | None
    expected_field: str | None  # of the task, which holds it
    task: list[tuple[str, str]]  # the fields of the task but its text
    sql: dict[str, str]  # of spans, calls, texts, tokens, tools, rewards

    @property
    def advantage(self) -> Call | None:
        """Return the call whose advantage stands for the rollout's: the largest in size."""
        with_one = [call for call in self.calls if call.row["advantage"] is not None]
        return max(with_one, key=lambda call: abs(call.row["advantage"]), default=None)

    @property
    def colour(self) -> str:
        """Return what colours tokens at first: `advantage` where any was pushed up or down, else `probability`."""
        pushed = any(call.row["advantage"] is not None and not call.why_not for call in self.calls)
        return "advantage" if pushed else "probability"

    @property
    def ratios(self) -> list[float]:
        """Return the ratio of each token measured in training: its probability then by that when it was sampled."""
        tokens = (token for call in self.calls for choice in call.choices for token in choice)
        return [token.ratio for token in tokens if token.ratio is not None]

    @property
    def imitated(self) -> bool:
        """Return whether that advantage is of a policy that is trained to say the same, and compares nothing."""
        return self.advantage is not None and self.advantage.row["policy"] in self.rollout["imitating"]

    @property
    def way(self) -> list[str]:
        """Return the steps from the return to the advantage; none where there is no advantage."""
        if self.advantage is None:
            return []
        of = self.advantage.row
        if of["by_token"]:
            return ["each token has an advantage of its own;", "the mean of this call's"]
        steps = [f"return {number(of['return'])}"]
        if of["group_mean"] is not None:
            steps[0] += f" − group mean {number(of['group_mean'])}"
        if of["group_std"] is not None:
            smoothed = (of["return"] - (of["group_mean"] or 0)) / (of["group_std"] + _SMOOTHS)
            exact = math.isclose(smoothed, of["advantage"], rel_tol=1e-6, abs_tol=1e-9)
            std = f"standard deviation {number(of['group_std'])}"
            steps.append(f"÷ ({std} + {_SMOOTHS})" if exact else f"÷ {std}")
        return steps


def see(figures: Figures, home: Path | None, run: str, rollout_id: str, epoch: int | None) -> Seen:
    """Return what is known of a rollout.

    `home`: where its policies are, None: no tokenizer. Raises LakeError for one that is unknown, or not derived yet.
    """
    with figures.catalog() as con:
        found = explain(figures.root, rollout_id, run, epoch, con)
    rollout = figures.ask("rollout", run=run, rollout_id=rollout_id, epoch=found["epoch"]).first
    scope = {"rollout_id": rollout_id, "attempt_id": found["attempt_id"]}
    texts, tools = figures.ask("call_texts", **scope), figures.ask("tools", **scope)
    tokens = figures.ask("trained_tokens", run=run, epoch=found["epoch"], rollout_id=rollout_id)
    trained = {(row["span_id"], row["choice"]): row for row in tokens.rows}
    of_epoch = scope | {"run": run, "epoch": found["epoch"]}
    # Of two records of one call, that of the agent's instrumentation is left out.
    above = {row["parent_node"] for row in found["spans"]}
    tree = [(d, row) for d, row in repaired_tree(found["spans"]) if row["twin_node"] is None or row["node"] in above]
    agents = list(dict.fromkeys(row["agent"] for _, row in tree if row["agent"]))
    task = _task(rollout["task"])
    answer = _expected(task, rollout["task_text"])
    return Seen(
        rollout=rollout,
        found=found,
        tree=tree,
        spans=[
            _span(row, agents)
            for _, row in tree
            if None not in (row["starts_s"], row["seconds"]) and row["op"] != "reward"
        ],
        calls=_calls(home, found, {row["span_id"]: row for row in texts.rows}, trained, agents),
        tools=tools.rows,
        sql={name: filled(query(name), of_epoch) for name in ("spans", "calls", "rewards")}
        | {"texts": texts.sql, "tokens": tokens.sql, "tools": tools.sql},
        agents=agents,
        got=got(rollout["output"]),
        expected=answer and answer[1],
        expected_field=answer and answer[0],
        task=[(key, value) for key, value in task if value != rollout["task_text"]],
    )


def choose(
    figures: Figures, name: str | None, run: str | None, epoch: int | None, worst: bool = False, failed: bool = False
) -> tuple[str, str, int]:
    """Return run, id and epoch of the rollout that is chosen by its name, its task's name, or what became of it.

    Raises LakeError where there is none, with names like it.
    """
    found = figures.ask("choose", name=name, run=run, epoch=epoch, worst=worst, failed=failed).rows
    if found:
        return found[0]["run"], found[0]["rollout_id"], found[0]["epoch"]
    if name is not None:
        with figures.catalog() as con:
            explain(figures.root, name, run, epoch, con)  # which says what there is
    raise LakeError("no rollout of that kind: " + ("none failed" if failed else "there is none yet"))


def _calls(
    home: Path | None,
    found: Row,
    texts: dict[str, Row],
    trained: dict[tuple[str, int], Row],
    agents: list[str],
) -> list[Call]:
    calls: list[Call] = []
    shown: dict[str | None, list[Message]] = {}  # of each agent's last call
    for nth, row in enumerate(found["calls"], 1):
        text = texts.get(row["span_id"], {})
        messages, replies = messages_of(text.get("input_messages")), messages_of(text.get("output_messages"))
        earlier, new = new_messages(messages, shown.get(row["agent"], []))
        shown[row["agent"]] = [*messages, *replies]
        tokenizer = tokenizer_of(home, row["policy"]) if home is not None and row["policy"] else None
        ids, logprobs = text.get("response_ids"), text.get("response_logprobs")
        if row["policy"] is None and replies:
            ids = None  # of a model whose tokenizer is not known, and of which no token is trained
        choices, at = [], 0
        own = {triplet["choice"]: triplet["advantages"] for triplet in row["triplets"] or []}
        for choice, length in enumerate(text.get("choice_lengths") or [len(ids or [])]):
            part, measured = slice(at, at + length), trained.get((row["span_id"], choice))
            choices.append(tokens_of(tokenizer, (ids or [])[part], (logprobs or [])[part], measured, own.get(choice)))
            at += length
        calls.append(
            Call(
                number=nth,
                row=row | {name: text.get(name) for name in ("prompt_tokens", "response_tokens") if row[name] is None},
                text=text,
                earlier=earlier,
                messages=new,
                replies=replies,
                choices=[choice for choice in choices if choice],
                why_not=why_not(row, found["mode"]),
                agent=_colour(row["agent"], agents),
            )
        )
    return calls


def _span(row: Row, agents: list[str]) -> Span:
    name = f"{row['name']} ({row['agent']})" if row["agent"] else row["name"]
    href = f"#span-{row['span_id']}" if row["op"] in ("llm", "tool") else None
    return Span(name, row["op"], row["starts_s"], row["seconds"], _colour(row["agent"], agents), href)


def _colour(agent: str | None, agents: list[str]) -> int:
    return agents.index(agent) % 6 + 1 if agent in agents else 0


def expected(task: str | None, text: str | None) -> str | None:
    """Return the answer that a recorded task expects: its first field of `_EXPECTED` that is not its text."""
    found = _expected(_task(task), text)
    return found and found[1]


def _expected(task: list[tuple[str, str]], text: str | None) -> tuple[str, str] | None:
    fields = dict(task)
    return next(((name, fields[name]) for name in _EXPECTED if fields.get(name) not in (None, text)), None)


def _task(recorded: str | None) -> list[tuple[str, str]]:
    """Return the task's fields; none where it is a text."""
    try:
        task = json.loads(recorded or "")
    except ValueError:
        return []
    return [(str(key), _plain(value)) for key, value in task.items()] if isinstance(task, dict) else []


def got(output: str | None) -> str:
    """Return what an agent returned, in a few words.

    Of a JSON object it is the value of the first key of answer, output, result, reply, text that has one.
    """
    try:
        found = json.loads(output or "null")
    except ValueError:
        return output or ""
    if isinstance(found, dict):
        found = next((found[key] for key in _GOT if found.get(key) is not None), found)
    return "nothing" if found is None else _plain(found)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
