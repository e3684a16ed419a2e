"""What the page says of a run's evaluations: what they are called, what was gained, and whether that may be chance."""

from __future__ import annotations

import html
import re
from pathlib import Path

import duckdb
import pytest

from lightning_core.epoch.derive import derive
from lightning_core.epoch.epoch import Epoch
from lightning_core.events import named
from lightning_core.lake import sql
from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import EpochManifest
from lightning_core.lake.why import Finding
from tests.lake_maker import Attempt, derived, settings
from tests.page_rig import Rows, curves, open_page, visible


def test_an_evaluation_is_named_by_what_it_comes_after(tmp_path: Path) -> None:
    curves(tmp_path)
    pages = (
        "",
        "?by=epochs",
        "/rollouts",
        "/tasks?mode=evaluate",
        "/compare",
        "/task/t0",
        "/rollout/evaluate.2.0",
        "/group/evaluate.2.0",
    )
    with open_page(tmp_path) as page:
        shown = {at: page.get(f"/run/run{at}").text for at in pages}
    for at, text in shown.items():
        said = visible(re.sub(r"<svg.*?</svg>", "", text, flags=re.DOTALL))
        assert "after epoch 1" in said, at
        assert at != "/rollouts" or "epoch 2, or evaluation after epoch 1" in said
        assert not re.search(r"after \d|(?<!this )evaluation \d|\d epochs|held-out \d|\be\d\b", said), (at, said)
    listed = re.findall(r'<td class="n">((?:epoch|evaluation)[^<]*)<', shown["/rollouts"])
    assert list(dict.fromkeys(listed)) == [
        "evaluation after epoch 1",
        "epoch 1",
        "epoch 0",
        "evaluation before training",
    ]
    assert "held-out right, evaluation after epoch 1, epochs trained before 2:" in shown["?by=epochs"]
    assert "reward, epoch 1, training rollouts 6:" in shown[""]


@pytest.mark.parametrize("mode", ["train", "evaluate"])
def test_sql_and_python_name_an_epoch_alike(mode: str) -> None:
    con = duckdb.connect()
    con.execute(sql.text("macros"))
    for number in (0, 1, 12):
        assert con.execute("SELECT name_of(?, ?)", [mode, number]).fetchall() == [(named(mode, number),)]


def test_findings_of_evaluations_say_after_which_epochs() -> None:
    def of(mode: str, epochs: list[int]) -> str:
        return Finding("r", "note", mode, None, epochs, "", "", "", "").where.removeprefix("r · ")

    assert of("evaluate", [0]) == "evaluation before training"
    assert of("evaluate", [0, 2, 3]) == "evaluations before training, after epochs 1 to 2"
    assert (of("evaluate", [3]), of("train", [0, 2])) == ("evaluation after epoch 2", "epochs 0, 2")


def test_the_list_of_runs_says_how_sure_the_held_out_share_is(tmp_path: Path) -> None:
    curves(tmp_path)
    with open_page(tmp_path) as page:
        said = visible(page.get("/").text)
    assert "50.0% before training 0.0% after epoch 1, of 2 (95%: 0.0% to 65.8%)" in said, said
    assert "-50.0 points too few tasks to tell from chance" in said


def test_the_list_of_runs_says_when_each_began_how_long_it_took_and_of_what_its_reward_is(tmp_path: Path) -> None:
    curves(tmp_path)
    with open_page(tmp_path) as page:
        said = visible(page.get("/").text)
    assert "run at rest 1970-01-01 00:01 3 min 2 10 0 50.0% before training" in said, said
    assert "Training reward: of the tasks that the last epoch drew, answered by the version before" in said
    assert "of what was imitated" not in said, "the last epoch is not by sft"
    imitating = EpochManifest(run="run", epoch=1, opened_offset=0, sealed_offset=1 << 40)
    Epoch(settings(tmp_path, algorithm="sft"), imitating).save()
    Lake(tmp_path).rebuild_catalog()
    with open_page(tmp_path) as page:
        assert "of what was imitated" in visible(page.get("/").text)


