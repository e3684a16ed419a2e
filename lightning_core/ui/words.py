"""What the page writes in one way everywhere: addresses, numbers, short texts, the rule of a reward."""

from __future__ import annotations

import json
import math
from typing import Any
from urllib.parse import quote, urlencode

from lightning_core.config import EvaluationSettings, RewardSettings

Row = dict[str, Any]


def place(kind: str, run: str, name: str = "", **more: Any) -> str:
    """Return the address of a page: `place("rollout", run, rollout_id)`."""
    address = f"/run/{quote(run, safe='')}" + (f"/{kind}" if kind else "") + (f"/{quote(name)}" if name else "")
    given = {key: value for key, value in more.items() if value is not None}
    return f"{address}?{urlencode(given)}" if given else address


def number(value: Any) -> str:
    """Return a number with three places, without trailing zeros; a dash for none."""
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.3f}".rstrip("0").rstrip(".") if math.isfinite(value) else str(value)


def percent(value: Any) -> str:
    return "–" if value is None else f"{value:.1%}"


def points(share: Any) -> str:
    """Return a difference of shares in points of a percent, with its sign; a dash for none."""
    return "–" if share is None else f"{100 * share:+.1f} points"


def chance(became: str | None) -> str:
    """Return in words whether a difference is more than chance; `became`: of the macro more_than_chance."""
    return {
        "rose": "more than chance explains",
        "fell": "more than chance explains",
        "chance": "may be chance: its interval holds 0",
        "few": "too few tasks to tell from chance",
    }.get(became or "", "")


def seconds(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.1f} s" if value < 120 else f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"


def short(value: Any, length: int = 120) -> str:
    """Return a text in one line, cut with an ellipsis; one of spaces alone is called empty."""
    text = " ".join(str(value if value is not None else "–").split()) or "(empty)"
    return text if len(text) <= length else text[: length - 1] + "…"


def pretty(value: Any) -> str:
    """Return JSON with indents, other text as it is."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return str(value)
    return json.dumps(value, indent=1, ensure_ascii=False, default=str)


def meaning(reason: str | None, reasons: dict[str, Row]) -> str:
    """Return what a reason for not being trained on means, with its limit.

    Empty for one that is not known (`sql/page/reasons`).
    """
    row = reasons.get((reason or "").partition(":")[0])
    return "" if row is None else row["meaning"] + (f" ({row['limit']})" if row["limit"] is not None else "")


def sureness(confidence: float, method: str) -> str:
    """Return in words how sure the place of a span is (`sql/hierarchy/methods`): what 1, 0.95 and 0.5 mean."""
    if confidence >= 1:
        return "certain (1 of 1): no span that was placed so ever stood wrong"
    if method in ("root", "declared", "twin"):
        return f"{number(confidence)} of 1: no surer than the span above it, whose own place had to be found"
    if confidence >= 0.95:
        return (
            f"{number(confidence)} of 1: of 100 calls placed so, {confidence * 100:.0f} were right when it was measured"
        )
    return f"{number(confidence)} of 1: " + (
        "a guess, that nothing measures" if confidence > 0 else "not known, several agents fit"
    )


_SENDERS = {
    "gateway": "recorded by the gateway, which passes the agent's calls on to the model",
    "attempt": "sent by the agent's own process, which may speak for this execution of its rollout alone",
    "secret": "sent by what runs the agent or grades it, which holds the gateway's secret",
    "nobody": "sent by a process that did not prove who it is, so it speaks for no rollout",
}


def sent(sender: str | None) -> str:
    """Return in words who sent a span; as it is written down where it is none of ours."""
    return _SENDERS.get(sender or "", sender or "who sent it is not written down")


def change(row: Row) -> str:
    """Return whether the reward of a compared task rose or fell; empty where it stayed, or one of the two has none."""
    before, after = row["reward_before"], row["reward_after"]
    if None in (before, after) or before == after:
        return ""
    return "rose" if after > before else "fell"


def colour(reason: str | None, reasons: dict[str, Row]) -> str:
    """Return the colour of a reason in every bar.

    None has the colour of what was trained on; one that is not known is grey. Neighbours by name are far apart.
    """
    if reason is None:
        return "#16a34a"
    known = list(reasons)
    name = reason.partition(":")[0]
    if name not in known:
        return "#9ca3af"
    at = known.index(name)
    return f"hsl({(190 + 280 * (0.618 * at % 1)) % 360:.0f} 70% {40 + 15 * (at % 3)}%)"  # no greens


def reward_rule(settings: list[Row]) -> list[str]:
    """Return what counts as right and how a rollout is rewarded, in words.

    `settings`: the rows of `sql/page/settings`; nothing where none is kept.
    """
    given = {row["setting"]: row["given"] for row in settings if row["given"] is not None}
    if not given:
        return []

    def of(section: type[EvaluationSettings | RewardSettings], name: str) -> Any:
        default = section.model_fields[name].get_default(call_default_factory=True)
        return given.get(f"{'reward' if section is RewardSettings else 'evaluation'}.{name}", default)

    grader, failure, assign = (of(RewardSettings, name) for name in ("grader", "failure_reward", "assign"))
    weights = [f"{setting[15:]} × {value}" for setting, value in given.items() if setting.startswith("reward.weights.")]
    return [
        f"right: a reward of at least {number(float(of(EvaluationSettings, 'success_reward')))} (evaluation.success_reward)",
        f"graded by {grader}" if grader else "rewarded by what the agent emits",
        *([f"the sum of {', '.join(weights)}"] if weights else []),
        "a failed rollout is left out"
        if failure in (None, "None")
        else f"a failed rollout gets {number(float(failure))}",
        {
            "final": "every call gets the rollout's reward",
            "nearest": "a reward goes to the latest call of its agent",
            "discounted": f"a call gets its agent's rewards from then on, discounted by {given.get('reward.gamma')}",
        }[assign],
    ]


# What templates write values with.
FILTERS = (chance, change, colour, meaning, number, percent, points, pretty, seconds, sent, short, sureness)
