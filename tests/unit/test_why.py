"""`lightning-flows why`: each rule of sql/why finds the fault that is planted in a healthy run, and nothing is wrong with that."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import pytest
from click.testing import CliRunner

from lightning_core.epoch.derive import derive
from lightning_core.epoch.epoch import Epoch, Run
from lightning_core.errors import Missing
from lightning_core.lake import catalog, sql, user_sql, why
from lightning_core.lake.manifest import EpochManifest, Stage
from lightning_core.spool.spool_format import DAMAGED
from lightning_flows.flows.cli import main
from lightning_flows.tasks import show
from lightning_flows.tasks.track import tell_why
from tests.lake_maker import Attempt, derived, settings

# Of the four rollouts of each of four training tasks, how many are right by epoch; of twelve held-out tasks likewise.
RIGHT = {("train", 0): 1, ("train", 1): 2, ("train", 2): 3, ("evaluate", 0): 4, ("evaluate", 3): 7}
METRICS = {"mismatch": 1e-5, "entropy": 1.0, "grad_norm": 1.5, "clip_ratio": 0.1}


def rollout(mode: str, epoch: int, task: int, number: int, right: bool) -> Attempt:
    """A planner and a coder that call once each."""
    name = f"{mode}.{epoch}.{task}.{number}"
    made = Attempt(name, f"a.{name}", f"{mode}.{epoch}.{task}", start=1000.0 * epoch + 10 * task + number)
    made.root(mode=mode, epoch=epoch, task_id=f"{mode}-{task}", output=json.dumps({"answer": name}))
    for agent, at in (("planner", (0.1, 0.4)), ("coder", (0.5, 0.8))):
        span = made.agent(agent, at)
        tokens = list(range(10, 18))
        of: dict[str, Any] = {
            "policy_version": f"v{epoch:04d}",
            "finish_reasons": '["stop"]',
            "input_tokens": 2,
            "output_tokens": 8,
        }
        made.call([1, 2], tokens, (at[0] + 0.1, at[1] - 0.1), span, model="policy", sender="gateway", **of)
    made.reward(float(right))
    for row in made.rows:
        row["received_ns"] = row["end_ns"] + 5_000_000
    return made


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of a run of three epochs that learns, evaluated before and after; its catalog holds the rows themselves."""
    home = tmp_path_factory.mktemp("home")
    attempts = [
        rollout(mode, epoch, task, number, (task if mode == "evaluate" else number) < right)
        for (mode, epoch), right in RIGHT.items()
        for task in range(12 if mode == "evaluate" else 4)
        for number in range(1 if mode == "evaluate" else 4)
    ]
    lake, _ = derived(home, [row for attempt in attempts for row in attempt.rows])
    for mode, number in RIGHT:
        epoch = EpochManifest(run="run", epoch=number, mode=mode, opened_offset=0, sealed_offset=1 << 40)
        epoch.versions = {"policy": f"v{number:04d}"}
        derive(Epoch(settings(home), epoch), "key")
        if mode == "train":
            output = {"version": f"v{number + 1:04d}", "metrics": METRICS}
            epoch.stages["train policy"] = Stage(key="key", seconds=1.0, finished_ns=0, output=output)
        lake.manifests.put_epoch(epoch)
    file = lake.rebuild_catalog() or lake.root / "catalog.duckdb"
    with duckdb.connect(str(file), config={"file_search_path": str(lake.root)}) as con:
        for (name,) in con.execute("SELECT view_name FROM duckdb_views() WHERE schema_name = 'stored'").fetchall():
            con.execute(f"CREATE TABLE kept AS FROM stored.{name}; DROP VIEW stored.{name}")
            con.execute(f"CREATE TABLE stored.{name} AS FROM kept; DROP TABLE kept")
    return home


