"""What a flow is given, or meets, that it cannot work with: it says so before anything runs, and mixes nothing.

Elsewhere: a work pool without a worker (integration/test_stack.py), a Prefect server that goes away and comes back
(e2e/test_prefect_away.py), a disk at 100% (integration/test_full_disk.py, test_durability.py), task sets that cannot be
read (test_settings_and_tasks.py).
"""

from __future__ import annotations

import copy
import logging
import re
import time
from pathlib import Path
from typing import Any

import pytest
from prefect.exceptions import ParameterTypeError

from lightning_core.agents import runner as runner_module
from lightning_core.agents.attempt import AttemptSpec
from lightning_core.agents.capture import Capture
from lightning_core.agents.pool import Ended
from lightning_core.agents.runner import Runner
from lightning_core.config import AgentSettings, Settings, SettingsError
from lightning_core.epoch import resume
from lightning_core.epoch.epoch import Epoch, Run
from lightning_core.epoch.plan import Task, plan_training
from lightning_core.epoch.stage_keys import rollouts_key
from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import LakeError
from lightning_flows.flows.evaluate import evaluate
from lightning_flows.flows.finetune import finetune
from lightning_flows.flows.learn import learn
from lightning_flows.flows.parameters import resolve
from lightning_flows.flows.regrade import regrade
from lightning_flows.flows.roll_out import roll_out as roll_out_flow
from lightning_flows.flows.train import train
from lightning_flows.flows.train_epoch import train_epoch
from lightning_flows.tasks import rollouts
from tests.lake_maker import Attempt, derived
from tests.unit.test_stage_keys import TASKS, settings_of

FLOWS = (train, train_epoch, evaluate, learn, roll_out_flow, finetune, regrade)
GOOD: dict[str, Any] = {"agent": {"command": "true"}, "tasks": {"train": "tasks.jsonl"}}


@pytest.mark.parametrize(
    ("flow", "parameters", "named"),
    [
        (train_epoch, {"epoch": "soon"}, "epoch: Input should be a valid integer"),
        (train_epoch, {"from_stage": "tripplets"}, "from_stage: Input should be 'rollouts', 'rewards', 'sequences'"),
        (train, {"only": "solver"}, "only: Input should be a valid list"),
        (roll_out_flow, {"epoch": [1]}, "epoch: Input should be a valid integer"),
        (evaluate, {"policy_versions": "v0001"}, "policy_versions: Input should be a valid dictionary"),
        (finetune, {"evaluate_after": "perhaps"}, "evaluate_after: Input should be a valid boolean"),
        (learn, {"choice": {"since": "yesterday"}}, "choice.since: Input should be a valid datetime"),
    ],
)
def test_a_parameter_of_the_wrong_type_is_named(flow: Any, parameters: dict[str, Any], named: str) -> None:
    assert flow.should_validate_parameters, "Prefect asks before the flow runs"
    with pytest.raises(ParameterTypeError) as error:
        flow.validate_parameters({"settings": GOOD} | parameters)
    assert named in str(error.value)


@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: flow.name)
@pytest.mark.parametrize(
    ("settings", "overrides", "message"),
    [
        (GOOD | {"rollout": {"groupsize": 3}}, {}, "unknown key `rollout.groupsize`; known here: tasks_per_epoch"),
        ({"epochs": 2}, {}, "`agent` is missing; `tasks` is missing"),
        (GOOD, {"epochs": "soon"}, "`epochs`: Input should be a valid integer"),
        (GOOD, {"epcohs": 2}, "unknown key `epcohs`; known here: run, home"),
        (Settings.model_validate(GOOD), {"rollout.group_size": 0}, "`rollout.group_size`: Input should be greater"),
        (GOOD, {"async_level": 1}, "set `training.importance_correction`"),
        (GOOD, {"tasks.train.first": 1}, "cannot set `tasks.train.first`: there is no such place in the settings"),
        (GOOD, ["epochs=2"], "overrides: expected a mapping of dotted keys to values, got list"),
        ("settings.yaml", {}, "expected a mapping of settings at the top, got str"),
    ],
)
def test_wrong_settings_reach_the_flow_which_says_what_the_command_line_says(
    flow: Any, settings: Any, overrides: Any, message: str
) -> None:
    """What Prefect makes of it: integration/test_deployments.py."""
    taken = flow.validate_parameters({"settings": settings, "overrides": overrides})
    with pytest.raises(SettingsError, match=re.escape(message)):
        flow.fn(**taken)


def test_overrides_lie_on_top_of_settings_and_change_neither(tmp_path: Path) -> None:
    plain = GOOD | {"policies": [{"name": "p"}], "home": str(tmp_path)}
    changes = {"epochs": 2, "policies.0.training.learning_rate": 0.5}
    for given in (plain, Settings.model_validate(plain)):
        before = copy.deepcopy(given)
        made = resolve(given, changes)  # type: ignore[arg-type]
        assert (made.epochs, made.policies[0].training.learning_rate, made.home) == (2, 0.5, tmp_path)
        assert given == before
    assert resolve(made) is made


