"""A rollout in the terminal: task, conversation, output, reward, and how the one led to the other."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from lightning_core.events import named
from lightning_core.lake.conversation import Message
from lightning_core.ui.rollout import Call, Seen

_MESSAGES = 4  # of a call that are shown; the others are counted
_LONGEST = 600  # characters of a message
_UNSURE, _SURE = 2, 4  # classes of a token's probability: below 20%, from 80% on
_COLOURS = {"user": "green", "assistant": "blue", "tool": "magenta"}


def story(seen: Seen) -> RenderableType:
    """Return what happened in a rollout, as a person would tell it."""
    row = seen.rollout
    lines: list[RenderableType] = [
        Text(_cut(row["task_text"] or row["task_id"]), style="bold"),
        Text(f"{row['rollout_id']}, run {row['run']}, {named(row['mode'], row['epoch'])}", style="dim"),
    ]
    for call in seen.calls:
        lines += ["", *_call(call)]
    return Group(*lines, "", *_result(seen))


def _call(call: Call) -> Iterator[RenderableType]:
    row = call.row
    agent = row["agent"] or " or ".join(row["candidate_agents"] or ["no named agent"])
    tokens = f", {row['prompt_tokens']}+{row['response_tokens']} tokens" if row["prompt_tokens"] is not None else ""
    head = Text(f"call {call.number}, {agent}", style="bold").append(
        f": {row['policy'] or call.text.get('model')} {row['policy_version'] or ''}{tokens}", style="not bold"
    )
    if row["advantage"] is not None:
        head.append(f", advantage {row['advantage']:+.2f}", style="green" if row["advantage"] > 0 else "red")
    why_not = call.why_not and (
        call.why_not if call.why_not.startswith("evaluation") else f"not trained: {call.why_not}"
    )
    yield head.append(f", {why_not or 'trained'}", style="dim")
    hidden = call.earlier + max(len(call.messages) - _MESSAGES, 0)
    if hidden:
        yield Text(f"  … {hidden} messages before", style="dim")
    for message in call.messages[-_MESSAGES:]:
        yield _message(message)
    for tokens_of_choice in call.choices:
        said = Text("assistant  ", style="bold blue")
        for token in tokens_of_choice:
            likely = token.likely if token.likely is not None else _SURE
            style = "not bold red" if likely < _UNSURE else "not bold yellow" if likely < _SURE else "not bold default"
            said.append(token.text, style=style)
        yield Padding(said, (0, 0, 0, 2), expand=False)
    if not call.choices:
        for message in call.replies:
            yield _message(message)


def _message(message: Message) -> RenderableType:
    said = Text(f"{message.role}  ", style=f"bold {_COLOURS.get(message.role, 'white')}")
    said.append(_cut(message.text), style="not bold default")
    for name, arguments in message.tool_calls:
        said.append(f" calls {name} {_cut(arguments)}", style="not bold magenta")
    return Padding(said, (0, 0, 0, 2), expand=False)


def _result(seen: Seen) -> Iterator[RenderableType]:
    row = seen.rollout
    expected = f", expected {_cut(seen.expected)}" if seen.expected else ""
    colour = "default" if row["demonstration"] else "green" if row["success"] else "red"
    if row["demonstration"]:
        yield Text("a demonstration: its reply was given to the policy, to be imitated", style="dim")
    yield Text.assemble("given " if row["demonstration"] else "got ", (_cut(seen.got), f"bold {colour}"), expected)
    if row["error"]:
        yield Text(f"{row['outcome']}: {_cut(row['error'])}", style="red")
    given = (
        ", ".join(f"{r['reward_name']} {r['reward']} from {r['source']}" for r in seen.found["rewards"])
        or "none was given"
    )
    yield Text.assemble(
        "reward ", ("none" if row["reward"] is None else f"{row['reward']:.3g}", f"bold {colour}"), f" ({given})"
    )
    if seen.imitated:
        yield Text("imitated: its policy is trained to say the same (sft), and nothing is compared")
    elif seen.advantage is not None:
        of = seen.advantage.row
        over = "" if of["by_token"] else f", over {of['group_rollouts']} rollouts"
        yield Text(f"{' '.join(seen.way)} = advantage {of['advantage']:+.3f}{over}")


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} … {text[-_LONGEST // 2 :]}"
