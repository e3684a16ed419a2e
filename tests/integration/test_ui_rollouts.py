"""The pages of rollouts, one rollout, a group and a task: what somebody who came to look for one thing has to find there."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from lightning_core.config import TrackingSettings
from lightning_core.epoch.derive import derive
from lightning_core.epoch.epoch import Epoch, Run
from lightning_core.epoch.finetune import open_finetune
from lightning_core.lake.manifest import EpochManifest
from lightning_core.tracking import traces
from lightning_flows.flows.cli import main
from tests.lake_maker import Attempt, derived, settings, trained
from tests.page_rig import open_page, rollout, visible

Rows = list[dict[str, Any]]
ASKED, SAID = ({"role": "user", "content": "is it right?"},), ({"role": "assistant", "content": "RIGHT it is"},)
CHECKED: dict[str, Any] = {"input_messages": json.dumps(ASKED), "output_messages": json.dumps(SAID), "input_tokens": 7, "output_tokens": 2}  # fmt: skip


def checked(
    name: str, mode: str = "train", epoch: int = 0, version: str = "v0000", twin: bool = False, **checker_call: Any
) -> Rows:
    """A rollout of a writer, whom the policy answers, and a checker, whom a frozen model does; `twin`: the agent's instrumentation saw
    the checker's call too, without its messages."""
    made = Attempt(name, "a", f"{name}.g", start=100.0 + 10 * epoch)
    made.root(mode=mode, epoch=epoch, task_id="t", task='{"question": "6 times 7?", "answer": "42"}', output="42")
    writer, checker = made.agent("writer", (0.1, 0.4)), made.agent("checker", (0.5, 0.9))
    made.call([1], [2], (0.2, 0.3), writer, policy_version=version)
    above = made.span("ChatOpenAI", (0.59, 0.66), checker, op="llm", model="checker") if twin else checker
    made.span(
        "chat checker",
        (0.6, 0.65),
        above,
        op="llm",
        response_id="x",
        model="base",
        sender="gateway",
        **(CHECKED | checker_call),
    )
    made.reward(1.0)
    return made.rows


def home_of(home: Path, rows: Rows, *epochs: tuple[str, int], **changes: Any) -> None:
    """Derive these epochs of run `run` from the rows; changes are those of `settings`, of an epoch where its number begins them."""
    lake, _ = derived(home, rows)
    for mode, epoch in epochs:
        manifest = EpochManifest(run="run", epoch=epoch, mode=mode, opened_offset=0, sealed_offset=1 << 40)
        opened = Epoch(settings(home, **changes), manifest)
        derive(opened, "key")
        opened.save()
    lake.rebuild_catalog()


def test_evaluations_are_found_by_agent_version_and_kind(tmp_path: Path) -> None:
    rows = checked("t.0") + checked("e.0", "evaluate") + checked("e.2", "evaluate", 2, "v0002")
    home_of(tmp_path, rows, ("train", 0), ("evaluate", 0), ("evaluate", 2), agent_match="writer")
    with open_page(tmp_path) as page:
        for query, wanted in {
            "version=v0002": {"e.2"},
            "version=v0000": {"t.0", "e.0"},
            "version=v0000&mode=evaluate": {"e.0"},
            "agent=writer": {"t.0", "e.0", "e.2"},
            "agent=checker&mode=evaluate": {"e.0", "e.2"},
            "agent=checker&version=v0002": set(),
            "version=v0001": set(),
        }.items():
            shown = page.get(f"/run/run/rollouts?{query}").text
            assert set(re.findall(r">([te]\.\d)<", shown)) == wanted, query
        choices = re.search(r'<select name="version">(.*?)</select>', shown, re.DOTALL)
        assert choices and visible(choices[1]) == "any v0000 v0002"


@pytest.mark.parametrize("mode", ["train", "evaluate"])
@pytest.mark.parametrize(
    ("twin", "ids"), [(False, None), (True, None), (False, [8, 9])], ids=["gateway", "twice", "with ids"]
)
def test_a_frozen_models_call_has_its_messages_and_tokens(
    tmp_path: Path, mode: str, twin: bool, ids: list[int] | None
) -> None:
    rows = checked("r.0", mode, twin=twin, response_ids=ids)
    home_of(tmp_path, rows, (mode, 0), agent_match="writer")
    with open_page(tmp_path) as page:
        said = visible(page.get("/run/run/rollout/r.0").text)
    call = re.search(r"call 2 checker .*?RIGHT it is", said)
    assert call and "7+2 tokens" in call[0] and "is it right?" in call[0], said
    assert said.count("RIGHT it is") == 1


