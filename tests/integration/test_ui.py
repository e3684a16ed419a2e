"""`lightning-flows ui`: what its pages show of a lake, and whom they show it to."""

from __future__ import annotations

import errno
import html
import io
import re
import shutil
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient

from lightning_core.config import RolloutSettings
from lightning_core.epoch.derive import derive
from lightning_core.epoch.epoch import Epoch
from lightning_core.files import locked
from lightning_core.lake import catalog, sql, user_sql
from lightning_core.lake.manifest import EpochManifest
from lightning_core.policies.removed import Removal, note_removals
from lightning_core.policies.store import Lineage
from lightning_core.policies.version_manifest import Evaluation
from lightning_core.ui.guard import Allowed
from tests.lake_maker import Attempt, derived, settings
from tests.page_rig import HOSTILE, PAGES, one_epoch, open_page, rollout, until, visible
from tests.policy_files import store_with_base, write_model


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    one_epoch(folder)
    return folder


@pytest.fixture
def page(home: Path) -> Iterator[TestClient]:
    with open_page(home) as client:
        yield client


@pytest.mark.parametrize("address", PAGES)
def test_every_page_answers(page: TestClient, address: str) -> None:
    answer = page.get(address)
    assert answer.status_code == 200, answer.text


def test_a_rollout_shows_whose_call_it_was_what_it_was_given_and_each_token(page: TestClient) -> None:
    answer = page.get("/run/run/rollout/r.1").text
    said = visible(answer)
    assert "expected 42 · got 0.0" in said
    assert re.search(r"call 1 worker · policy v0000 · 2\+2 tokens · 0\.1 s advantage -1\.\d\d trained", said), said
    assert "call 2 judge" in said and "not trained: agent_not_matched" in said
    assert re.search(r"return 0 − group mean 0\.667 ÷ \(standard deviation 0\.\d+ \+ 0\.0001\) = -1\.\d+", said), said
    likely, unlikely = re.findall(r'<span class="p(\d) e3 m3" title="p = ([\d.]+), advantage -1', answer)[:2]
    assert likely == ("5", "0.990") and unlikely == ("0", "0.018")
    assert answer.count("ratio 1.100, entropy 0.500") == 2, "of the worker's two tokens alone"
    assert page.get("/run/run/rollout/r.0").text.count("ratio 1.100, clipped, entropy 0.500") == 2
    assert "six times seven" not in said, "what was sampled is shown by its tokens, once"
    assert "over 3 rollouts; 1 of 2 calls trained on, of worker" in said, said
    assert "Group of 3" in said and "grader, for the whole rollout" in said


def test_a_group_that_taught_nothing_has_its_mean_and_why(tmp_path: Path) -> None:
    lake, epoch = derived(tmp_path, [row for number in range(2) for row in rollout(number, 1.0)])
    Epoch(settings(tmp_path), epoch).save()
    lake.rebuild_catalog()
    with open_page(tmp_path) as page:
        said = visible(page.get("/run/run/group/g").text)
        task = visible(page.get("/run/run/task/g").text)
    assert "mean 1, standard deviation 0" in said and "not derived" not in said, said
    assert (
        "no_spread : nothing is learned from this group, since every rollout of the group got the same return" in said
    )
    assert "right: a reward of at least 1 (evaluation.success_reward) · rewarded by what the agent emits" in said, said
    assert "right in 2 of 2 rollouts; the best got a reward of 1; 1 different answer answer, or error" in task, task


def test_each_reason_of_the_docs_is_explained() -> None:
    rows = (
        (Path(__file__).parents[2] / "docs/credit.md").read_text().rpartition("| `reason` | |")[2].partition("\n## ")[0]
    )
    named = {reason for row in rows.splitlines() for reason in re.findall(r"`([a-z_]+)(?:: …)?`", row.split(" | ")[0])}
    assert len(named) > 25
    assert named == set(re.findall(r"^    \('([a-z_]+)'", sql.text("page/reasons"), re.MULTILINE))


