"""What somebody who knows neither the code nor the run asks of the page, and is answered."""

from __future__ import annotations

import html
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from tests.lake_maker import derived, trained
from tests.page_rig import open_page, rollout, visible

Rows = list[dict[str, Any]]


def group(name: str, rewards: tuple[float, ...], first: int, **root: Any) -> Rows:
    """Rollouts of a group of its own, numbered from `first`."""
    rows = [row for number, reward in enumerate(rewards, first) for row in rollout(number, reward, **root)]
    return [row | {"group_id": name if row["group_id"] else None, "task_id": name} for row in rows]


def test_each_step_and_each_reason_of_a_run_leads_to_its_rollouts(tmp_path: Path) -> None:
    rows = group("g", (1.0, 0.0), 0) + group("h", (1.0, 1.0, 1.0), 2) + rollout(5, 1.0, outcome="infrastructure")
    trained(derived(tmp_path, rows, agent_match="worker")[0])
    with open_page(tmp_path) as page:
        run = page.get("/run/run").text
        card = run.partition("Where the training rollouts went")[2].partition("</section>")[0]
        links = {visible(text): html.unescape(link) for link, text in re.findall(r'<a href="([^"]+)">(.*?)</a>', card)}
        led = {text: set(re.findall(r">(r\.\d)<", page.get(link).text)) for text, link in links.items() if "?" in link}
        all_rollouts = page.get("/run/run/rollouts").text
    assert led == {
        "6 sampled": {f"r.{number}" for number in range(6)},
        "5 counted": {f"r.{number}" for number in range(5)},
        "2 trained on": {"r.0", "r.1"},
        "trained on": {"r.0", "r.1"},
        "no_spread": {"r.2", "r.3", "r.4"},
        "infrastructure": {"r.5"},
    }
    choices = re.search(r'<select name="fate">(.*?)</select>', all_rollouts, re.DOTALL)
    assert choices and visible(choices[1]) == "any counted trained on infrastructure no_spread"


def test_a_reason_has_one_colour_in_every_bar(tmp_path: Path) -> None:
    rows = group("a", (0.5, 0.6), 0) + group("b", (1.0, 1.0), 2) + group("c", (1.0, 1.0), 4) + group("d", (0.0, 1.0), 6)
    trained(derived(tmp_path, rows, agent_match="worker", min_spread=0.3)[0])
    with open_page(tmp_path) as page:
        run = page.get("/run/run").text
    colours = defaultdict(list)
    for colour, reason in re.findall(r'<rect fill="([^"]+)"[^>]*><title>([a-z_ ]+): \d+</title>', run):
        colours[reason].append(colour)
    assert {reason: len(found) for reason, found in colours.items()} == {
        "trained on": 2, "no_spread": 2, "little_spread": 2, "agent_not_matched": 1,
    }  # fmt: skip
    assert all(len(set(found)) == 1 for found in colours.values()), colours
    assert len({found[0] for found in colours.values()}) == 4, colours
