"""What somebody who knows neither the code nor the run asks of the page, and is answered."""

from __future__ import annotations

import html
import json
import re
from collections import defaultdict
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from lightning_core.epoch.derive import derive
from lightning_core.epoch.epoch import Epoch
from lightning_core.lake.manifest import EpochManifest
from lightning_core.policies.store import PolicyStore
from lightning_core.ui.charts import ticks
from tests.lake_maker import derived, settings, trained
from tests.page_rig import group, open_page, rollout, visible


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


def test_a_task_shows_eight_answers_says_of_how_many_and_leads_to_the_rest(tmp_path: Path) -> None:
    derived(tmp_path, [row for number in range(11) for row in rollout(number, number / 10)])[0].rebuild_catalog()
    with open_page(tmp_path) as page:
        first = page.get("/run/run/task/g").text
        (link,) = re.findall(r'<a href="([^"]+)">all answers</a>', first)
        everything = page.get(f"/run/run/task/g{link}").text
    assert "8 of 11 answers" in visible(first)
    assert "of 11 answers" not in visible(everything)

    def answers(page: str) -> int:
        return page.partition("answer, or error")[2].partition("</table>")[0].count("<tr><td>")

    assert (answers(first), answers(everything)) == (8, 11)


def test_an_answer_without_a_letter_is_called_empty(tmp_path: Path) -> None:
    rows = [row for number in range(3) for row in rollout(number, float(number == 2))]
    for row in rows:
        if row["op"] == "rollout" and row["rollout_id"] != "r.2":
            row["output"] = json.dumps({"answer": "" if row["rollout_id"] == "r.0" else " \n"})
    derived(tmp_path, rows)[0].rebuild_catalog()
    with open_page(tmp_path) as page:
        said = {at: visible(page.get(f"/run/run/{at}").text) for at in ("task/g", "rollouts", "group/g", "rollout/r.0")}
    assert re.search(r"\(empty\) 1 0 r\.\d \(empty\) 1 0 r\.\d ", said["task/g"]), said["task/g"]
    assert said["rollouts"].count("(empty)") == said["group/g"].count("(empty)") == 2
    assert "got (empty)" in said["rollout/r.0"]