def test_a_frozen_models_call_is_in_the_comparison_of_evaluations(tmp_path: Path) -> None:
    rows = [row for epoch in range(2) for row in checked(f"e.{epoch}", "evaluate", epoch, twin=True)]
    home_of(tmp_path, rows, ("evaluate", 0), ("evaluate", 1), agent_match="writer")
    with open_page(tmp_path) as page:
        said = visible(page.get("/run/run/compare?before=0&after=1&task=t").text)
    assert said.count("is it right?") == said.count("RIGHT it is") == 2, said


@pytest.mark.parametrize("uri", [None, "https://mlflow.example"])
def test_the_link_to_mlflow_says_what_has_to_run(tmp_path: Path, uri: str | None) -> None:
    home_of(tmp_path, checked("r.0"), ("train", 0), tracking=TrackingSettings(mlflow_uri=uri))
    traces.keep(tmp_path, "run", "http://127.0.0.1:5000/#/experiments/1", [traces.trace_id("run", "train", 0, "r.0")])
    with open_page(tmp_path) as page:
        said = visible(page.get("/run/run/rollout/r.0").text)
    runs = f"page runs: mlflow ui --backend-store-uri sqlite:///{tmp_path}/mlflow.db , or lightning-flows up )"
    assert f"MLflow's trace (opens only while MLflow's {'server of the setting tracking.mlflow_uri runs' if uri else runs}" in said, said  # fmt: skip


def shown_and_tried(home: Path, first: str = "sft") -> None:
    """A task that was demonstrated in epoch 0 (by `sft`), and tried in epoch 1: wrongly, and with an error."""
    rows: Rows = []
    for name, epoch, output in (("shown", 0, "42"), ("tried", 1, "41"), ("broke", 1, None)):
        made = Attempt(name, "a", f"g{epoch}", start=100.0 + 10 * epoch)
        failed: dict[str, Any] = {"outcome": "error", "error": "no such tool"} if output is None else {}
        task = json.dumps({"question": "6 times 7?", "query": "42", "base": "ten"})
        made.root(epoch=epoch, task_id="t", task=task, output=output, **failed)
        untrainable = "guided" if epoch == 0 else None
        made.call([1], [2], (0.2, 0.3), made.agent("writer"), untrainable=untrainable)
        made.reward(float(output == "42"))
        rows += made.rows
    lake, _ = derived(home, rows)
    for epoch, algorithm in ((0, first), (1, "grpo")):
        manifest = EpochManifest(run="run", epoch=epoch, mode="train", opened_offset=0, sealed_offset=1 << 40)
        opened = Epoch(settings(home, algorithm=algorithm), manifest)
        derive(opened, "key")
        opened.save()
    lake.rebuild_catalog()


def test_a_demonstration_is_no_answer_of_the_agents_own(tmp_path: Path) -> None:
    shown_and_tried(tmp_path)
    with open_page(tmp_path) as page:
        rollout, group, task, listed, tried = (
            page.get(f"/run/run/{at}").text
            for at in ("rollout/shown", "group/g0", "task/t", "rollouts", "rollout/tried")
        )
        solved = {answer: page.get(f"/run/run/rollouts?solved={answer}").text for answer in ("yes", "no")}
    told = CliRunner().invoke(main, ["explain", "shown", "--run", "run", "--home", str(tmp_path)]).output
    assert "a demonstration: its reply was given" in told and "imitated: its policy is trained" in told, told
    for shown in (rollout, group, task):
        assert "not counted as solved" in visible(shown)
    assert "given 42 1 reward demonstration" in visible(rollout), visible(rollout)
    assert "assistant · given, to be imitated" in rollout and "trained: imitated" in rollout
    assert "imitated: its policy is trained to say the same (sft)" in visible(rollout)
    assert not re.search(r'class="(card|reward) good', rollout + group)
    assert "epoch 0 shown" in visible(task) and "epoch 1 0/2" in visible(task)
    assert "never right in 2 rollouts; the best got a reward of 0; 2 different answers 1 demonstration beside" in visible(task), visible(task)  # fmt: skip
    assert "demonstration" in visible(listed)
    assert "shown</a>" not in solved["yes"] and "shown</a>" not in solved["no"]
    assert (
        "demonstration" not in visible(tried).partition("This task over the epochs")[0]
        and "assistant · sampled" in tried
    )


