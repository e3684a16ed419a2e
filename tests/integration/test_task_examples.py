"""The experiments of examples/calc_x, spider and musique: agents, data and rewards through gateway and lake, with a scripted model.

Data are a few lines of the same shape as the real ones, made here.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web

from lightning_core.agents.venv import interpreter
from lightning_core.config import SettingsError
from lightning_core.doctor.trial import Trial, try_agent
from lightning_core.epoch.task_file import load_tasks
from lightning_core.lake import catalog
from lightning_core.process.spawn import Process
from lightning_core.settings_file import load_settings
from tests.canned_vllm import CannedVllm
from tests.gateway_rig import Rig, rig

pytestmark = pytest.mark.extra
ROOT = Path(__file__).parents[2]
SCHEMA = {
    "db_id": "shop",
    "table_names_original": ["item"],
    "column_names_original": [[-1, "*"], [0, "id"], [0, "colour"]],
    "column_types": ["text", "number", "text"],
    "primary_keys": [1],
    "foreign_keys": [],
}


class Scripted(CannedVllm):
    """Replies as `says(request)` tells: a text, or a tool call (name, arguments)."""

    says: Callable[[dict[str, Any]], str | tuple[str, dict[str, Any]]]

    async def _whole(self, body: dict[str, Any], chat: bool) -> web.Response:
        said = self.says(body)
        if isinstance(said, str):
            message: dict[str, Any] = {"role": "assistant", "content": said}
        else:
            function = {"name": said[0], "arguments": json.dumps(said[1])}
            call = {"id": f"call_{len(self.requests)}", "type": "function", "function": function}
            message = {"role": "assistant", "content": None, "tool_calls": [call]}
        self.script = [([len(self.requests), 7, 9], {k: v for k, v in message.items() if k != "role" and v})]
        response = await super()._whole(body, chat)
        reply = json.loads(response.text or "")
        reply["id"] = f"chatcmpl-{len(self.requests)}"
        reply["choices"][0]["message"] = message
        return web.json_response(reply)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with rig(tmp_path_factory.mktemp("home")) as made:
        yield made


def python_for(requirements: Path, environments: Path) -> Path:
    """The Python with these packages; the test is skipped where they cannot be had."""
    try:
        return interpreter(requirements, environments)
    except SettingsError as error:
        pytest.skip(f"its environment cannot be made here: {error}")


@pytest.fixture
def run(server: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Trial]:
    """Runs an example's first training task; the folder of its data is the test's own."""
    monkeypatch.setenv("LIGHTNING_DATA", str(tmp_path))
    monkeypatch.setenv("SPIDER_DATABASES", str(tmp_path / "databases"))
    monkeypatch.chdir(ROOT)

    def first(
        example: str,
        says: Callable[..., Any],
        tasks: str | None = None,
        name: str = "settings.yaml",
        **environment: str,
    ) -> Trial:
        file = ROOT / "examples" / example / name
        of_the_test = {"home": str(server.home), "run": f"{example}-{file.stem}", "agent.environment": environment}
        settings = load_settings(file, of_the_test)
        if name == "settings.yaml":
            assert load_settings(file.with_name("gpu.yaml")).agent.callable == settings.agent.callable
        assert settings.agent.python is not None
        python_for(settings.agent.python, settings.agent.environments)
        upstream = Scripted()
        upstream.says = says
        upstream.prompt_ids = [1, 5, 9]
        address = server.on_loop(upstream.start())
        sampling = settings.policies[0].sampling.model_dump(exclude_none=True)
        served = {"upstream": address, "model": "policy", "version": "v0000", "sampling": sampling}
        frozen = {name: {"upstream": address, "model": name} for name in settings.frozen}
        server.handle.set_routes({"policies": {"policy": served}, "frozen": frozen})
        for name in [name for name in sys.modules if name in ("tasks", "reward", "database", "databases")]:
            del sys.modules[name]  # each example has its own, in a process of its own
        monkeypatch.syspath_prepend(str(file.parent))
        chosen = load_tasks(tasks or settings.tasks.train, "tasks.train")[0]
        try:
            return try_agent(server.handle, settings, {"first": chosen.content})
        finally:
            server.on_loop(upstream.stop())

    return first


def asked(trial: Trial, question: str) -> list[tuple[Any, ...]]:
    assert trial.results["first"].status == "ok", trial.results["first"].error
    with catalog.connect(trial.epoch.lake.root) as con:
        return con.execute(question, [trial.epoch.run]).fetchall()


REWARD = "SELECT reward FROM rollouts WHERE run = ?"
CALLS = "SELECT agent, policy, left_out FROM policy_calls WHERE run = ? ORDER BY started"


def problems(folder: Path) -> None:
    rows = [
        {"prompt": f"How much is {n} times 12?", "result": str(n * 12), "chain": [{"inputs": f"{n} * 12"}]}
        for n in range(8)
    ]
    (folder / "calc_word_problems.jsonl").write_text("\n".join(map(json.dumps, rows)))


def test_calc_xs_demonstration_computes_the_gold_expression(run: Callable[..., Trial], tmp_path: Path) -> None:
    problems(tmp_path)
    trial = run("calc_x", constrained, name="demonstrate.yaml")
    assert asked(trial, REWARD) == [(1.0,)]
    assert asked(trial, CALLS) == [("calculator", "policy", None)] * 2


def test_calc_x_computes_and_is_graded(run: Callable[..., Trial], tmp_path: Path) -> None:
    problems(tmp_path)

    def says(body: dict[str, Any]) -> Any:
        last = body["messages"][-1]
        if last["role"] == "tool":
            return f"That makes {last['content']}.\n### ANSWER: {last['content']}"
        number = last["content"].split()[3]
        return "calculate", {"expression": f"{number} * 12"}

    trial = run("calc_x", says)
    assert asked(trial, REWARD) == [(1.0,)]
    assert asked(trial, CALLS) == [("calculator", "policy", None)] * 2
    assert asked(trial, "SELECT tool_name, failed FROM tool_calls WHERE run = ?") == [("calculate", False)]


def test_outcomes_tell_how_the_calculator_was_used(run: Callable[..., Trial], tmp_path: Path) -> None:
    row = {"question": "Two bags of 3 pears, 12 times?", "answer": "<<2*3=6>>6, so <<6*12=72>>72\n#### 72"}
    (tmp_path / "gsm8k_train.jsonl").write_text(json.dumps(row))

    def says(body: dict[str, Any]) -> Any:
        done = sum(message["role"] == "tool" for message in body["messages"])
        return [("calculate", {"expression": "2 *"}), ("calculate", {"expression": "6 * 12"}), "### ANSWER: 72"][done]

    trial = run("calc_x", says, tasks=f"{ROOT}/examples/calc_x/tasks.py:steps_heldout", name="steps.yaml")
    outcomes = (ROOT / "examples/calc_x/outcomes.sql").read_text().replace("'evaluate'", "'train'")  # as a trial is
    with catalog.connect(trial.epoch.lake.root) as con:
        [found] = con.execute(outcomes, {"run": trial.epoch.run}).fetchall()
    kind, outcome, means_to_calculate, well_formed, uses_result = found[3:]
    assert (kind, outcome, means_to_calculate, uses_result) == ("problems of 2 calculations", "right", True, True)
    assert well_formed == 0.5  # one of its two expressions is none


def spider(folder: Path, question: dict[str, Any]) -> None:
    """The question, after one whose query is held out."""
    first = question | {"question": "How many are there?", "query": "SELECT max(id) FROM item"}
    (folder / "spider_questions.jsonl").write_text("\n".join(map(json.dumps, (first, question))))
    (folder / "spider_schemas.jsonl").write_text(json.dumps(SCHEMA))


def test_spider_writes_checks_and_mends_and_trains_writer_and_rewriter_alone(
    run: Callable[..., Trial], tmp_path: Path
) -> None:
    question = {
        "db_id": "shop",
        "question": "How many are red?",
        "query": "SELECT count(*) FROM item WHERE colour = 'red'",
    }
    spider(tmp_path, question)

    def says(body: dict[str, Any]) -> str:
        if body["model"] == "checker":
            return "RIGHT" if "count" in body["messages"][-1]["content"] else "WRONG"
        mends = body["messages"][0]["content"].startswith("Mend")
        return "```sql\nSELECT count(id) FROM item WHERE colour = 'red';\n```" if mends else "SELECT id FROM items"

    trial = run("spider", says)
    assert trial.results["first"].output == "SELECT count(id) FROM item WHERE colour = 'red'"
    assert asked(trial, REWARD) == [(1.0,)]
    calls = asked(trial, CALLS)
    assert [(agent, left_out) for agent, policy, left_out in calls if policy == "policy"] == [
        ("writer", None),
        ("rewriter", None),
    ]
    assert [(policy, left_out) for agent, policy, left_out in calls if agent == "checker"] == [(None, "other_policy")]
    assert asked(trial, "SELECT tool_name, failed FROM tool_calls WHERE run = ? ORDER BY started") == [
        ("execute", True),
        ("execute", False),
    ]


def constrained(body: dict[str, Any]) -> Any:
    """What vLLM's structured outputs leave to be said."""
    if body["model"] == "checker":
        return "RIGHT"
    (said,) = body["structured_outputs"]["choice"]
    call = re.fullmatch(r"<tool_call>(.*)</tool_call>", said)
    if call is None:
        return said
    found = json.loads(call[1])
    return found["name"], found["arguments"]


