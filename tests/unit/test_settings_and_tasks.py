"""Settings, task sets and plans: bad input is named with its place and what would be right."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given, strategies
from hypothesis import settings as hypothesis_settings

from docs import generate
from lightning_core.config import Settings, SettingsError
from lightning_core.epoch.epoch import Run
from lightning_core.epoch.plan import plan_evaluation, plan_training
from lightning_core.epoch.task_file import Task, load_tasks
from lightning_core.gateway.main import main as gateway
from lightning_core.lake.manifest import stage_key
from lightning_core.loading import load_callable
from lightning_core.settings_file import load_settings
from lightning_flows.flows.cli import main
from tests import deployed

MINIMAL: dict[str, Any] = {"agent": {"callable": "a:b"}, "tasks": {"train": "t.jsonl"}}


def write(folder: Path, **changes: Any) -> Path:
    file = folder / "settings.yaml"
    file.write_text(yaml.safe_dump(MINIMAL | changes))
    return file


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rollout": {"groupsize": 4}}, r"unknown key `rollout\.groupsize`; known here: tasks_per_epoch, group_size"),
        ({"policies": [{"trainin": {}}]}, r"unknown key `policies\.0\.trainin`; known here: name, model"),
        (
            {"prompts": {"writer": {"file": "writer.txt", "pattern": "x"}}},
            r"unknown key `prompts\.writer\.pattern`; known here: file, agent_match, match",
        ),
        (
            {"reward": {"air": [{"name": "slow", "value": -1, "op": "llm", "atribute": "x"}]}},
            r"unknown key `reward\.air\.0\.atribute`; known here: name, value, op",
        ),
        ({"agent": {}}, "exactly one of `callable` and `command`"),
        ({"agent": {"callable": "nothing"}}, "module:function"),
        ({"rollout": {"group_size": 0}}, r"`rollout\.group_size`.*got 0"),
        ({"rollout": {"group_size": 1}}, "compares the rollouts of a group; make it 2 or more"),
        ({"run": "no spaces please"}, "`run`"),
        ({"policies": [{"name": "a"}, {"name": "a"}]}, "two policies are called 'a'"),
        (
            {"policies": [{"sampling": {"top_p": 0.7}}]},
            r"`policies\.0`: sampling\.top_p 0\.7 .*set it to 1.*`temperature`",
        ),
        ({"policies": [{"name": "a"}, {"name": "b"}]}, "give every policy a `lora:` section"),
        ({"tasks": {}}, r"`tasks\.train` is missing"),
        ({"prompt_search": {"reflection_model": ""}}, r"`prompt_search\.reflection_model`"),
    ],
)
def test_settings_that_cannot_work_name_the_key_and_the_remedy(tmp_path: Path, changes: Any, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as error:
        load_settings(write(tmp_path, **changes))
    assert "settings.yaml" in str(error.value)


def test_the_gateways_own_settings_name_what_is_known_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = json.dumps({"upstreams": [{"name": "judge", "url": "http://127.0.0.1:9/v1"}]})
    with pytest.raises(SystemExit):
        gateway(["--home", str(tmp_path), "--settings", given])
    assert "unknown key `upstreams.0.url`; known here: name, base_url" in capsys.readouterr().err


@pytest.mark.parametrize("model", ["gpt-4.1", "openai/gpt-4o", "Qwen/Qwen3-8B:free"])
def test_the_reflecting_model_has_any_name_that_an_upstream_gives_it(tmp_path: Path, model: str) -> None:
    upstream = {"name": "openai", "base_url": "http://127.0.0.1:9/v1", "models": [model]}
    changes = {"prompt_search": {"reflection_model": model}, "gateway": {"upstreams": [upstream]}}
    search = load_settings(write(tmp_path, **changes)).prompt_search
    assert search is not None and search.reflection_model == model


@pytest.mark.parametrize("policy", [{"algorithm": "sft"}, {"train_every": 0}])
def test_where_no_ratio_is_taken_a_policy_may_sample_from_a_truncated_distribution(
    tmp_path: Path, policy: dict[str, Any]
) -> None:
    settings = load_settings(write(tmp_path, policies=[policy | {"sampling": {"top_p": 0.7}}]))
    assert settings.policies[0].sampling.top_p == 0.7


def test_a_file_that_is_missing_or_no_yaml_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no such settings file"):
        load_settings(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(SettingsError, match=r"bad\.yaml: not valid YAML"):
        load_settings(tmp_path / "bad.yaml")


def test_overrides_reach_into_lists_and_sections(tmp_path: Path) -> None:
    file = write(tmp_path, policies=[{"name": "p"}])
    settings = load_settings(file, {"policies.0.training.learning_rate": 0.5, "rollout.group_size": 3})
    assert (settings.policies[0].training.learning_rate, settings.rollout.group_size) == (0.5, 3)


def test_an_override_reaches_into_the_policy_that_there_is_by_default(tmp_path: Path) -> None:
    settings = load_settings(write(tmp_path), {"policies.0.model": "other"})
    assert [(policy.name, policy.model) for policy in settings.policies] == [("policy", "other")]


def test_settings_survive_json_as_prefect_sends_them(tmp_path: Path) -> None:
    settings = load_settings(write(tmp_path))
    assert Settings.model_validate(json.loads(settings.model_dump_json())) == settings


def test_the_command_line_says_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["settings", str(write(tmp_path, nonsense=1))])
    assert done.exit_code == 1
    assert "unknown key `nonsense`" in done.output and "Traceback" not in done.output


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.jsonl", None, "no such file"),
        ("empty.jsonl", "", "there is no task in it"),
        ("bad.jsonl", "{", "not valid JSON"),
        ("list.json", "[[1]]", "task 0 is a list"),
        ("number.json", "5", "it holds a int, not a list of tasks"),
        ("object.json", '{"id": 1}', "it holds a dict, not a list of tasks"),
        ("text.parquet", "id", "not valid Parquet"),
        ("twice.jsonl", '{"id": 1}\n{"id": 1}\n', "1 ids occur more than once, the first is '1'"),
    ],
)
def test_a_task_set_that_cannot_be_used_is_named(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(SettingsError, match=f"tasks.train.*{message}"):
        load_tasks(str(tmp_path / name), "tasks.train")


def test_tasks_come_from_functions_and_files(tmp_path: Path) -> None:
    (tmp_path / "made.py").write_text("def some():\n    return [{'id': 'x', 'n': 1}, {'n': 2}]\n")
    tasks = load_tasks(f"{tmp_path / 'made.py'}:some", "tasks.train")
    assert [(t.id, t.content["n"]) for t in tasks] == [("x", 1), ("1", 2)]


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("no.such.module:f", "cannot be imported"),
        ("{file}:missing", "has no function 'missing'; it has: run"),
        ("x.py:f", "no such file"),
    ],
)
def test_a_function_that_is_not_there_is_named_with_its_setting(tmp_path: Path, reference: str, message: str) -> None:
    file = tmp_path / "module.py"
    file.write_text("def run(): pass\n")
    with pytest.raises(SettingsError, match=rf"reward\.grader.*{message}"):
        load_callable(reference.format(file=file), "reward.grader")


def settings_of(tasks: int, group: int, seed: int = 0) -> Settings:
    rollout = {"tasks_per_epoch": tasks, "group_size": group}
    return Settings.model_validate(MINIMAL | {"rollout": rollout, "seed": seed})


@hypothesis_settings(max_examples=50)
@given(
    count=strategies.integers(1, 30),
    wanted=strategies.integers(1, 12),
    epochs=strategies.integers(1, 8),
    seed=strategies.integers(0, 9),
)
def test_no_task_comes_again_before_all_were_seen(count: int, wanted: int, epochs: int, seed: int) -> None:
    tasks = [Task(str(i), {}) for i in range(count)]
    settings = settings_of(wanted, 2, seed)
    drawn = [r.task.id for epoch in range(epochs) for r in plan_training(Run(settings), tasks, epoch)[::2]]
    for lap in range(0, len(drawn), count):
        assert len(set(drawn[lap : lap + count])) == len(drawn[lap : lap + count])


def test_without_shuffling_epochs_take_the_tasks_in_the_order_given_and_begin_again_at_its_end() -> None:
    tasks = [Task(str(i), {}) for i in range(5)]
    settings = settings_of(2, 2)
    settings = settings.model_copy(update={"tasks": settings.tasks.model_copy(update={"sampler": "in_order"})})
    drawn = [[r.task.id for r in plan_training(Run(settings), tasks, epoch)[::2]] for epoch in range(4)]
    assert drawn == [["0", "1"], ["2", "3"], ["4", "0"], ["1", "2"]]


def test_a_plan_is_the_same_each_time_and_ids_are_unique_and_fit_a_url() -> None:
    tasks = [Task(name, {}) for name in ("a/b", "a?b", "ä", "x" * 60, "x" * 61, "ok")]
    plan = plan_training(Run(settings_of(8, 2)), tasks, 3)
    assert plan == plan_training(Run(settings_of(8, 2)), tasks, 3)
    ids = [r.rollout_id for r in plan] + [r.rollout_id for r in plan_evaluation(Run(settings_of(8, 2)), tasks, 3)]
    assert len(set(ids)) == len(ids) == 16 + 6
    assert all(c.isascii() and (c.isalnum() or c in "-_.") for i in ids for c in i)


def test_a_stages_key_is_that_of_what_it_reads() -> None:
    settings = settings_of(2, 2)
    assert stage_key(settings.reward, "x") == stage_key(settings.reward.model_copy(), "x")
    assert stage_key(settings.reward, "x") != stage_key(settings.reward.model_copy(update={"failure_reward": 1.0}), "x")


@pytest.mark.parametrize("page", sorted(generate.PAGES))
def test_the_generated_docs_are_those_in_the_tree(page: str) -> None:
    assert (generate.HERE / page).read_text() == generate.PAGES[page](), "run: python docs/generate.py"


def test_the_deployments_train_the_example_as_its_settings_file_says() -> None:
    root = generate.HERE.parent
    example = load_settings(root / "examples/calculator/settings.yaml")
    deployments = deployed.deployments()
    assert [d["entrypoint"].split(":")[1] for d in deployments] == [
        "train_epoch",
        "train",
        "finetune",
        "train",
        "evaluate",
        "roll_out",
        "learn",
        "ingest",
    ]
    schedules = [s for d in deployments for s in d.get("schedules", [])]
    assert [s["active"] for s in schedules] == [False, False], "a schedule is for whoever wants it"
    own = {"run", "policies", "finetune"}
    for deployment in deployments:
        if "ingest" in deployment["entrypoint"]:
            assert deployment["parameters"] == {"home": "var", "lake": {}}
            continue
        settings = Settings.model_validate(deployment["parameters"]["settings"])
        if "finetune" in deployment["entrypoint"]:
            assert settings.finetune.runs == [example.run] and settings.policies[0].algorithm == "sft"
            assert settings.model_dump(exclude=own) == example.model_dump(exclude=own)
        elif deployment["name"] == "planner-executor":
            assert settings == load_settings(root / "examples/planner_executor/settings.yaml", {"home": "var"})
        else:
            assert settings == example


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"reward": {"failure_reward": float("nan")}}, "finite"),
        ({"reward": {"weights": {"quality": float("inf")}}}, "finite"),
        ({"reward": {"assign": "discounted"}}, "`assign: discounted` and `gamma` belong together"),
        ({"reward": {"gamma": 0.9}}, "`assign: discounted` and `gamma` belong together"),
        ({"reward": {"grader": "m:f", "reward_match": "critic"}}, "drop one"),
        ({"reward": {"air": [{"name": "slow", "value": -0.1}]}}, "has no condition"),
        ({"reward": {"air": [{"name": "x", "value": v, "op": "tool"} for v in (1, 2)]}}, "two rules of `air`"),
        ({"agent_rules": [{"pattern": "(.*)"}]}, "needs a `key`"),
        ({"agent_rules": [{"key": "role", "pattern": r"\(planner"}]}, "has no group"),
        ({"agent_rules": [{"key": "role", "pattern": "(?i)planner"}]}, "has no group"),
        ({"agent_rules": [{"source": "span_name", "key": "role"}]}, "takes no `key`"),
        ({"policies": [{"advantages": "rloo"}], "rollout": {"group_size": 1}}, "compares the rollouts of a group"),
        ({"policies": [{"advantages": "ppo"}]}, "neither one of"),
    ],
)
def test_settings_that_contradict_are_refused(tmp_path: Path, changes: dict[str, Any], complaint: str) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump({"agent": {"callable": "a:b"}, "tasks": {"train": "t.jsonl"}} | changes))
    with pytest.raises(SettingsError, match=re.escape(complaint)):
        load_settings(file)