@pytest.mark.parametrize(
    ("low", "high", "whole", "at"),
    [
        (0, 352, False, [0, 100, 200, 300]),
        (128, 352, False, [150, 200, 250, 300, 350]),
        (0, 2, True, [0, 1, 2]),
        (0, 0.482, False, [0, 0.1, 0.2, 0.3, 0.4]),
        (0, 1, False, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (-0.3, 0.9, False, [0, 0.5]),
        (3, 3, True, [3]),
        (0, 1e-9, True, [0]),
    ],
)
def test_an_axis_has_round_numbers(low: float, high: float, whole: bool, at: list[float]) -> None:
    assert ticks(low, high, whole) == pytest.approx(at)


def test_numbers_that_no_axis_can_hold_are_a_table_alone(tmp_path: Path) -> None:
    derived(tmp_path, rollout(0, 1.0))[0].rebuild_catalog()
    with open_page(tmp_path) as page:
        for value in ("'nan'", "'inf'", "1.7e308"):
            query = f"SELECT 1 AS x, 2 AS y UNION ALL SELECT 2, -({value}::DOUBLE)"
            answer = page.get("/ask", params={"q": query})
            assert answer.status_code == 200 and "2 rows" in visible(answer.text), value
            assert 'class="chart"' not in answer.text, value


def test_the_search_of_every_page_leads_to_a_rollout_or_a_task_by_its_id(tmp_path: Path) -> None:
    rows = group("task/7", (1.0, 0.0), 0) + group("task/70", (1.0,), 2)
    derived(tmp_path, rows)[0].rebuild_catalog()
    with open_page(tmp_path) as page:
        for address in ("/", "/run/run", "/run/run/tasks", "/policies", "/ask"):
            assert 'action="/search"' in page.get(address).text, address
        led = {
            words: page.get("/search", params={"q": words, "run": "run"}, follow_redirects=False).headers.get(
                "location"
            )
            for words in ("r.1", " task/7 ", "run", "", "task", "nothing")
        }
        several = page.get("/search", params={"q": "TASK/7"}).text
        assert "no id is exactly that; 4 that have it" in visible(several)
        assert 'href="/run/run/task/task/70"' in several
        by_text = visible(page.get("/search", params={"q": "6 times"}).text)
        assert "task task/7 run What is 6 times 7?" in by_text and "rollout r." not in by_text
        assert "no run, task, group or rollout" in visible(page.get("/search", params={"q": "%"}).text)
    assert led == {
        "r.1": "/run/run/rollout/r.1?epoch=0", " task/7 ": "/run/run/task/task/7", "run": "/run/run", "": "/run/run",
        "task": None, "nothing": None,
    }  # fmt: skip


def test_the_help_has_the_keys_and_the_words_in_ten_lines(tmp_path: Path) -> None:
    derived(tmp_path, rollout(0, 1.0))[0].rebuild_catalog()
    with open_page(tmp_path) as page:
        dialog = page.get("/").text.partition("<dialog")[2].partition("</dialog>")[0]
    terms = [visible(term) for term in re.findall(r"<dt>.*?</dt>", dialog)]
    assert terms[2:] == ["epoch", "version", "reward", "group", "advantage", "held-out"]
    assert len(terms) <= 10 and set(" · ".join(terms[:2]).split(" · ")) >= {"g", "t", "/", "?"}


def test_the_page_has_an_icon(tmp_path: Path) -> None:
    derived(tmp_path, rollout(0, 1.0))[0].rebuild_catalog()
    with open_page(tmp_path) as page:
        assert '<link rel="icon" href="/favicon.ico">' in page.get("/").text
        icon = page.get("/favicon.ico")
        assert (icon.status_code, icon.headers["content-type"]) == (200, "image/svg+xml")


def test_a_run_says_whose_calls_were_trained_on_beside_the_pattern(tmp_path: Path) -> None:
    rows = group("g", (1.0, 0.0), 0)
    for row in rows:
        if row["agent_name"] == "judge":
            row["agent_name"] = "reworker"
    lake, epoch = derived(tmp_path, rows, agent_match="worker")
    Epoch(settings(tmp_path, agent_match="worker"), epoch).save()
    trained(lake)
    with open_page(tmp_path) as page:
        said = visible(page.get("/run/run").text)
    assert "policy trained on calls of reworker (2), worker (2)" in said, said
    assert "policies.0.agent_match worker trained on calls of reworker (2), worker (2); a pattern may stand" in said


def test_a_reason_is_given_once_a_call(tmp_path: Path) -> None:
    rows = group("g", (1.0, 1.0), 0)
    derived(tmp_path, rows, agent_match="worker")[0].rebuild_catalog()
    with open_page(tmp_path) as page:
        shown = page.get("/run/run/rollout/r.0").text
    for call, reason in zip(re.findall(r'<section class="call".*?</section>', shown, re.DOTALL), ("no_spread", "agent_not_matched"), strict=True):  # fmt: skip
        assert call.count(reason) == 1 and call.count("not trained") == 1, call
    assert shown.count("every rollout of the group got the same return") == 1


def test_calls_of_no_policy_have_a_bar_of_their_own(tmp_path: Path) -> None:
    rows = group("g", (1.0, 0.0), 0)
    for row in rows:
        if row["op"] == "llm" and row["parent_span_id"] and row["response_ids"] == [6]:
            row |= {"policy": None, "policy_version": None, "model": "judge"}
    trained(derived(tmp_path, rows, agent_match="worker")[0])
    with open_page(tmp_path) as page:
        card = page.get("/run/run").text.partition("Where their calls went")[2]
    assert re.search(r"^ ?policy .*trained on 2 100.* no policy .*other_policy 2 100", visible(card)), visible(card)


def test_tokens_of_an_adapter_are_read_with_the_tokenizer_of_its_base(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    Tokenizer(WordLevel({"?": 0, "forty": 3, "two": 4}, "?")).save(str(base / "tokenizer.json"))
    PolicyStore(tmp_path, "policy").publish_base(base, str(base), "lora")
    derived(tmp_path, rollout(0, 1.0))[0].rebuild_catalog()
    with open_page(tmp_path) as page:
        assert "sampled forty two" in visible(page.get("/run/run/rollout/r.0").text)


def test_a_task_that_was_right_only_where_it_was_shown_was_never_solved(tmp_path: Path) -> None:
    told = group("told", (1.0,), 0, epoch=0) + group("both", (1.0,), 1, epoch=0)
    for row in told:
        if row["op"] == "llm":
            row["untrainable"] = "guided"
    own = group("told", (0.0, 0.0), 2, epoch=1) + group("both", (1.0, 0.0), 4, epoch=1)
    lake, _ = derived(tmp_path, told + own)
    for number, algorithm in ((0, "sft"), (1, "grpo")):
        opened = EpochManifest(run="run", epoch=number, opened_offset=0, sealed_offset=1 << 40)
        of_epoch = Epoch(settings(tmp_path, algorithm=algorithm), opened)
        derive(of_epoch, "key")
        of_epoch.save()
    lake.rebuild_catalog()
    with open_page(tmp_path) as page:
        shown = page.get("/run/run/tasks").text
        run = visible(page.get("/run/run").text)
    said = visible(shown)
    assert "1 of 2 never solved in the whole run" in said
    assert "1 of them were right only in a demonstration" in said
    rows = [visible(row) for row in re.findall(r"<tr>(.*?)</tr>", shown.partition("<tbody>")[2], re.DOTALL)]
    assert rows == ["What is 6 times 7? told shown 0/2 never only shown", "What is 6 times 7? both shown 1/2 50.0%"]
    assert "not of the agent; 2 of them are demonstrations, whose replies were given" in run


def test_never_solved_says_in_what(tmp_path: Path) -> None:
    derived(tmp_path, group("g", (0.0, 0.0), 0))[0].rebuild_catalog()
    with open_page(tmp_path) as page:
        assert "1 of 1 never solved in the whole run" in visible(page.get("/run/run/tasks").text)
        assert "Why it was never solved in this run" in visible(page.get("/run/run/task/g").text)