def test_the_form_of_every_setting_stays_though_prefect_does_not_validate_it() -> None:
    for flow in FLOWS:
        shown = flow.parameters.properties
        assert set(shown["settings"]["properties"]) == set(Settings.model_fields), flow.name
        assert shown["settings"]["required"] == ["agent", "tasks"]
        assert shown["overrides"]["type"] == "object"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("", "there is no task in it"),
        ('{"id": 1}\n{"id": 1}', "1 ids occur more than once, the first is '1'"),
    ],
)
def test_a_task_set_that_is_empty_or_has_an_id_twice_begins_no_epoch(tmp_path: Path, lines: str, message: str) -> None:
    (tmp_path / "tasks.jsonl").write_text(lines)
    settings = settings_of(tmp_path, tasks={"train": str(tmp_path / "tasks.jsonl")})
    for flow in (train_epoch, train):
        with pytest.raises(SettingsError, match=f"tasks.train: .*{message}"):
            flow.fn(settings)
    assert Lake(tmp_path).manifests.epochs() == []


class _Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.mark.parametrize("kind", ["flow_runs", "task_runs"])
def test_prefects_log_of_what_a_user_can_mend_is_one_line_and_a_bug_keeps_its_traceback(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, log = _Kept(), logging.getLogger(f"prefect.{kind}")
    monkeypatch.setattr(log, "handlers", [kept])
    for error in (LakeError("run 'r' has nothing yet; roll out an epoch"), KeyError("sequences")):
        try:
            raise error
        except Exception as raised:
            log.exception("Encountered exception during execution: %r", raised)  # as Prefect's engine does
    mendable, bug = kept.records
    assert (mendable.getMessage(), mendable.exc_info) == ("run 'r' has nothing yet; roll out an epoch", None)
    assert bug.getMessage().startswith("Encountered exception") and bug.exc_info is not None


def test_rollouts_of_a_task_set_that_changed_since_are_set_aside_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = Attempt(rollout="r.0000.a.0")
    attempt.root(run="r")
    lake, _ = derived(tmp_path, attempt.rows)
    settings = settings_of(tmp_path)
    epoch = lake.open_epoch("r", 0, "train", {"policy": "v0000"})
    epoch.opened_offset = 0
    handle = Epoch(settings, epoch)

    def begin(tasks: list[Task]) -> set[str]:
        return resume.finished_with(handle, rollouts_key(handle, plan_training(handle, tasks, 0)))

    assert begin(TASKS) == begin(TASKS) == {"r.0000.a.0"}
    assert caplog.messages == []
    changed = [TASKS[0], Task("b", {"id": "b", "question": "another"})]
    assert begin(changed) == set()
    [message] = caplog.messages
    assert (
        "epoch 0 begins anew: its tasks, agent, sampling or versions are not those that 1 finished rollouts" in message
    )
    assert begin(changed) == set() and len(caplog.messages) == 1
    with lake.connect() as con:
        assert con.execute("SELECT count(*) FROM spans").fetchone() == (1,), "they stay in the lake"


def test_what_is_drawn_is_kept_before_the_first_rollout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rewards that are graded anew while the epoch is under way would draw others."""

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    attempt = Attempt(rollout="run.0000.a.0")
    attempt.root(task_id="a")
    attempt.reward(0.0)
    lake, _ = derived(tmp_path, attempt.rows)
    settings = settings_of(
        tmp_path,
        run="run",
        tasks={"train": "t.jsonl", "sampler": "unsolved"},
        rollout={"tasks_per_epoch": 1, "group_size": 2},
    )
    epoch = lake.open_epoch("run", 1, "train", {"policy": "v0000"})
    monkeypatch.setattr(rollouts, "ingest_spans", lambda _: 0)
    monkeypatch.setattr(rollouts, "_roll_out", killed)
    planned = plan_training(Run(settings), TASKS, 1)
    with pytest.raises(KeyboardInterrupt):
        rollouts.roll_out(Epoch(settings, epoch), planned)
    kept = lake.manifests.epoch("run", 1)
    assert kept is not None and kept.draw is not None and list(kept.draw.weights) == [planned[0].task.id]


def test_two_processes_cannot_work_on_one_run_at_one_time(tmp_path: Path) -> None:
    first, second = Lake(tmp_path), Lake(tmp_path)
    with first.working_on("r"):
        with (
            pytest.raises(LakeError, match=r"another process works on run 'r'.*wait for it, or stop it"),
            second.working_on("r"),
        ):
            pass
        with second.working_on("another"):
            pass
    with second.working_on("r"):
        pass


@pytest.mark.parametrize("jump_s", [3600, -3600])
def test_a_clock_that_jumps_makes_an_attempt_neither_long_nor_the_infrastructures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump_s: int
) -> None:
    now = [1_790_000_000_000_000_000]
    monkeypatch.setattr(runner_module.time, "time_ns", lambda: now[0])
    lengths = []
    runner = Runner(
        AgentSettings(command="true"), infrastructure_errors=lambda r: lengths.append(r.end_ns - r.start_ns)
    )

    def execute(*_: object) -> Ended:
        now[0] += jump_s * 1_000_000_000
        time.sleep(0.05)
        return Ended(code=0, timed_out=False, left=0, stdout=Capture(), stderr=Capture())

    monkeypatch.setattr(runner, "_post", lambda *_: None)
    with runner:
        monkeypatch.setattr(runner._pool, "run", execute)
        runner.run(AttemptSpec("r", 0, "train", "r.0", "a", "g", "t", {}, "http://127.0.0.1:9", "token", "secret"))
    assert 50_000_000 <= lengths[0] < 10_000_000_000