def test_a_run_says_on_how_many_tasks_it_was_evaluated_and_what_the_limit_was(tmp_path: Path) -> None:
    curves(tmp_path)
    with open_page(tmp_path) as page:
        assert "2 held-out tasks (evaluation.limit: 192)" in visible(page.get("/run/run").text)


def test_a_run_that_was_first_evaluated_later_says_since_when(tmp_path: Path) -> None:
    curves(tmp_path, first=1)
    with open_page(tmp_path) as page:
        assert "the same 2 tasks after epoch 0 and after epoch 1;" in visible(page.get("/run/run").text)


def test_the_gain_is_more_than_chance_or_may_be_chance_and_leads_to_the_answers(tmp_path: Path) -> None:
    for home, rose, said_so in (
        ("sure", 12, "yes :"),
        ("chance", 1, "not certain yet :"),
        ("few", 0, "not certain yet :"),
    ):
        rows: Rows = []
        for epoch, right in ((0, 0), (1, 12), (2, rose)):
            for task in range(12 if rose else 3):
                made = Attempt(f"{epoch}.{task}", "a", f"{epoch}.{task}", start=100.0 + 60 * epoch)
                made.root(mode="evaluate", epoch=epoch, task_id=f"t{task}")
                made.reward(float(task < right))
                rows += made.rows
        lake, _ = derived(tmp_path / home, rows, mode="evaluate")
        for epoch in (1, 2):
            opened = EpochManifest(run="run", epoch=epoch, mode="evaluate", opened_offset=0, sealed_offset=1 << 40)
            derive(Epoch(settings(tmp_path / home), opened), "key")
            Epoch(settings(tmp_path / home), opened).save()
        lake.rebuild_catalog()
        with open_page(tmp_path / home) as page:
            run = page.get("/run/run").text
            runs = visible(page.get("/").text)
        words = {
            "sure": "more than chance explains",
            "chance": "may be chance: its interval holds 0",
            "few": "too few tasks to tell from chance",
        }[home]
        shown = visible(run)
        assert f"Is it learning? {said_so}" in shown and shown.count(words) == 2 and words in runs, (home, shown)
        links = [html.unescape(link) for link in re.findall(r'href="([^"]*compare[?][^"]*)"', run)]
        assert links == ["/run/run/compare?before=0&after=2"] + ["/run/run/compare?before=0&after=1"] * (home != "sure")


def test_the_two_curves_have_one_axis_and_say_why_they_differ(tmp_path: Path) -> None:
    curves(tmp_path)
    with open_page(tmp_path) as page:
        for by, numbers in (("rollouts", "0 2 4 6"), ("epochs", "0 1 2"), ("time", "0 1 2 3")):
            run = page.get(f"/run/run?by={by}").text
            charts = re.findall(r'<svg class="chart".*?</svg>', run, re.DOTALL)
            across = [" ".join(re.findall(r'text-anchor="middle">([^<]+)<', chart)) for chart in charts]
            assert across == [numbers, numbers], by
    said = visible(run)
    assert "sampled at the policy's temperature by the version before they were trained on" in said
    assert "tasks of kinds that are not solved yet are drawn more often" in said
    assert re.search(r"epoch 0, imitation \(sft\) 3 3 0\.333 of examples .* epoch 1 3 3 0\.333 \d", said), said


def test_the_reward_of_what_was_imitated_is_no_part_of_the_agents_curve(tmp_path: Path) -> None:
    curves(tmp_path)
    with open_page(tmp_path) as page:
        run = page.get("/run/run").text
    chart = re.findall(r'<svg class="chart".*?</svg>', run, re.DOTALL)[1]
    points = re.findall(r'<circle class="line(\d)"[^>]*><title>([^,]*), ([^,]*),', chart)
    assert points == [("0", "reward", "epoch 1"), ("1", "reward of examples", "epoch 0")]
    assert (
        "epochs of imitation (sft): the reward of the examples, not of the agent. What comes after is no fall"
        in visible(run)
    )