def test_a_reply_within_a_given_form_is_a_demonstration_only_where_it_is_imitated(tmp_path: Path) -> None:
    shown_and_tried(tmp_path, "grpo")
    with open_page(tmp_path) as page:
        said = visible(page.get("/run/run/rollout/shown").text)
    assert "got 42 1 reward right" in said and "A demonstration" not in said
    assert "assistant · sampled within a form that was given" in said and "not trained: untrainable: guided" in said


def test_expected_stands_beside_what_came_out_and_an_error_is_shown(tmp_path: Path) -> None:
    shown_and_tried(tmp_path)
    with open_page(tmp_path) as page:
        rollout, broke, group, task = (
            visible(page.get(f"/run/run/{at}").text) for at in ("rollout/tried", "rollout/broke", "group/g1", "task/t")
        )
    assert "expected 42 the task's query · got 41" in rollout, "the gold one"
    assert re.search(r"What the task says fields of the task .*; nothing here is the agent's output query expected 42 base ten", rollout), rollout  # fmt: skip
    assert "Output what the agent returned 41" in rollout
    assert "expected 42" in group and "got 41" in group and re.search(r"error .*no such tool", group), group
    assert "no such tool" in broke and "expected 42" in broke
    assert "no such tool" in rollout, "of another of its group"
    assert re.search(r"error no such tool 1 0 broke", task), task
    assert re.search(r"broke no such tool 0 error", task.partition("Rollouts epoch")[2]), task


def test_how_a_span_came_to_its_place_is_said_in_words(tmp_path: Path) -> None:
    made = Attempt("r.0", "a", "g")
    made.root(task="q")
    made.agent("writer", (0.1, 0.4))
    made.call([1], [2], (0.2, 0.3))
    made.call([3], [4], (0.6, 0.7))
    made.reward(1.0)
    home_of(tmp_path, made.rows, ("train", 0))
    with open_page(tmp_path) as page:
        shown = page.get("/run/run/rollout/r.0").text
    titles = [html.unescape(title) for title in re.findall(r'title="([^"]*How it came to this place[^"]*)"', shown)]
    for said in (
        "in the time of exactly one agent, or of one inside the others.\nHow sure that is: 0.95 of 1: of 100 calls placed so, 95 were right when it was measured.",
        "under the root: no agent's time holds it.\nHow sure that is: 0.5 of 1: a guess, that nothing measures.",
        "the root span of the attempt.\nHow sure that is: certain (1 of 1): no span that was placed so ever stood wrong.",
    ):
        assert any(said in title for title in titles), (said, titles)
    assert "unplaced 0.5" not in shown and "sure 0.95" in visible(shown) and "0.5 is a guess" in visible(shown)


@pytest.mark.parametrize(("ratio", "said"), [(1.0, True), (1.1, False)])
def test_tokens_are_coloured_by_what_training_did_and_each_colour_is_explained(
    tmp_path: Path, ratio: float, said: bool
) -> None:
    rows = [row for number, reward in enumerate((1.0, 0.0)) for row in rollout(number, reward)]
    lake, _ = derived(tmp_path, rows + checked("e.0", "evaluate"))
    opened = EpochManifest(run="run", epoch=0, mode="evaluate", opened_offset=0, sealed_offset=1 << 40)
    derive(Epoch(settings(tmp_path), opened), "key")
    Epoch(settings(tmp_path), opened).save()
    trained(lake)
    (file,) = (tmp_path / "lake").rglob("*training_rows*.parquet")
    found = pq.read_table(file)
    ratios = [[ratio] * len(row) for row in found["ratios"].to_pylist()]
    at = found.schema.get_field_index("ratios")
    pq.write_table(found.set_column(at, "ratios", pa.array(ratios, found.schema.field(at).type)), file)
    with open_page(tmp_path) as page:
        train, evaluation = page.get("/run/run/rollout/r.1").text, page.get("/run/run/rollout/e.0").text
    assert 'coloured by-advantage"' in train and 'value="advantage" checked' in train
    assert 'coloured by-probability"' in evaluation and 'value="probability" checked' in evaluation
    for words in ("training made likelier what is green", "how likely the policy found each token", "how open the choice was"):  # fmt: skip
        assert words in visible(train)
    assert ("here every ratio is 1" in visible(train)) == said
    assert "no ratio was measured" in visible(evaluation) and "no ratio was measured" not in visible(train)


