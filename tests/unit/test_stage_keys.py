"""What makes a stage be done again: a key covers what the stage reads, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from lightning_core.config import Settings
from lightning_core.epoch import stage_keys
from lightning_core.epoch.epoch import Epoch, Run
from lightning_core.epoch.plan import Task, plan_training
from lightning_core.epoch.stages import STAGES, Stage, redo_from, run_stage
from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import DerivedTable, EpochManifest, SpanManifest
from lightning_flows.flows import cli
from lightning_flows.flows import command as commands

BASE: dict[str, Any] = {
    "run": "r",
    "agent": {"command": "true"},
    "tasks": {"train": "tasks.jsonl"},
    "rollout": {"tasks_per_epoch": 2, "group_size": 2},
}
TASKS = [Task("a", {"id": "a", "question": "?"}), Task("b", {"id": "b", "question": "!"})]


def settings_of(home: Path, **changes: Any) -> Settings:
    return Settings.model_validate(BASE | {"home": str(home)} | changes)


def keys(settings: Settings, tasks: list[Task] = TASKS, **manifest: Any) -> dict[str, str]:
    planned = plan_training(Run(settings), tasks, 0)
    table = DerivedTable(path="sequences.parquet", rows=1, digest="d")
    epoch = EpochManifest(
        **{"run": "r", "epoch": 0, "versions": {"policy": "v0000"}, "opened_offset": 0, "sealed_offset": 9}
        | {"planned": [r.rollout_id for r in planned], "tables": {"sequences": table}}
        | manifest
    )
    return {
        "rollouts": stage_keys.rollouts_key(Epoch(settings, epoch), planned),
        "rewards": stage_keys.rewards_key(Epoch(settings, epoch), planned),
        "sequences": stage_keys.sequences_key(Epoch(settings, epoch)),
        "train": stage_keys.train_key(Epoch(settings, epoch), settings.policies[0]),
    }


@pytest.mark.parametrize(
    ("first", "changes"),
    [
        ("rollouts", {"agent": {"command": "false"}}),
        ("rollouts", {"agent": {"command": "true", "timeout_s": 1}}),
        ("rollouts", {"rollout": {"tasks_per_epoch": 2, "group_size": 3}}),
        ("rollouts", {"rollout": {"tasks_per_epoch": 2, "group_size": 2, "replaced_groups": 1}}),
        ("rollouts", {"policies": [{"sampling": {"temperature": 0.5}}]}),
        ("rollouts", {"policies": [{"aliases": ["gpt-4o"]}]}),
        ("rollouts", {"vllm": {"max_model_len": 64}}),
        ("rollouts", {"gateway": {"calls_per_rollout": 3}}),
        ("rollouts", {"prompts": {"writer": {"file": "writer.md"}}}),
        ("rewards", {"reward": {"grader": "tests/e2e/letter_agent.py:grade"}}),
        ("sequences", {"reward": {"failure_reward": 0.5}}),
        ("sequences", {"policies": [{"agent_match": "planner"}]}),
        ("sequences", {"policies": [{"advantages": "rloo"}]}),
        ("sequences", {"agent_rules": [{"key": "my.agent"}]}),
        ("train", {"policies": [{"training": {"learning_rate": 0.5}}]}),
        (None, {"rollout": {"tasks_per_epoch": 2, "group_size": 2, "concurrency": 3, "shards": 1, "retries": 0}}),
        (None, {"vllm": {"kv_cache_gb": 0.1, "max_num_seqs": 3}, "gateway": {"spool_max_gb": 1.0}}),
        (None, {"agent": {"command": "true", "environments": "elsewhere"}}),
        (None, {"agent": {"command": "true", "limits": {"processes": 2048}}}),
        ("rollouts", {"agent": {"command": "true", "limits": {"processes": 9}}}),
        (None, {"gateway": {"most_calls": 3, "log_calls": "off"}}),
        (None, {"epochs": 9, "evaluation": {"every": 3}, "store": {"keep_every": 3}}),
    ],
)
def test_a_setting_touches_the_first_stage_that_reads_it_and_none_before(
    tmp_path: Path, first: Stage | None, changes: dict[str, Any]
) -> None:
    before, after = keys(settings_of(tmp_path)), keys(settings_of(tmp_path, **changes))
    touched = [stage for stage in before if before[stage] != after[stage]]
    assert (touched[0] if touched else None) == first


def test_a_home_keeps_the_keys_of_its_rollouts_and_rewards_when_settings_come_and_go(tmp_path: Path) -> None:
    """As they were of these settings on 24 November 2026: with other ones, an epoch that began then is rolled out again."""
    plain = keys(settings_of(tmp_path))
    assert (plain["rollouts"], plain["rewards"]) == ("7411ebea1a0da7e8", "721c2a6f8535933a")
    settings = settings_of(
        tmp_path,
        agent={"command": "true", "timeout_s": 60, "environment": {"A": "1"}},
        reward={"grader": "tests/e2e/letter_agent.py:grade"},
        frozen=["critic"],
        policies=[{"lora": {}, "aliases": ["gpt-4o"], "sampling": {"temperature": 0.7, "max_tokens": 24}}],
        vllm={"max_model_len": 512, "extra_args": ["--x"]},
        gateway={
            "calls_per_rollout": 9,
            "upstreams": [{"name": "judge", "base_url": "http://j/v1", "models": ["j"]}],
        },
    )
    assert keys(settings)["rollouts"] == "30bed836058bb81f"


def test_a_setting_at_its_default_is_in_no_key_of_what_comes_after_the_rollouts(tmp_path: Path) -> None:
    written = {"min_spread": 0.0, "too_long": "drop_calls", "training": {"max_passes": 1, "trl": {}}}
    assert keys(settings_of(tmp_path, policies=[written], reward={"weights": {}})) == keys(settings_of(tmp_path))
    assert stage_keys.settings_read(settings_of(tmp_path))[0] == {}


def test_a_version_of_a_prompt_or_the_pattern_that_it_replaces_makes_other_rollouts(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, prompts={"writer": {"file": "writer.md"}})
    before = keys(settings, prompt_versions={"writer": "p0000"})
    assert keys(settings, prompt_versions={"writer": "p0001"})["rollouts"] != before["rollouts"]
    matched = settings_of(tmp_path, prompts={"writer": {"file": "elsewhere.md", "match": "You .*"}})
    assert keys(matched, prompt_versions={"writer": "p0000"})["rollouts"] != before["rollouts"]
    moved = settings_of(tmp_path, prompts={"writer": {"file": "elsewhere.md"}})
    assert keys(moved, prompt_versions={"writer": "p0000"})["rollouts"] == before["rollouts"]


def test_a_task_that_is_another_under_the_same_id_makes_other_rollouts(tmp_path: Path) -> None:
    other = [TASKS[0], Task("b", {"id": "b", "question": "?!"})]
    settings = settings_of(tmp_path)
    assert keys(settings)["rollouts"] != keys(settings, other)["rollouts"]


def test_an_agent_or_a_grader_whose_source_changed_is_another(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    settings = settings_of(tmp_path, agent={"callable": f"{file}:run"}, reward={"grader": f"{file}:grade"})
    file.write_text("def run(task): return 1")
    before = keys(settings)
    file.write_text("def run(task): return 2")
    after = keys(settings)
    assert before["rollouts"] != after["rollouts"]
    assert before["rewards"] != after["rewards"]


@pytest.mark.parametrize(
    ("agent", "file"),
    [
        ({"callable": "mine:run"}, "mine.py"),
        ({"callable": "mine.agent:run"}, "mine/agent.py"),
        ({"callable": "mine:run"}, "mine/__init__.py"),
        ({"command": "python mine.py --fast"}, "mine.py"),
        ({"command": ["./mine.sh"]}, "mine.sh"),
        ({"command": "true", "python": "requirements.txt"}, "requirements.txt"),
    ],
)
@pytest.mark.parametrize("elsewhere", [False, True])
def test_an_agent_is_found_where_it_runs_and_so_are_its_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, agent: dict[str, Any], file: str, elsewhere: bool
) -> None:
    (tmp_path / "here").mkdir()
    place = tmp_path / "there" if elsewhere and "python" not in agent else tmp_path / "here"
    monkeypatch.chdir(tmp_path / "here")
    settings = settings_of(tmp_path, agent=agent | ({"working_directory": str(place)} if elsewhere else {}))
    (place / file).parent.mkdir(parents=True, exist_ok=True)
    (place / file).write_text("one")
    before = keys(settings)["rollouts"]
    assert keys(settings)["rollouts"] == before
    (place / file).write_text("two")
    assert keys(settings)["rollouts"] != before


def test_what_a_stage_is_made_of_is_in_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(tmp_path)
    before = keys(settings)
    assert keys(settings, sealed_offset=10)["sequences"] != before["sequences"]
    table = DerivedTable(path="sequences.parquet", rows=1, digest="another")
    assert keys(settings, tables={"sequences": table})["train"] != before["train"]
    assert keys(settings_of(tmp_path, seed=7))["train"] != before["train"]
    assert keys(settings, versions={"policy": "v0001"})["rollouts"] != before["rollouts"]
    for stage, name in (("sequences", "sql_digest"), ("sequences", "derive_code"), ("train", "training_code")):
        with monkeypatch.context() as patch:
            patch.setattr(stage_keys, name, lambda *_: "other code")
            after = keys(settings)
        assert [s for s in before if before[s] != after[s]] == [stage]


def test_an_algorithms_options_and_sql_and_the_source_of_ones_own_are_in_the_keys_of_what_reads_them(
    tmp_path: Path,
) -> None:
    def of(**policy: Any) -> dict[str, str]:
        return keys(settings_of(tmp_path, policies=[policy]))

    def changed(before: dict[str, str], after: dict[str, str]) -> list[str]:
        return [stage for stage in before if before[stage] != after[stage]]

    assert changed(of(algorithm="ppo"), of(algorithm="ppo", options={"gae_lambda": 0.9})) == ["train"]
    code, query = tmp_path / "own.py", tmp_path / "own.sql"
    code.write_text(
        "from pathlib import Path\nfrom lightning_core.algorithms import Algorithm\n"
        "class Own(Algorithm):\n    def weigh(self):\n        return Path(__file__).with_name('own.sql')\n"
    )
    query.write_text("SELECT 1")
    own = {"algorithm": f"{code}:Own"}
    first = of(**own)
    query.write_text("SELECT 2")
    second = of(**own)
    assert changed(first, second) == ["train"]
    code.write_text(code.read_text() + "# changed\n")
    assert changed(second, of(**own)) == ["sequences", "train"]


def epoch_with_all_stages(lake: Lake, settings: Settings) -> EpochManifest:
    """Every stage done, with the keys of these settings."""
    planned = plan_training(Run(settings), TASKS, 0)
    epoch = EpochManifest(run="r", epoch=0, versions={"policy": "v0000"}, opened_offset=0, sealed_offset=9)
    epoch.planned = [r.rollout_id for r in planned]
    epoch.tables["sequences"] = DerivedTable(path="sequences.parquet", rows=1, digest="d")
    found = {
        "rollouts": stage_keys.rollouts_key(Epoch(settings, epoch), planned),
        "rewards": stage_keys.rewards_key(Epoch(settings, epoch), planned),
        "sequences": stage_keys.sequences_key(Epoch(settings, epoch)),
        "train policy": stage_keys.train_key(Epoch(settings, epoch), settings.policies[0]),
    }
    for stage, key in found.items():
        epoch.finish(stage, key, {"stage": stage}, 0.0)
    epoch.finish("record", stage_keys.record_key(epoch), {}, 0.0)
    epoch.rolled_out_with = found["rollouts"]
    lake.manifests.put_epoch(epoch)
    return epoch


def test_an_epoch_is_done_where_every_stage_was_with_its_key(tmp_path: Path) -> None:
    settings, lake = settings_of(tmp_path), Lake(tmp_path)
    epoch = epoch_with_all_stages(lake, settings)
    planned = plan_training(Run(settings), TASKS, 0)
    assert stage_keys.outputs(Epoch(settings, epoch), planned) is not None
    assert stage_keys.outputs(Epoch(settings_of(tmp_path, seed=7), epoch), planned) is None
    del epoch.stages["record"]
    assert stage_keys.outputs(Epoch(settings, epoch), planned) is None


def test_the_command_for_an_epoch_that_is_done_ends_before_prefect_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_prefect(home: Path) -> None:
        raise LookupError("Prefect's server was asked for")

    monkeypatch.setattr(commands, "prefect_api", no_prefect)
    (tmp_path / "tasks.jsonl").write_text("\n".join(json.dumps(task.content) for task in TASKS))
    settings = settings_of(tmp_path, tasks={"train": str(tmp_path / "tasks.jsonl")}, agent={"command": "true"})
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(settings.model_dump(mode="json", exclude_defaults=True)))
    command = ["train-epoch", str(tmp_path / "settings.yaml"), "--epoch", "0"]
    assert isinstance(CliRunner().invoke(cli.main, command).exception, LookupError)
    epoch_with_all_stages(Lake(tmp_path), settings)
    done = CliRunner().invoke(cli.main, command)
    assert (done.exit_code, done.output) == (0, "epoch 0 of run r is done, with these settings\n")
    for more in (["--from", "train"], ["--set", "seed=7"], ["--epoch", "1"]):
        assert isinstance(CliRunner().invoke(cli.main, [*command, *more]).exception, LookupError)


@pytest.mark.parametrize("stage", list(STAGES))
def test_from_a_stage_on_what_was_done_is_forgotten_and_what_was_before_stays(tmp_path: Path, stage: Stage) -> None:
    lake = Lake(tmp_path)
    lake.manifests.put_spans(SpanManifest(decoded_offset=50))
    epoch = epoch_with_all_stages(lake, settings_of(tmp_path))
    redo_from(Epoch(settings_of(tmp_path), epoch), stage, "a flow run")
    kept = ["rollouts", "rewards", "sequences", "train policy", "record"][: list(STAGES).index(stage)]
    assert list(epoch.stages) == kept
    assert list(lake.manifests.epoch("r", 0).stages) == kept  # type: ignore[union-attr]
    assert epoch.span_range == ((50, None) if stage == "rollouts" else (0, 9))


def test_a_retry_of_the_same_flow_run_does_not_forget_again_what_it_did(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    epoch = epoch_with_all_stages(lake, settings_of(tmp_path))
    redo_from(Epoch(settings_of(tmp_path), epoch), "sequences", "flow run 1")
    run_stage(Epoch(settings_of(tmp_path), epoch), "sequences", "key", lambda: {"rows": 1})
    redo_from(Epoch(settings_of(tmp_path), epoch), "sequences", "flow run 1")
    assert "sequences" in epoch.stages
    redo_from(Epoch(settings_of(tmp_path), epoch), "sequences", "flow run 2")
    assert "sequences" not in epoch.stages