def test_spiders_demonstration_says_the_gold_query_and_ends(run: Callable[..., Trial], tmp_path: Path) -> None:
    question = {"db_id": "shop", "question": "How many are red?", "query": "SELECT count(*) FROM item ;"}
    spider(tmp_path, question)
    trial = run("spider", constrained, name="demonstrate.yaml")
    assert asked(trial, REWARD) == [(1.0,)]
    calls = asked(trial, CALLS)
    assert [(agent, left_out) for agent, policy, left_out in calls if policy == "policy"] == [("writer", None)]


@contextlib.contextmanager
def searching(corpus: Path) -> Iterator[str]:
    """The address of MuSiQue's search over a corpus."""
    example = ROOT / "examples/musique"
    python = python_for(example / "requirements-search.txt", ROOT / "var/environments")
    log = corpus.parent / "search.log"
    arguments = [str(corpus), "--folder", str(corpus.parent / "index"), "--port", "0"]
    process = Process([str(python), str(example / "serve.py"), *arguments], log, dies_with_us=True)
    try:
        yield process.wait_until(
            lambda: next(iter(re.findall(r"http://\S+", log.read_text())), None), 300, "the search"
        )
    finally:
        process.end(5)


def test_musiques_demonstration_searches_for_every_hop_and_answers(run: Callable[..., Trial], tmp_path: Path) -> None:
    passages = [{"title": "Hall", "text": "G. Stanley Hall was a president."}, {"title": "Cats", "text": "Cats sleep."}]
    (tmp_path / "musique_corpus.json").write_text(json.dumps(passages))
    steps = [
        {"question": "Who publishes it?", "answer": "The society"},
        {"question": "Who was the first president of #1 ?", "answer": "G. Stanley Hall"},
    ]
    row = {
        "question": "Its first president?",
        "answer": "G. Stanley Hall",
        "answer_aliases": [],
        "question_decomposition": steps,
    }
    (tmp_path / "musique_questions.jsonl").write_text("\n".join(json.dumps(row | {"id": f"q{n}"}) for n in range(3)))
    with searching(tmp_path / "musique_corpus.json") as address:
        trial = run("musique", constrained, name="demonstrate.yaml", MUSIQUE_SEARCH=address)
    assert asked(trial, REWARD) == [(1.0,)]
    assert asked(trial, CALLS) == [("researcher", "policy", None)] * 3
    searches = asked(trial, "SELECT tool_arguments FROM tool_calls WHERE run = ? ORDER BY started")
    assert [json.loads(arguments)["query"] for (arguments,) in searches] == [
        "Who publishes it?",
        "Who was the first president of The society ?",
    ]