def test_a_task_says_why_it_was_never_solved(tmp_path: Path) -> None:
    rows = [row for number in range(2) for row in rollout(number, 0.0)]
    rows += rollout(2, 0.0, outcome="error", error="no such tool")
    for row in rows:
        if row["op"] == "llm" and row["rollout_id"] == "r.1":
            row["finish_reasons"] = '["length"]'
    derived(tmp_path, rows, min_spread=0.3)[0].rebuild_catalog()
    with open_page(tmp_path) as page:
        said = visible(page.get("/run/run/task/g").text)
    assert (
        "Why it was never solved in this run never right in 3 rollouts; the best got a reward of 0; 2 different answers; 1 rollout with a"
        in said
    ), said
    assert "expected 42" in said and re.search(r"0\.0 2 0 1 r\.1 error no such tool 1 0 r\.2", said), said


def test_the_versions_of_a_policy_have_their_evaluation_and_those_that_are_gone_why(tmp_path: Path) -> None:
    derived(tmp_path, rollout(0, 1.0))[0].rebuild_catalog()
    store = store_with_base(tmp_path)
    for number in range(3):
        lineage = Lineage(run="run", epoch=number, base_model="base", parent=f"v{number:04d}")
        made = store.publish(write_model(tmp_path / f"out{number}", number + 1.0), lineage)
        right = 0.5 + 0.1 * (number == 1)
        store.evaluated(made, Evaluation(run="run", epoch=number + 1, tasks=64, right=right, reward=0.6, held_out="d"))
    store.set_current("v0003")
    gone = Removal(at="2026-11-25 10:00 UTC", by="run run", keep_every=None, digest=None)
    note_removals(store.path("v0001").parent, {"v0001": gone})
    shutil.rmtree(store.path("v0001"))
    with open_page(tmp_path) as page:
        shown = page.get("/policies").text
    said = visible(shown)
    for leads in ('<a href="/run/run">run</a>', 'href="/run/run/rollouts?epoch=3&amp;mode=evaluate"'):
        assert leads in shown, "a version leads to the run and the evaluation that it is of"
    assert "served : what vLLM was last told to serve" in said and "the highest share right" in said
    assert "v0003 is served, v0002 is best: a run serves the version that it trains or evaluates next" in said, said
    assert f"lightning-flows policies use policy v0002 --home {tmp_path} makes" in said, said
    assert "50.0% of 64 tasks right, reward 0.6 after epoch 2 of run" in said, said
    assert re.search(r"v0002 .*v0001 removed on 2026-11-25 10:00 UTC by run run .*v0000", said), said