def test_a_rollout_says_whose_calls_earned_its_reward(tmp_path: Path) -> None:
    rows: Rows = []
    for number, reward in enumerate((1.0, 0.0)):
        made = Attempt(f"r.{number}", "a", "g")
        made.root(task="q")
        for name, at, tokens in (("planner", 0.1, 1), ("writer", 0.3, 3), ("judge", 0.5, 5)):
            made.call([1], [2] * tokens, (at + 0.05, at + 0.1), made.agent(name, (at, at + 0.15)))
        made.reward(reward)
        rows += made.rows
    home_of(tmp_path, rows, ("train", 0), agent_match="planner|writer")
    with open_page(tmp_path) as page:
        said = visible(page.get("/run/run/rollout/r.0").text)
    card = said.partition("Who earned it")[2]
    assert card.startswith(" writer 75.0%, planner 25.0% of what this rollout teaches "), card
    assert re.search(r"writer 1 of 1 1 \+0\.707 planner 1 of 1 1 \+0\.707 judge 0 of 1 agent_not_matched", card), card


def test_a_newcomer_reads_what_the_words_mean(tmp_path: Path) -> None:
    rows = [row for number, reward in enumerate((1.0, 0.0)) for row in rollout(number, reward)]
    rows += rollout(2, 1.0, outcome="infrastructure")
    for row in rows:
        row["sender"] = "secret" if row["op"] == "rollout" else "attempt"
    derived(tmp_path, rows, agent_match="worker")[0].rebuild_catalog()
    with open_page(tmp_path) as page:
        shown = {at: page.get(f"/run/run/{at}").text for at in ("rollouts", "rollout/r.0?raw=1", "group/g")}
    listed, one, group = shown.values()
    assert 'title="what became of a training rollout. counted: it ended with a result, right or wrong' in listed
    assert 'title="the infrastructure broke this execution, not the agent">infrastructure' in listed
    assert "the return is what a call is credited with (here the rollout's reward)" in visible(one)
    assert "each is compared with the others" in visible(one) and "which are compared with each other" in visible(group)
    assert "attempt (sent by the agent's own process" in visible(one) and "secret (sent by what runs the agent or grades it" in visible(one)  # fmt: skip


def test_one_or_two_more_answers_are_not_hidden(tmp_path: Path) -> None:
    for number in (8, 10, 11):
        rows = [row for nth in range(number) for row in rollout(nth, nth / 16)]
        derived(tmp_path / str(number), rows)[0].rebuild_catalog()
        with open_page(tmp_path / str(number)) as page:
            shown = page.get("/run/run/task/g").text
        assert ("3 more: these are 8 of 11 answers" in visible(shown)) == (number == 11)
        answers = shown.partition("answer, or error")[2].partition("</table>")[0].count("<tr><td>")
        assert answers == (8 if number == 11 else number)


def test_a_rollout_that_a_finetuning_of_its_run_took_too_is_shown_as_it_was_rolled_out(tmp_path: Path) -> None:
    rows = [row for number, reward in enumerate((1.0, 0.0)) for row in rollout(number, reward)]
    Epoch(settings(tmp_path), derived(tmp_path, rows, planned=["r.0", "r.1"])[1]).save()
    finetuning = open_finetune(Run(settings(tmp_path, algorithm="sft", finetune={})), 1, {"policy": "v0001"})
    derive(finetuning, "key")
    finetuning.save()
    finetuning.lake.rebuild_catalog()
    with open_page(tmp_path) as page:
        answer = page.get("/run/run/rollout/r.0")
    assert answer.status_code == 200 and "epoch 0 · 1.0 s" in visible(answer.text), visible(answer.text)
