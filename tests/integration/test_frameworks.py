"""The real frameworks, as they are: rollouts of examples/frameworks through the real gateway into the lake.

`make test` runs one, `make test-all` three, `make test-frameworks` all, each with its instrumentation and without, and writes
the table of docs/frameworks.md. What the model says is a script: a planner that looks something up, and executors that divide
by zero, by two, and answer.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lightning_core.agents.venv import interpreter
from lightning_core.config import SettingsError
from tests.frameworks import page
from tests.frameworks.cases import CASES, Case
from tests.frameworks.measure import Measured, measure
from tests.gateway_rig import Rig, rig

IN_TEST, IN_TEST_ALL = ("openai_agents_openinference",), ("langgraph", "pydantic_ai")
MadeBy = dict[str, dict[str | None, int]]  # by variant and agent
MADE_BY: MadeBy = {"sequential": {"planner": 2, "executor": 3}, "parallel": {"planner": 2, "executor": 6}}
ODD: dict[str, MadeBy] = {
    "langgraph": MADE_BY | {"parallel": {"planner": 2, "executor": 3}},  # a graph has one node of a name
    "openai_client": {"sequential": {None: 4}, "parallel": {None: 8}},
}
# Parallel use: how many calls could be several agents'. Of AutoGen and CrewAI alone no LLM span says whose a call is, so one
# that asks for no tool can only be told by time; the others' spans enclose their calls.
MOST_AMBIGUOUS = {"autogen": 8, "crewai": 8}

measured_rows: dict[str, str] = {}


def _marked(name: str) -> object:
    if name in IN_TEST:
        return name
    marks = [pytest.mark.extra] if name in IN_TEST_ALL else [pytest.mark.extra, pytest.mark.frameworks]
    return pytest.param(name, marks=marks)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with rig(tmp_path_factory.mktemp("home")) as made:
        yield made


@pytest.fixture(scope="module", params=[_marked(name) for name in CASES])
def measured(request: pytest.FixtureRequest, server: Rig) -> tuple[Case, dict[str, Measured]]:
    case = CASES[request.param]
    agent = case.settings(server.home).agent
    try:
        interpreter(agent.python or server.home, agent.environments)
    except SettingsError as error:
        pytest.skip(f"its environment cannot be made here: {error}")
    return case, measure(server, case)


Run = tuple[Case, dict[str, Measured]]


def test_every_call_is_there_once_with_its_token_ids(measured: Run) -> None:
    case, runs = measured
    for variant, run in runs.items():
        assert (run.outcome, run.error) == ("ok", None)
        assert run.made_by == ODD.get(case.folder, MADE_BY)[variant]
        assert run.calls == sum(run.made_by.values())
        assert (run.with_ids, run.untrainable) == (run.calls, 0)
    assert runs["sequential"].reward == 1.0


def test_what_instrumentations_saw_again_is_merged(measured: Run) -> None:
    case, runs = measured
    for run in runs.values():
        assert (run.merged, run.elsewhere) == (run.instrumented, 0)
        if case.instrumentation == "none":
            assert run.instrumented == 0


def test_a_call_goes_to_the_agent_that_made_it_or_to_nobody(measured: Run) -> None:
    case, runs = measured
    assert [run.wrong for run in runs.values()] == [0, 0]
    assert runs["sequential"].ambiguous == 0
    assert runs["parallel"].ambiguous <= (MOST_AMBIGUOUS.get(case.folder, 0) if case.named else 0)


def test_agent_match_takes_one_of_the_two(measured: Run) -> None:
    case, runs = measured
    for run in runs.values():
        if not case.named:  # one policy, no names: every call trains
            assert run.trained == run.made_by
            continue
        assert set(run.trained) <= {"executor"}
        assert run.made_by["executor"] - run.ambiguous <= run.trained.get("executor", 0)
    if case.named:
        assert runs["sequential"].trained == {"executor": 3}


def test_tool_calls_and_their_failures_are_rows(measured: Run) -> None:
    case, runs = measured
    for run in runs.values():
        executors = run.made_by.get("executor", 0) // 3
        if not case.named:
            assert (run.tools, run.failed_tools) == ({}, {})
            continue
        assert run.failed_tools == {"divide": executors}
        # AutoGen in OpenInference: a tool call is two spans, and only the inner one knows of a failure.
        twice = case.name == "autogen_openinference"
        assert run.tools == {"lookup": 1 + twice, "divide": executors * (3 if twice else 1)}


def test_the_page_says_what_was_measured(measured: Run, request: pytest.FixtureRequest) -> None:
    """Where all are measured the page is written; what has changed shows in its diff."""
    case, runs = measured
    measured_rows[case.name] = page.row(case, runs)
    chosen = {item.callspec.params.get("measured") for item in request.session.items if hasattr(item, "callspec")}
    if set(CASES) <= chosen:
        if set(measured_rows) == set(CASES):
            page.write(measured_rows)
    elif case.name in IN_TEST + IN_TEST_ALL:  # of the others, what is ambiguous depends on the moment
        assert measured_rows[case.name] in page.PAGE.read_text().splitlines()
