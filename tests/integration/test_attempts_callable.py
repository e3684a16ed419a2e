"""Attempts of Python callables: real processes, a stand-in for the server (tests/standin_server.py)."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lightning_core import names
from lightning_core.agents.attempt import AttemptResult, AttemptSpec
from lightning_core.agents.runner import Runner, new_attempt_id, run_rollout
from lightning_core.checks.user_imports import check_agent
from lightning_core.config import AgentSettings
from tests.standin_server import Standin, standin

AGENTS = Path(__file__).parent / "agents_that_misbehave.py"
Attempt = Callable[..., AttemptResult]


@pytest.fixture(scope="module")
def server() -> Iterator[Standin]:
    with standin() as running:
        yield running


def spec_for(server: Standin, task: dict[str, Any] | None = None, attempt_id: str | None = None) -> AttemptSpec:
    attempt_id = attempt_id or new_attempt_id()
    rollout_id = f"test.0000.t1.{attempt_id}"
    url = f"{server.url}/rollouts/{rollout_id}/attempts/{attempt_id}"
    return AttemptSpec(
        "test", 0, "train", rollout_id, attempt_id, "g1", "t1", task or {"n": 21}, url, "secret-token", "secret"
    )


@pytest.fixture(scope="module")
def attempt(server: Standin) -> Iterator[Attempt]:
    """Runs one attempt of a function of agents_that_misbehave.py; pools live for the module."""
    runners: dict[tuple[str, float], Runner] = {}

    def run(function: str, task: dict[str, Any] | None = None, timeout_s: float = 60) -> AttemptResult:
        key = (function, timeout_s)
        if key not in runners:
            settings = AgentSettings(callable=f"{AGENTS}:{function}", timeout_s=timeout_s, preload=[])
            runners[key] = Runner(settings, kill_grace_s=0.2)
        return runners[key].run(spec_for(server, task))

    yield run
    for runner in runners.values():
        runner.close()


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def root_of(server: Standin, result: AttemptResult) -> dict[str, Any]:
    (span,) = [s for s in server.named("rollout") if s.resource[names.ATTEMPT_ID] == result.attempt_id]
    return span.attributes


def test_every_attempt_is_a_fresh_process(attempt: Attempt) -> None:
    for _ in range(3):
        result = attempt("fine")
        assert result.status == "ok"
        assert result.output == {"twice": 42, "calls_in_this_process": 1}
        assert result.exit_code == 0


def test_a_file_that_is_edited_between_two_attempts_is_another_agent(server: Standin, tmp_path: Path) -> None:
    file = tmp_path / "agent.py"
    file.write_text("seen = []\ndef run(task):\n    seen.append(1)\n    return ['first', len(seen), __file__]\n")
    with Runner(AgentSettings(callable=f"{file}:run", preload=[])) as runner:

        def output() -> Any:
            result = runner.run(spec_for(server))
            return result.output if result.status == "ok" else result.error

        assert [output(), output()] == [["first", 1, str(file)]] * 2
        file.write_text("def run(task):\n    return 'second'\n")
        assert output() == "second"
        file.write_text("def run(task) return 'third'\n")
        assert "SyntaxError" in output()
        file.unlink()
        assert "FileNotFoundError" in output()
        file.write_text("def run(task):\n    return 'fourth'\n")
        assert output() == "fourth"


def test_the_environment_is_in_place_when_the_agent_is_imported(server: Standin, attempt: Attempt) -> None:
    result = attempt("environment_at_import")
    assert result.output == {
        "OPENAI_BASE_URL": f"{server.url}/rollouts/{result.rollout_id}/attempts/{result.attempt_id}/v1",
        "OPENAI_API_KEY": "secret-token",
        "LIGHTNING_ATTEMPT_ID": result.attempt_id,
        "task_file": {"n": 21},
    }


def test_the_flows_own_variables_stay_outside(attempt: Attempt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_SECRET", "x")
    seen = attempt("whole_environment").output
    assert "SOME_SECRET" not in seen
    assert not [name for name in seen if name.startswith(("PREFECT", "MLFLOW", "PYTEST"))]


def test_a_callable_can_read_its_task_on_stdin(attempt: Attempt) -> None:
    assert attempt("reads_stdin", {"n": 5}).output == {"n": 5}


def test_the_two_durable_spans_say_what_ran_and_how_it_ended(server: Standin, attempt: Attempt) -> None:
    result = attempt("fine")
    mine = [s for s in server.spans if s.resource.get(names.ATTEMPT_ID) == result.attempt_id]
    assert [s.name for s in mine] == ["rollout.start", "rollout"]
    for span in mine:
        assert span.path.endswith(f"/rollouts/{result.rollout_id}/attempts/{result.attempt_id}/v1/traces")
        assert span.attributes[names.RUN] == "test"
        assert span.attributes[names.EPOCH] == 0
        assert span.attributes[names.GROUP_ID] == "g1"
    root = mine[1]
    assert json.loads(root.attributes[names.TASK]) == {"n": 21}
    assert json.loads(root.attributes[names.OUTPUT]) == result.output
    assert root.attributes[names.STATUS] == "ok"
    assert root.raw["status"]["code"] == 1
    assert int(root.raw["startTimeUnixNano"]) == result.start_ns


@pytest.mark.parametrize(
    ("function", "exit_code", "message"),
    [
        ("raises", 1, "ValueError: no such number"),
        ("exits_one", 1, "sys.exit(1)"),
        ("exits_with_words", 1, "out of ideas"),
        ("exits_hard", 3, "last words"),
        ("exits_hard_with_zero", 0, "before the callable returned"),
        ("kills_itself", -9, "SIGKILL"),
        ("crashes", -11, "SIGSEGV"),
    ],
)
def test_what_the_agent_did_wrong_is_its_own_error(
    server: Standin, attempt: Attempt, function: str, exit_code: int, message: str
) -> None:
    result = attempt(function)
    assert (result.status, result.exit_code, result.output) == ("error", exit_code, None)
    assert message in (result.error or "")
    root = root_of(server, result)
    assert root[names.STATUS] == "error"
    assert message in root[names.ERROR]


def test_an_exception_names_the_agents_own_line(attempt: Attempt) -> None:
    error = attempt("raises").error or ""
    assert "agents_that_misbehave.py" in error
    assert "lightning_core" not in error


def test_an_agent_that_exits_with_zero_is_fine(attempt: Attempt) -> None:
    result = attempt("exits_zero")
    assert (result.status, result.output) == ("ok", None)
    assert "sys.exit" in (result.output_note or "")


def test_an_agent_that_hangs_and_ignores_sigterm_is_ended(server: Standin, attempt: Attempt) -> None:
    result = attempt("hangs", timeout_s=0.5)
    assert result.status == "timeout"
    assert "agent.timeout_s" in (result.error or "")
    assert root_of(server, result)[names.STATUS] == "timeout"


@pytest.mark.parametrize(
    ("function", "status", "timeout_s"), [("leaves_children", "ok", 60), ("hangs_with_children", "timeout", 2)]
)
def test_no_process_outlives_its_attempt(
    attempt: Attempt, tmp_path: Path, function: str, status: str, timeout_s: float
) -> None:
    result = attempt(function, {"pids": str(tmp_path / "pids")}, timeout_s=timeout_s)
    assert result.status == status
    pids = json.loads((tmp_path / "pids").read_text())
    assert len(pids) == 3
    assert all(gone(pid) for pid in pids)


def test_children_of_another_running_attempt_are_left_alone(server: Standin, tmp_path: Path) -> None:
    settings = AgentSettings(callable=f"{AGENTS}:hangs_with_children", timeout_s=3, preload=[])
    with Runner(settings, kill_grace_s=0.2) as runner, ThreadPoolExecutor(1) as threads:
        first = threads.submit(runner.run, spec_for(server, {"pids": str(tmp_path / "long")}))
        while not (tmp_path / "long").exists() or not (tmp_path / "long").read_text():
            time.sleep(0.02)
        pids = json.loads((tmp_path / "long").read_text())
        assert runner.run(spec_for(server, {"no": "pids"})).status == "error"  # ends at once, by a KeyError
        assert not any(gone(pid) for pid in pids)
        assert first.result().status == "timeout"
    assert all(gone(pid) for pid in pids)


def test_output_of_100_mb_is_kept_to_its_ends(server: Standin, tmp_path: Path) -> None:
    settings = AgentSettings(callable=f"{AGENTS}:prints_much", preload=[])
    with Runner(settings, logs=tmp_path) as runner:
        result = runner.run(spec_for(server))
    assert result.output == "printed"
    kept = (tmp_path / result.rollout_id / f"{result.attempt_id}.stdout").read_text()
    assert kept.startswith("first line\n")
    assert kept.endswith("last line\n")
    assert "bytes left out" in kept
    assert len(kept) < 2_000_000


@pytest.mark.parametrize(
    ("function", "output"),
    [
        ("changes_directory", "/"),
        ("own_event_loop", "from a loop of its own"),
        ("asynchronous", {"awaited": 21}),
    ],
)
def test_ordinary_liberties_work(attempt: Attempt, function: str, output: Any) -> None:
    result = attempt(function)
    assert (result.status, result.output) == ("ok", output)
    assert attempt("fine").status == "ok"


def test_agents_that_seed_random_still_emit_ids_of_their_own(server: Standin, attempt: Attempt) -> None:
    results = [attempt("seeds_random") for _ in range(2)]
    assert results[0].output == results[1].output
    attempts = {result.attempt_id for result in results}
    rewards = [s for s in server.named("reward") if s.resource[names.ATTEMPT_ID] in attempts]
    assert len({span.raw["spanId"] for span in rewards}) == 2


def test_forks_do_not_share_the_state_of_random(attempt: Attempt) -> None:
    assert len({attempt("unseeded").output for _ in range(4)}) == 4


@pytest.mark.parametrize(("function", "shown"), [("returns_an_object", "lock"), ("returns_nan", "nan")])
def test_an_output_that_is_no_json_is_kept_as_its_repr_and_said_so(
    server: Standin, attempt: Attempt, function: str, shown: str
) -> None:
    result = attempt(function)
    assert result.status == "ok"
    assert shown in result.output
    assert "repr" in root_of(server, result)[names.OUTPUT_NOTE]


def test_text_that_is_no_unicode_does_not_lose_the_root_span(server: Standin, attempt: Attempt) -> None:
    result = attempt("returns_a_surrogate")
    assert result.status == "ok"
    assert root_of(server, result)[names.OUTPUT] == '"half of a pair: ?"'


def test_threads_of_the_agent_end_before_the_attempt_does(attempt: Attempt, tmp_path: Path) -> None:
    assert attempt("lasting_thread", {"file": str(tmp_path / "late")}).status == "ok"
    assert (tmp_path / "late").read_text() == "done"


def test_spans_the_agent_did_not_flush_arrive_before_the_root_span(server: Standin, attempt: Attempt) -> None:
    result = attempt("traces_and_leaves_the_rest_to_others")
    mine = [s for s in server.spans if s.resource.get(names.ATTEMPT_ID) == result.attempt_id]
    assert [s.name for s in mine] == ["rollout.start", "reward", "work", "rollout"]
    reward, work = mine[1], mine[2]
    assert reward.raw["parentSpanId"] == result.output  # the span that was current
    assert reward.raw["traceId"] != ""
    assert work.resource["service.name"] == "agent"


@pytest.mark.parametrize(("agent", "status"), [("raises", "error"), ("lasting_thread", "ok")])
def test_a_failure_behind_the_server_is_not_the_agents_also_where_it_ends_well(
    server: Standin, tmp_path: Path, agent: str, status: str
) -> None:
    asked = []

    def upstream(result: AttemptResult) -> str | None:
        asked.append(result.attempt_id)
        return "2 calls failed upstream (503)" if len(asked) == 1 else None

    settings = AgentSettings(callable=f"{AGENTS}:{agent}", preload=[])
    with Runner(settings, infrastructure_errors=upstream) as runner:
        specs = []

        def make(attempt_id: str) -> AttemptSpec:
            specs.append(spec_for(server, {"file": str(tmp_path / "done")}, attempt_id))
            return specs[-1]

        result = run_rollout(runner, make, retries=2, backoff_s=0.01)
    assert result.status == status
    assert len({spec.attempt_id for spec in specs}) == 2
    first = [s for s in server.named("rollout") if s.resource[names.ATTEMPT_ID] == specs[0].attempt_id]
    assert first[0].attributes[names.STATUS] == "infrastructure"
    assert "2 calls failed upstream" in first[0].attributes[names.ERROR]


def test_without_a_server_the_agent_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_core.agents.runner._START_RETRIES", 0)
    with standin() as server:
        spec = spec_for(server, {"file": str(tmp_path / "late")})
    with Runner(AgentSettings(callable=f"{AGENTS}:lasting_thread", preload=[])) as runner:
        result = runner.run(spec)
    assert result.status == "infrastructure"
    assert "cannot be reached" in (result.error or "")
    assert not (tmp_path / "late").exists()


def test_what_a_first_connection_imports_is_there_already(attempt: Attempt) -> None:
    assert attempt("what_connections_import").output is True


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"callable": f"{AGENTS}:nobody"}, "agent.callable: .*has no 'nobody'"),
        ({"callable": f"{AGENTS}:not_callable"}, "agent.callable: .*cannot be called"),
        ({"callable": "no_such_package:run"}, "agent.callable: .*no_such_package"),
        ({"callable": f"{AGENTS}:fine", "preload": ["no_such_module"]}, "agent.preload: no_such_module"),
        ({"callable": "missing/file.py:run"}, "agent.callable: there is no file"),
        ({"callable": f"{AGENTS}:fine", "working_directory": "/no/where"}, "agent.working_directory"),
        ({"callable": f"{AGENTS}:fine", "pass_environment": ["NOT_SET_X"]}, "agent.pass_environment: NOT_SET_X"),
        ({"callable": f"{AGENTS}:fine", "environment": {"OPENAI_API_KEY": "x"}}, "agent.environment: OPENAI_API_KEY"),
        ({"command": "no-such-program --x"}, "agent.command: there is no program 'no-such-program'"),
        ({"command": "cd x && python y.py"}, "agent.command: '&&' is shell syntax"),
    ],
)
def test_what_would_fail_every_rollout_is_found_before_the_first(settings: dict[str, Any], message: str) -> None:
    found = check_agent(AgentSettings.model_validate({"preload": [], **settings}), "policy")
    assert found.level == "error" and re.search(message, found.found), found