def test_musique_searches_and_answers(run: Callable[..., Trial], tmp_path: Path) -> None:
    passages = [
        {"title": "Hall", "text": "G. Stanley Hall was the first president of the American Psychological Association."},
        {"title": "Cats", "text": "Cats sleep most of the day."},
    ]
    (tmp_path / "musique_corpus.json").write_text(json.dumps(passages))
    row = {"id": "q", "question": "Who was its first president?", "answer": "G. Stanley Hall", "answer_aliases": []}
    (tmp_path / "musique_questions.jsonl").write_text("\n".join(json.dumps(row | {"id": f"q{n}"}) for n in range(3)))

    def says(body: dict[str, Any]) -> Any:
        last = body["messages"][-1]
        if last["role"] == "tool":
            assert last["content"].startswith("Hall: ")  # the nearest comes first
            return "<answer>Stanley Hall</answer>"
        return "search", {"query": "first president psychological association"}

    with searching(tmp_path / "musique_corpus.json") as address:
        trial = run("musique", says, MUSIQUE_SEARCH=address)
    assert asked(trial, REWARD) == [(pytest.approx(0.9 * 2 * 2 / 5 + 0.1),)]
    assert asked(trial, CALLS) == [("researcher", "policy", None)] * 2
    assert len(list((tmp_path / "index").glob("*/*.faiss"))) == 1


def test_many_passages_are_searched_in_cells_and_are_found(tmp_path: Path) -> None:
    """More than 20,000 passages are not compared one by one. The words of a passage find it. A bad request is answered with how to ask."""
    words = ["amber", "birch", "cedar", "delta", "ember", "fern", "grove", "haven", "iris", "maple", "north", "ocean"]
    corpus = tmp_path / "corpus.jsonl"
    with corpus.open("w") as file:
        for number in range(20_736):
            four = [words[number // 12**place % 12] for place in range(4)]
            file.write(json.dumps({"title": f"{number}", "text": " ".join(four)}) + "\n")
    with searching(corpus) as address, httpx.Client(timeout=60) as client:
        found = client.get(address, params={"query": "ocean amber birch iris", "most": "5"}).json()
        assert any(set(row["text"].split()) == {"ocean", "amber", "birch", "iris"} for row in found)
        refused = client.get(address, params={"query": "ocean", "most": "0"})
    assert (refused.status_code, refused.json()) == (400, {"error": "ask for /search?query=…&most=4 (1 to 100)"})
    (index,) = tmp_path.glob("index/*/index.faiss")
    assert index.stat().st_size < 20_736 * 1024 / 3, "a byte for each of 256 dimensions, and the cells"