def test_an_evaluation_stands_behind_the_rollouts_that_were_trained_on_before_it(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    for mode, epoch in (("evaluate", 0), ("train", 0), ("train", 1), ("evaluate", 2)):
        made = Attempt(f"{mode}.{epoch}", "a", f"{mode}.{epoch}", start=100.0 + 10 * epoch)
        made.root(mode=mode, epoch=epoch, task_id="t")
        made.reward(1.0)
        rows += made.rows
    lake, _ = derived(tmp_path, rows)
    for mode, epoch in (("evaluate", 0), ("train", 1), ("evaluate", 2)):
        opened = EpochManifest(run="run", epoch=epoch, mode=mode, opened_offset=0, sealed_offset=1 << 40)
        derive(Epoch(settings(tmp_path), opened), "key")
        Epoch(settings(tmp_path), opened).save()
    lake.rebuild_catalog()
    with catalog.connect(lake.root) as con:
        found = con.execute(
            f"SELECT mode, epoch, trained_on FROM ({sql.text('page/curve')})", {"run": "run"}
        ).fetchall()
    assert sorted(found) == [("evaluate", 0, 0), ("evaluate", 2, 2), ("train", 0, 1), ("train", 1, 2)]


def test_a_runs_page_begins_with_what_is_wrong_and_leads_to_its_rows(tmp_path: Path) -> None:
    rows = [row for number in range(8) for row in rollout(number, 0.0)]
    for row in rows:
        if row["group_id"]:
            row |= {"group_id": f"g{row['rollout_id'][-1]}", "task_id": f"t{row['rollout_id'][-1]}"}
    derived(tmp_path, rows)[0].rebuild_catalog()
    with open_page(tmp_path) as page:
        first = page.get("/run/run").text
        assert "error epoch 0: the grader gave reward 0 to all 8 rollouts of 8 tasks" in visible(first)
        (link,) = [html.unescape(a) for a in re.findall(r'href="(/ask[?]q=[^"]+)"', first) if "rewards_given" in a]
        assert "1 rows" in visible(page.get(link).text)
        assert page.get("/run/run").text == first


def test_a_run_says_where_its_rollouts_went(page: TestClient, tmp_path: Path) -> None:
    assert "3 sampled → 3 counted → 3 trained on" in visible(page.get("/run/run").text)
    rows = [row for number in range(2) for row in rollout(number, 1.0)] + rollout(2, 1.0, outcome="infrastructure")
    derived(tmp_path, rows)[0].rebuild_catalog()
    with open_page(tmp_path) as other:
        said = visible(other.get("/run/run").text)
    assert re.search(
        r"3 sampled → 2 counted → 0 trained on .*no_spread 2 66\.7% every rollout .*infrastructure 1 33\.3%", said
    ), said


def test_a_runs_page_has_its_settings_and_first_what_differs_from_another_runs(tmp_path: Path) -> None:
    lake, epoch = derived(tmp_path, rollout(0, 1.0))
    for run, size in (("run", 4), ("other", 6)):
        of_run = settings(tmp_path, rollout=RolloutSettings(group_size=size, concurrency=3))
        of_run.agent.environment["KEY"] = "hidden"
        Epoch(of_run.model_copy(update={"run": run}), epoch.model_copy(update={"run": run})).save()
    lake.rebuild_catalog()
    with open_page(tmp_path) as page:
        said = visible(page.get("/run/run?beside=other").text)
    assert "setting run other rollout.group_size 4 6 agent.callable agent:run agent:run" in said, said
    assert "rollout.concurrency 3 3" in said and "hidden" not in said


def test_what_a_span_holds_stays_text(tmp_path: Path) -> None:
    rows = [row for number in range(2) for row in rollout(number, float(number), HOSTILE, error=HOSTILE)]
    lake, _ = derived(tmp_path, rows)
    lake.rebuild_catalog()

    class Elements(HTMLParser):
        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            assert tag not in ("img", "iframe", "object"), tag
            for name, value in attributes:
                assert not name.startswith("on") and name != "style", (tag, name)
                if name in ("href", "src", "action"):
                    assert (value or "").startswith(("/", "#", "?")), value
            if tag == "script":
                assert dict(attributes).get("src") == "/static/page.js"

    with open_page(tmp_path) as page:
        for address in (
            *PAGES,
            "/run/run/rollouts?words=%22%3E%3Cscript%3E",
            "/ask?q=%3Cscript%3E",
            "/search?q=%3Cscript%3E&run=%3Cscript%3E",
        ):
            answer = page.get(address)
            assert answer.status_code == 200, address
            Elements().feed(answer.text)
            assert "49javascript" not in answer.text, "a template was made of what a span holds"
            assert "script-src 'self'" in answer.headers["content-security-policy"]


def test_the_sql_of_every_figure_can_be_asked_again(page: TestClient, home: Path) -> None:
    found = {sql for address in PAGES for sql in re.findall(r"<pre>(-- [^<]*)</pre>", page.get(address).text)}
    assert len(found) >= 20
    for text in map(html.unescape, found):
        with catalog.connect_alone(home / "lake") as con, user_sql.asked(con, text) as answer:
            assert answer.columns, text
            assert list(answer.rows()) or "What the time" in text or "'evaluate'" in text, text


def test_each_filter_of_the_rollouts_changes_what_is_shown(page: TestClient) -> None:
    def shown(query: str) -> set[str]:
        return set(re.findall(r">(r\.\d)<", page.get(f"/run/run/rollouts?{query}").text))

    assert shown("") == {"r.0", "r.1", "r.2"}
    for query, wanted in {
        "solved=no": {"r.1"},
        "low=0.5": {"r.0", "r.2"},
        "high=0.5": {"r.1"},
        "words=0.0": {"r.1"},
        "epoch=1": set(),
        "mode=evaluate": set(),
        "task=other": set(),
        "agent=nobody": set(),
        "agent=judge": {"r.0", "r.1", "r.2"},
        "version=v0001": set(),
        "reason=no_spread": set(),
        "reason=agent_not_matched": {"r.0", "r.1", "r.2"},
        "skip=2": {"r.2"},
    }.items():
        assert shown(query) == wanted, query
    assert page.get("/run/run/rollouts?low=much").status_code == 400


def test_a_rollout_that_is_not_derived_yet_says_so_and_the_page_follows(tmp_path: Path) -> None:
    lake, epoch = derived(tmp_path, rollout(0, 1.0))
    epoch.tables = {}
    lake.manifests.put_epoch(epoch)
    lake.rebuild_catalog()
    with open_page(tmp_path) as page:
        assert "data-live" not in page.get("/run/run").text
        with locked(lake.root / "manifests" / "run" / "lock"):
            assert 'data-live="4"' in page.get("/run/run").text
            assert "running" in visible(page.get("/").text)
        assert "not yet derived" in visible(page.get("/run/run/rollout/r.0").text)
        derived(tmp_path, rollout(0, 1.0) + rollout(1, 0.0))
        lake.rebuild_catalog()
        until(lambda: "call 1" in visible(page.get("/run/run/rollout/r.0").text), "the new catalog was not opened")


def test_nobody_waits_while_a_new_catalog_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake, _ = derived(tmp_path, rollout(0, 1.0))
    lake.rebuild_catalog()
    may_open, opened = threading.Event(), catalog.connect_alone
    with open_page(tmp_path) as page:
        assert "1 rollouts" in visible(page.get("/run/run/rollouts").text)
        monkeypatch.setattr(catalog, "connect_alone", lambda root: may_open.wait(60) and opened(root))
        derived(tmp_path, rollout(0, 1.0) + rollout(1, 0.0))
        lake.rebuild_catalog()
        with locked(lake.root / "manifests" / "run" / "lock"):
            for _ in range(2):
                shown = page.get("/run/run/rollouts").text
                assert "1 rollouts" in visible(shown), "the former one is shown"
                assert 'data-live="1"' in shown, "a page that follows asks again soon"
        may_open.set()
        until(lambda: "2 rollouts" in visible(page.get("/run/run/rollouts").text), "the new catalog was not opened")


def test_a_disk_that_was_full_keeps_no_page_at_the_former_catalog(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, _ = derived(tmp_path, rollout(0, 1.0))
    lake.rebuild_catalog()
    opened = catalog.connect_alone

    def full(root: Path) -> None:
        monkeypatch.setattr(catalog, "connect_alone", opened)
        raise OSError(errno.ENOSPC, "No space left on device")

    with open_page(tmp_path) as page:
        assert "1 rollouts" in visible(page.get("/run/run/rollouts").text)
        monkeypatch.setattr(catalog, "connect_alone", full)
        derived(tmp_path, rollout(0, 1.0) + rollout(1, 0.0))
        lake.rebuild_catalog()
        until(lambda: "2 rollouts" in visible(page.get("/run/run/rollouts").text), "the new catalog was not opened")


def test_two_evaluations_are_compared_task_by_task(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    for epoch in range(2):
        for number in range(3):
            made = Attempt(f"e{epoch}.{number}", "a", f"g{epoch}.{number}", start=100.0 + 10 * epoch)
            made.root(mode="evaluate", epoch=epoch, task_id=f"t{number}", task=f"task {number}", output=f"out {epoch}")
            made.call([1], [2], (0.2, 0.3))
            made.reward(float(number == 1 and epoch == 1))
            rows += made.rows
    lake, _ = derived(tmp_path, rows, mode="evaluate")
    second = EpochManifest(run="run", epoch=1, mode="evaluate", opened_offset=0, sealed_offset=1 << 40)
    derive(Epoch(settings(tmp_path), second), "key")
    Epoch(settings(tmp_path), second).save()
    lake.rebuild_catalog()
    with open_page(tmp_path) as page:
        compared = page.get("/run/run/compare?before=0&after=1").text
        first = re.search(r"<tbody>\s*<tr class=\"(\w*)\">(.*?)</tr>", compared, re.DOTALL)
        assert first and first[1] == "rose" and re.search("0 → 1 .* out 0 out 1", visible(first[2]))
        assert "task 1" in visible(first[2]), "what changed most comes first"
        assert "3 tasks: 1 rose in reward, 0 fell , 2 stayed" in visible(compared)
        both = visible(page.get("/run/run/compare?before=0&after=1&task=t1").text)
        assert re.search(
            r"before training · got out 0 , reward 0 .*call 1 .*after epoch 0 · got out 1 , reward 1 .*call 1 ", both
        ), both
        learned = visible(page.get("/run/run").text)
        assert (
            "not certain yet : a held-out task gained +0.333 in reward (95%: -0.320 to +0.987), 0 → 0.333" in learned
        ), learned
        assert "the same 3 tasks before training and after epoch 0" in learned
        assert "fell" in page.get("/run/run/compare?before=1&after=0").text


def test_ask_answers_one_query_and_changes_nothing(page: TestClient, home: Path) -> None:
    answered = page.get("/ask", params={"q": "SELECT rollout_id, reward FROM rollouts ORDER BY ALL", "form": "csv"})
    assert answered.text.splitlines() == ["rollout_id,reward", "r.0,1.0", "r.1,0.0", "r.2,1.0"]
    as_parquet = page.get(
        "/ask", params={"q": "SELECT rollout_id, reward FROM rollouts ORDER BY ALL", "form": "parquet"}
    )
    table = pq.read_table(io.BytesIO(as_parquet.content))
    assert table.to_pydict() == {"rollout_id": ["r.0", "r.1", "r.2"], "reward": [1.0, 0.0, 1.0]}
    assert 'filename="answer.parquet"' in as_parquet.headers["content-disposition"]
    manifest = (home / "lake/manifests/run").rglob("*.json")
    before = {path: path.read_bytes() for path in manifest}
    for question in (
        f"COPY (SELECT 1) TO '{next(iter(before))}'",
        "SELECT * FROM read_text('/etc/passwd')",
        "DROP VIEW spans",
    ):
        for form in ("", "csv", "parquet"):
            answer = page.get("/ask", params={"q": question, "form": form})
            assert answer.status_code == 200 and 'class="bad"' in answer.text, question
            assert "root:" not in answer.text
    assert {path: path.read_bytes() for path in before} == before


def test_a_saved_question_says_what_it_answers_and_takes_parameters(page: TestClient) -> None:
    listed = page.get("/ask").text
    assert "How much the held-out tasks gained between any two evaluations of a run, task by task." in visible(listed)
    assert re.search(
        r'name="question" value="reward_by_agent".*?<option>run</option>.*?name="p_epoch"', listed, re.DOTALL
    )
    asked = {"question": "reward_by_agent", "p_run": "run", "p_epoch": ""}
    assert "FROM reward_by_agent(p_run := 'run') " in visible(page.get("/ask", params=asked).text)
    assert "0 rows" in visible(page.get("/ask", params=asked | {"p_epoch": "7"}).text)
    hostile = page.get("/ask", params=asked | {"p_run": "x') UNION ALL FROM read_text('/etc/passwd') --"}).text
    assert "0 rows" in visible(hostile) and "root:" not in hostile


def test_only_its_own_user_is_let_in(home: Path) -> None:
    with open_page(home) as page:
        assert page.get("/", headers={"host": "evil.example"}).status_code == 421, "a name that leads here by DNS"
        assert page.post("/ask").status_code == 405
        of_another_site = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}
        assert page.get("/ask?q=rollouts", headers=of_another_site).status_code == 403
        assert page.get("/static/../app.py").status_code == 404
    with open_page(home, Allowed(frozenset(), "secret"), "page.example") as page:
        assert page.get("/").status_code == 401
        assert page.get("/?token=wrong").status_code == 401
        assert page.get("/run/run?token=secret&by=time").url.query == b"by=time", "the token leaves the address"
        assert page.get("/").status_code == 200, "the browser keeps it as a cookie"


def test_what_is_not_there_is_said_in_words(page: TestClient, tmp_path: Path) -> None:
    for address in ("/run/nothere", "/run/run/rollout/x", "/run/run/group/x", "/run/run/task/x", "/nothere"):
        answer = page.get(address)
        assert answer.status_code == 404 and "Traceback" not in answer.text, address
    with open_page(tmp_path) as empty:
        assert "no catalog yet" in visible(empty.get("/").text)
