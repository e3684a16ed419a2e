"""What `explain` found, for a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lightning_core.events import named
from lightning_core.lake.explain import Row, found_tree, repaired_tree, why_not

_PLAIN = ("declared", "root")  # methods that changed nothing


def view(found: Row) -> RenderableType:
    """Return attempts, the tree as found and as repaired, calls, rewards, and how one led to the other."""
    parts: list[RenderableType] = [Text(_headline(found), style="bold")]
    own = any(row["policies"] for row in found["rewards"])
    parts += [Text(f"  attempt {_attempt(row, own)}") for row in found["attempts"]]
    if found["spans"]:
        as_found, as_repaired = found_tree(found["spans"]), repaired_tree(found["spans"])
        changed = [(d, row["node"]) for d, row in as_found] != [(d, row["node"]) for d, row in as_repaired]
        if changed:
            parts += [_title("Tree as found"), *(Text("  " + _span(depth, row)) for depth, row in as_found)]
        parts.append(_title("Tree as repaired" if changed else "Tree (as found; nothing was repaired)"))
        parts += [Text("  " + _span(depth, row) + _place(row)) for depth, row in as_repaired]
    parts += [_title("Rewards"), _rewards(found)]
    if found["calls"]:
        parts += [_title("Calls"), _calls(found)]
        parts += [line for call in found["calls"] for line in _why(call, found["mode"])]
    if found["refused"]:
        parts += [_title("Claims that count for nothing"), _refused(found["refused"])]
    return Group(*parts)


def _headline(found: Row) -> str:
    first = found["attempts"][0]
    return f"rollout {found['rollout_id']}: {named(found['mode'], found['epoch'])}, run {found['run']}, group {first['group_id']}"


def _attempt(row: Row, own_rewards: bool) -> str:
    text = f"{row['attempt_id']}: {row['outcome']}"
    if row["error"]:
        text += f" ({row['error']})"
    if row["seconds"] is not None:
        text += f", {row['seconds']:.2f} s"
    if not row["counts"]:
        return f"{text}; does not count: {row['left_out']}"
    if row["no_reward"]:
        but = " but for policies with rewards of their own" if own_rewards and row["no_reward"] == "no_reward" else ""
        return f"{text}; left out{but}: {row['no_reward']}"
    air = f", {_number(row['air'])} of it by rules" if row["air"] else ""
    return f"{text}; reward {_number(row['reward'])} ({row['source']}{air})"


def _span(depth: int, row: Row) -> str:
    kind = "" if row["op"] == "other" else f" [{row['op']}]"
    twin = f" (the same call as {row['call_id']})" if row["twin_node"] is not None else ""
    return f"{'  ' * depth}{row['name']}{kind} {row['span_id']}{twin}"


def _place(row: Row) -> str:
    """Return the agent, and how the place was found where the span did not declare it."""
    agent = f"  agent {row['agent_path'] or row['agent']}" if row["agent"] else ""
    if row["ambiguous"]:
        agent = "  agent ambiguous"
    if row["method"] in _PLAIN:
        return agent
    several = f" of {row['candidates']} candidates" if row["candidates"] > 1 else ""
    return f"{agent}  ← {row['method']} {row['confidence']:.2f}{several}: {row['evidence']}"


def _rewards(found: Row) -> RenderableType:
    if not found["rewards"]:
        return Text("  none was given")
    table = _table("span", "name", "from", "agent", "value", "weight", "counts", "went to")
    for row in found["rewards"]:
        counts = row["left_out"] or ("yes" if row["counts"] or row["calls"] else "a later one does")
        counts = "; ".join([counts, *(_to_policy(own, bool(row["calls"])) for own in row["policies"])])
        went = "; ".join(_went(call) for call in row["calls"])
        cells = (row["span_id"], row["reward_name"], row["source"], row["agent"] or "–", _number(row["reward"]))
        table.add_row(*(str(cell) for cell in cells), _number(row["weight"]), counts, went or "the rollout")
    return table


def _refused(claims: list[Row]) -> Table:
    table = _table("span", "name", "attempt", "sent by", "claim", "reward")
    for claim in claims:
        cells = (claim[key] for key in ("span_id", "name", "attempt_id", "sender", "refused"))
        table.add_row(*(str(cell) for cell in cells), _number(claim["reward"]))
    return table


def _to_policy(own: Row, given_to_calls: bool) -> str:
    counts = f"yes, weight {_number(own['weight'])}" if own["counts"] or given_to_calls else "a later one does"
    return f"to {own['policy']}: {counts}"


def _went(call: Row) -> str:
    return call["left_out"] if call["call_id"] is None else f"call {call['call_id']}"


def _calls(found: Row) -> Table:
    table = _table(
        "call", "span", "agent", "policy", "tokens", "reward", "return", "group mean", "advantage", "trained"
    )
    for call in found["calls"]:
        reason = why_not(call, found["mode"])
        tokens = f"{call['prompt_tokens']}+{call['response_tokens']}" if call["prompt_tokens"] is not None else "no ids"
        policy = " ".join(part for part in (call["policy"], call["policy_version"]) if part) or "–"
        numbers = (_number(call[key]) for key in ("reward", "return", "group_mean", "advantage"))
        cells = (str(call["call_id"]), call["span_id"], call["agent"] or "–", policy, tokens, *numbers)
        table.add_row(*cells, "yes" if reason is None else f"no: {reason}")
    return table


def _why(call: Row, mode: str) -> list[RenderableType]:
    lines = [f"  call {call['call_id']}: {_whose(call)}"]
    for triplet in call["triplets"] or []:
        choice = f" choice {triplet['choice']}" if len(call["triplets"]) > 1 else ""
        where = f"place {triplet['place']} of sequence {triplet['sequence']}, {triplet['begins']}"
        if triplet["drift_position"] is not None:
            where += f" at token {triplet['drift_position']}, {triplet['drift_tokens']} tokens came back otherwise"
        lines.append(f"   {choice} {where}")
    if why_not(call, mode) is None and call["by_token"]:
        numbers = [number for triplet in call["triplets"] for number in triplet["advantages"] or []]
        lines.append(
            f"    return {_number(call['return'])}; each of the {len(numbers)} tokens has an advantage of its own, from "
            f"{_number(min(numbers))} to {_number(max(numbers))}: mean {_number(call['advantage'])}"
        )
    elif why_not(call, mode) is None and call["group_rollouts"] is not None:
        spread = f", deviation {_number(call['group_std'])}" if call["group_std"] is not None else ""
        mean = f"against a mean of {_number(call['group_mean'])} over" if call["group_mean"] is not None else "among"
        lines.append(
            f"    return {_number(call['return'])} {mean} {call['group_rollouts']} rollouts{spread}: "
            f"advantage {_number(call['advantage'])}"
        )
    return [Text(line) for line in lines]


def _whose(call: Row) -> str:
    agent = f"agent {call['agent_path'] or call['agent']}" if call["agent"] else "no named agent"
    if call["candidate_agents"]:
        agent = f"agent {' or '.join(call['candidate_agents'])}"
    if call["method"] is None:
        return agent
    return f"{agent}, by {call['method']} ({call['confidence']:.2f}): {call['evidence']}"


def _title(text: str) -> Text:
    return Text(f"\n{text}", style="bold")


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 2), show_edge=False)
    for column in columns:
        table.add_column(
            column, justify="right" if column in ("value", "weight", "reward", "return", "advantage") else "left"
        )
    return table


def _number(value: Any) -> str:
    return "–" if value is None else f"{value:.4g}"