@pytest.fixture
def con(healthy: Path, tmp_path: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """A copy of the healthy run's catalog, to plant faults in."""
    shutil.copyfile(healthy / "lake" / "catalog.duckdb", tmp_path / "catalog.duckdb")
    with duckdb.connect(str(tmp_path / "catalog.duckdb")) as opened:
        yield opened


def metric(epoch: int, **values: float) -> str:
    """A training that measured these instead."""
    patch = json.dumps({"train policy": {"output": {"metrics": values}}})
    return f"UPDATE epoch_manifests SET stages = json_merge_patch(stages, '{patch}') WHERE mode = 'train' AND epoch = {epoch}"


def calls(what: str, where: str = "true") -> str:
    return f"UPDATE stored.spans SET {what} WHERE op = 'llm' AND rollout_id LIKE 'train.2.%' AND {where}"


@dataclass(frozen=True)
class Fault:
    """`plant` it and the rule finds it, in these words; nothing else is found that is worse than a note, but `also`."""

    rule: str
    severity: str
    said: str
    plant: list[str]
    also: set[str] = field(default_factory=set)


ADAPTERS = "UPDATE stored.spans SET model = 'policy@' || policy_version WHERE op = 'llm'"
OF_2 = "rollout_id LIKE 'train.2.%'"
NO_SPREAD = "UPDATE stored.advantages SET advantage = NULL, left_out = 'no_spread' WHERE epoch = 2"
FAULTS = [
    Fault(
        "served_version", "error", r"^32 calls were sampled by v0000; the epoch is about v0002$",
        [calls("policy_version = 'v0000'")],
    ),
    Fault(
        "served_version", "error", r"^32 calls of v0002 were answered by a model named policy@v0001$",
        [ADAPTERS, calls("model = 'policy@v0001'")],
    ),
    Fault(
        "served_version", "error", r"^16 calls of v0002 were answered by a model named policy$",
        [ADAPTERS, calls("model = 'policy'", "start_ns % 1000000000 < 500000000")],
    ),
    Fault(
        "served_version", "error", r"^it began with v0001, and the epoch before had trained v0002$",
        ["UPDATE epoch_manifests SET versions = map(['policy'], ['v0001']) WHERE epoch = 2", calls("policy_version = 'v0001'")],
    ),
    Fault(
        "served_version", "error", r"logprobs are 0\.9 nats a token from the trainer's: other weights than v0002",
        [metric(1, mismatch=0.9), metric(2, mismatch=0.9)], {"mismatch_jump"},
    ),
    Fault(
        "drift_from_base", "warning", r"from 1e-05 to 0\.15 nats a token by version 2 \(correlation with the version 1\.00\)",
        [metric(1, mismatch=0.08), metric(2, mismatch=0.15)], {"mismatch_jump"},
    ),
    Fault(
        "mismatch_jump", "warning", r"^the mismatch is 0\.1 nats a token with version 2; it was 1e-05 with version 1$",
        [metric(2, mismatch=0.1)],
    ),
    Fault(
        "unasked_policy", "error", r"^none of 32 calls asked for policy; they asked for: gpt-4o \(32\)$",
        [calls("policy = NULL, model = 'gpt-4o'")],
    ),
    Fault(
        "prompt_not_found", "error", r"^none of 32 calls had critic, writer in a system message$",
        [f"""UPDATE stored.spans SET prompts = '{{"critic":"p1","solver":"p0","writer":"p0"}}' WHERE op = 'rollout' AND {OF_2}""",
         calls("""attributes = map(['lightning.prompts_found'], [if(rollout_id LIKE '%.0', '["solver"]', '[]')])""")],
    ),
    Fault(
        "no_spread", "error", r"^4 of 4 groups teach nothing \(100%\): 4 no_spread; all rollouts of the epoch were right in 4 of them \(train-0, train-1, train-2\)$",
        [NO_SPREAD, "UPDATE stored.rollout_rewards SET success = true WHERE " + OF_2],
    ),
    Fault(
        "no_spread", "error", r"^4 of 4 groups teach nothing \(100%\): 1 little_spread, 3 no_spread; no rollout of the epoch was right in 1 of them \(train-3\)$",
        [NO_SPREAD, f"UPDATE stored.advantages SET left_out = 'little_spread' WHERE {OF_2} AND rollout_id LIKE 'train.2.1.%'", f"UPDATE stored.rollout_rewards SET success = false WHERE {OF_2} AND rollout_id LIKE 'train.2.3.%'"],
    ),
    Fault(
        "constant_grader", "error", r"^the grader gave reward 0 to all 16 rollouts of 4 tasks, as in the whole run$",
        ["UPDATE stored.rewards_given SET value = 0"],
    ),
    Fault(
        "constant_grader", "warning", r"^the grader gave reward 0 to all 16 rollouts of 4 tasks$",
        ["UPDATE stored.rewards_given SET value = 0 WHERE " + OF_2],
    ),
    Fault(
        "bad_rewards", "error", r"^12 rewards of 16 rollouts cannot be used \(no_number\): KeyError: answer$",
        [
            f"INSERT INTO stored.bad_rewards SELECT run, epoch, rollout_id, attempt_id, span_id, name, NULL, 'no_number' FROM stored.rewards_given WHERE {OF_2} AND rollout_id NOT LIKE '%.0'",
            f"UPDATE stored.spans SET reward = NULL, error = 'KeyError: answer' WHERE op = 'reward' AND {OF_2}",
        ],
    ),
    Fault(
        "failures_teach", "warning", r"^8 failed rollouts of 16 carry 67% of the gradient$",
        [
            f"UPDATE stored.spans SET outcome = 'timeout' WHERE op = 'rollout' AND {OF_2} AND regexp_matches(rollout_id, '[03]$')",
        ],
    ),
    Fault(
        "no_call", "warning", r"^4 of 16 rollouts made no call \(0 of them \"ok\"\): no module named agent$",
        [
            f"DELETE FROM stored.spans WHERE op = 'llm' AND {OF_2} AND rollout_id LIKE '%.2'",
            f"UPDATE stored.spans SET outcome = 'error', error = 'no module named agent' WHERE op = 'rollout' AND {OF_2} AND rollout_id LIKE '%.2'",
        ],
    ),
    Fault(
        "truncation", "warning", r"^25% of the rollouts were cut off and got 0\.00, the others 1\.00 \(correlation -1\.00\)$",
        [calls("finish_reasons = '[\"length\"]'", "rollout_id LIKE '%.3'")],
    ),
    Fault(
        "longer_answers", "warning", r"^48 tokens a rollout where there were 16; the reward went from 0\.25 to 0\.25$",
        [calls("output_tokens = 24"), f"UPDATE stored.rollout_rewards SET reward = rollout_id LIKE '%.0' WHERE {OF_2}"],
    ),
    Fault(
        "entropy_collapse", "warning", r"^entropy 0\.010 nats a token, 1\.000 at first; 75% of the rollouts succeed$",
        [metric(2, entropy=0.01)],
    ),
    Fault(
        "agent_dominates", "warning", r"^coder carries 97% of the gradient with 97% of the sampled tokens; 2 agents",
        [f"UPDATE stored.policy_calls SET response_tokens = 256 WHERE agent = 'coder' AND {OF_2}"],
    ),
    Fault(
        "held_out_flat", "warning", r"^reward in training 0\.25 → 0\.75, of 12 held-out tasks 0\.33 → 0\.33 \(\+0\.00 a task",
        ["UPDATE stored.rollout_rewards SET reward = regexp_matches(rollout_id, '[.][0-3][.]0$') WHERE mode = 'evaluate'"],
    ),
    Fault(
        "token_drift", "warning", r"^16 of 16 calls with a history drifted \(100%\), most of them of coder \(100% of its calls, about token 7\)$",
        [
            f"UPDATE stored.merges SET reason = 'token_drift', drift_position = 7, drift_tokens = 1 WHERE {OF_2} AND call_id IN (SELECT call_id FROM stored.policy_calls WHERE epoch = 2 AND agent = 'coder')",
        ],
    ),
    Fault(
        "ambiguous_calls", "warning", r"^16 of 32 calls could be of several agents \(.*\); nothing but the gateway recorded a call",
        [f"UPDATE stored.span_tree SET ambiguous = true, agent = NULL WHERE op = 'llm' AND agent = 'coder' AND {OF_2}"],
    ),
    Fault("big_steps", "warning", r"^60% of the trained tokens are clipped; kl 2\.50 nats", [metric(2, clip_ratio=0.6, kl=2.5)]),
    Fault("no_update", "error", r"^the norm of the gradient is 0: the new version is the former$", [metric(2, grad_norm=0.0)]),
    Fault(
        "no_update", "error", r"^nothing was trained: every group is without spread$",
        ["""UPDATE epoch_manifests SET stages = json_merge_patch(stages, '{"train policy": {"output": {"skipped": "every group is without spread"}}}') WHERE epoch = 2"""],
    ),
    Fault(
        "reward_hacked", "warning", r"style rose from 0\.25 to 1\.00 while right fell from 1\.00 to 0\.25$",
        [
            f"INSERT INTO stored.rewards_given BY NAME SELECT * REPLACE ('{name}' AS name, CASE WHEN (epoch = 2) = {rises} THEN 1 ELSE (rollout_id LIKE '%.0')::INTEGER END AS value) FROM stored.rewards_given WHERE name = 'reward'"
            for name, rises in (("style", "true"), ("right", "false"))
        ],
    ),
    Fault(
        "same_answer", "warning", r"^4 of 4 tasks were answered \"yes\" \(reward 0\.75, all answers 0\.75\); in the first epoch .* 25%$",
        [f"UPDATE stored.spans SET output = '\"yes\"' WHERE op = 'rollout' AND {OF_2}"],
    ),
    Fault(
        "clocks", "warning", r"^32 spans of 16 rollouts end up to 60\.0 s after they were received$",
        [f"UPDATE stored.spans SET end_ns = received_ns + 60000000000 WHERE op = 'agent' AND {OF_2}"],
    ),
    Fault(
        "few_held_out", "warning", r"^2 held-out tasks; about 10 are needed to see 5 points$",
        ["DELETE FROM stored.spans WHERE regexp_matches(rollout_id, '^evaluate[.][03][.]([3-9]|1.)')"],
    ),
    Fault(
        "lost_spans", "warning", r"^2 spans came after the epoch was sealed, 3 could not be decoded; 16 rollouts$",
        [
            f"UPDATE stored.spans SET record_offset = 1::BIGINT << 41 WHERE op = 'agent' AND {OF_2} AND rollout_id LIKE '%.0.0'",
            "INSERT INTO rejections VALUES (1, 0, 3, 'no ids', 0, 'train.2.0.0', 'a.train.2.0.0')",
        ],
    ),
    Fault(
        "damaged_spool", "error", r"^1 requests of spans were damaged on the disk",
        [
            f"INSERT INTO rejections VALUES ((SELECT max(opened_offset) FROM epoch_manifests), NULL, 1, '{DAMAGED}', 0, NULL, NULL)",
        ],
        also={"lost_spans"},
    ),
    Fault(
        "unfinished", "warning", r"^8 of 24 planned rollouts have no result$",
        ["UPDATE epoch_manifests SET planned_rollouts = 24 WHERE epoch = 2"],
    ),
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.rule}: {fault.said[:30]}")
def test_a_planted_fault_is_found_with_its_numbers_and_its_rows(con: duckdb.DuckDBPyConnection, fault: Fault) -> None:
    for statement in fault.plant:
        con.execute(statement)
    found = why.diagnose(con, "run")
    worst = {f.rule for f in found if f.severity != "note"}
    assert worst - fault.also == {fault.rule}, [(f.where, f.severity, f.what) for f in found]
    planted = [f for f in found if f.rule == fault.rule and f.severity == fault.severity]
    assert any(re.search(fault.said, f.what) for f in planted), [f.what for f in planted]
    assert con.execute(planted[0].evidence).fetchall(), planted[0].evidence


def test_a_gain_that_is_sure_needs_no_more_held_out_tasks(con: duckdb.DuckDBPyConnection) -> None:
    assert [finding.rule for finding in why.diagnose(con, "run")] == ["few_held_out"]
    con.execute("UPDATE stored.spans SET reward = 1 WHERE op = 'reward' AND rollout_id LIKE 'evaluate.3.%'")
    con.execute("UPDATE stored.rollout_rewards SET reward = 1 WHERE rollout_id LIKE 'evaluate.3.%'")
    assert why.diagnose(con, "run") == []


def test_a_grader_that_gave_nothing_else_yet_is_a_note(con: duckdb.DuckDBPyConnection) -> None:
    con.execute("UPDATE stored.rewards_given SET value = 0 WHERE rollout_id LIKE 'evaluate.0.%'")
    (found,) = [finding for finding in why.diagnose(con, "run") if finding.rule == "constant_grader"]
    assert (found.severity, found.mode, found.epochs) == ("note", "evaluate", [0]), "the model can do nothing yet"


def test_an_epoch_that_is_being_graded_has_lost_nothing(con: duckdb.DuckDBPyConnection) -> None:
    graded = "UPDATE epoch_manifests SET stages = json_merge_patch(stages, '{}') WHERE mode = 'train' AND epoch = 2"
    con.execute(f"UPDATE stored.spans SET record_offset = 1::BIGINT << 41 WHERE op = 'reward' AND {OF_2}")
    con.execute(graded.replace("{}", '{"rollouts": {"seconds": 1}}'))
    assert "lost_spans" not in {finding.rule for finding in why.diagnose(con, "run")}
    con.execute(graded.replace("{}", '{"rewards": {"seconds": 1}}'))
    assert "lost_spans" in {finding.rule for finding in why.diagnose(con, "run")}


def test_a_grader_is_not_constant_where_only_answers_were_shown(con: duckdb.DuckDBPyConnection) -> None:
    con.execute("UPDATE stored.rewards_given SET value = 1")
    assert [f.severity for f in why.diagnose(con, "run") if f.rule == "constant_grader"] == ["error", "error"]
    con.execute("UPDATE epoch_manifests SET settings = map(['policies.0.algorithm'], ['sft']) WHERE mode = 'train'")
    assert [f.severity for f in why.diagnose(con, "run") if f.rule == "constant_grader"] == ["note", "note"]


def test_every_rule_has_a_fault_and_an_answer_that_may_be_asked() -> None:
    assert {rule.name for rule in why.rules()} == {fault.rule for fault in FAULTS}
    for rule in why.rules():
        user_sql.checked(rule.evidence.replace("$run", "'run'"))
        text = re.sub(r"--.*", "", sql.text(f"why/{rule.name}"))
        read = set(re.findall(r"(?<!DISTINCT )(?:FROM|JOIN) (\w+)\b(?!\()", text)) - set(
            re.findall(r"(\w+) AS \(", text)
        )
        assert read == set(sql.inputs(f"why/{rule.name}")), rule.name
        assert ("limits AS (" in text) == text.strip().startswith("WITH limits AS ("), (
            f"{rule.name}: its limits come first"
        )


def test_the_command_says_what_it_found_its_remedy_and_what_to_ask(healthy: Path) -> None:
    home = str(healthy)
    said = CliRunner().invoke(main, ["why", "--home", home]).output
    assert said.startswith(
        "run run: 1 found\n\nnote few_held_out · evaluation after epoch 2\n  12 held-out tasks; about 315 are"
    )
    assert f"""\n  lightning-flows sql "FROM held_out_gains(p_run := 'run')" --home {home}\n""" in said
    found = json.loads(CliRunner().invoke(main, ["why", "run", "--home", home, "--format", "json"]).output)
    assert [(f["rule"], f["epochs"]) for f in found["findings"]] == [("few_held_out", [3])]
    assert (
        "no run is called 'other'; there are: run" in CliRunner().invoke(main, ["why", "other", "--home", home]).output
    )


def test_an_epochs_record_warns_of_what_is_wrong_with_it_and_shows_all_in_prefect(
    healthy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made: dict[str, Any] = {}
    monkeypatch.setattr(show, "create_markdown_artifact", made.update)
    shutil.copytree(healthy, tmp_path / "home")
    run = Run(settings(tmp_path / "home"))
    manifests = {epoch.epoch: epoch for epoch in run.lake.manifests.epochs("run", "train")}
    for number in (1, 2):
        manifests[number].stages["train policy"].output["metrics"]["grad_norm"] = 0.0
        run.lake.manifests.put_epoch(manifests[number])
    run.lake.rebuild_catalog()
    tell_why(run.at(manifests[1]))
    assert "no_update" not in caplog.text, "it is said after the newest epoch that has it"
    tell_why(run.at(manifests[2]))
    assert [r.getMessage() for r in caplog.records if r.levelname == "WARNING"] == [
        "error: no_update · policy · epochs 1 to 2: the norm of the gradient is 0: the new version is the former"
    ]
    assert made["key"] == "why-run"
    head, line, first, *_ = made["markdown"].splitlines()
    assert head.count("|") == line.count("|") == first.count("|") and first.startswith("| error | no_update · policy")


def test_a_healthy_run_has_notes_at_most(healthy: Path) -> None:
    with catalog.connect(healthy / "lake") as con:
        found = why.diagnose(con, why.newest_run(con))
        assert [(f.rule, f.severity, f.what) for f in found] == [
            ("few_held_out", "note", "12 held-out tasks; about 315 are needed to see 5 points")
        ]
        assert con.execute("SELECT count(*) FROM rollouts").fetchone() == (72,), "nobody else sees what it has made"
        with pytest.raises(Missing, match="no run is called 'other'; there are: run"):
            why.diagnose(con, "other")


def test_an_epoch_that_showed_the_answers_is_no_first_epoch_to_be_compared_with(con: duckdb.DuckDBPyConnection) -> None:
    for plant in (
        "UPDATE epoch_manifests SET settings = map(['policies.0.algorithm'], ['sft']) WHERE mode = 'train' AND epoch = 0",
        "UPDATE stored.spans SET output_tokens = 2 WHERE op = 'llm' AND rollout_id LIKE 'train.0.%'",
        "UPDATE stored.rollout_rewards SET reward = 1, success = true WHERE rollout_id LIKE 'train.0.%'",
    ):
        con.execute(plant)
    con.execute(metric(1, entropy=0.03) + "; " + metric(2, entropy=0.03))
    assert {(f.rule, f.severity) for f in why.diagnose(con, "run")} == {("few_held_out", "note")}
    con.execute(metric(2, entropy=0.005))
    assert {f.rule for f in why.diagnose(con, "run") if f.severity != "note"} == {"entropy_collapse"}
    for plant in (
        calls("output_tokens = 24"),
        f"UPDATE stored.rollout_rewards SET reward = rollout_id LIKE '%.0' OR rollout_id LIKE '%.1' WHERE {OF_2}",
    ):
        con.execute(plant)
    (found,) = [f.what for f in why.diagnose(con, "run") if f.rule == "longer_answers"]
    assert found.startswith("48 tokens a rollout where there were 16; the reward went from 0.50 to 0.50")


@pytest.mark.parametrize(("right", "severity"), [("true", "note"), ("false", "warning")])
def test_groups_that_are_all_right_are_no_reason_to_warn(
    con: duckdb.DuckDBPyConnection, right: str, severity: str
) -> None:
    for plant in (
        f"UPDATE stored.advantages SET advantage = NULL, left_out = 'no_spread' WHERE {OF_2} AND rollout_id NOT LIKE 'train.2.3.%'",
        f"UPDATE stored.rollout_rewards SET success = {right} WHERE {OF_2} AND rollout_id NOT LIKE 'train.2.3.%'",
        "INSERT INTO stored.advantages SELECT given.* REPLACE (group_id || n AS group_id) FROM stored.advantages AS given, range(3) AS copies(n) "
        f"WHERE {OF_2} AND left_out = 'no_spread'",
    ):
        con.execute(plant)
    (found,) = [f for f in why.diagnose(con, "run") if f.rule == "no_spread"]
    assert found.what.startswith("12 of 13 groups teach nothing (92%)")
    assert found.severity == severity
