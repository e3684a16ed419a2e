"""One name means one thing in the views of the catalog, and what joins by name is the same."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import duckdb
import pytest

from lightning_core.epoch.derive import derive
from lightning_core.epoch.epoch import Epoch
from lightning_core.lake.explain import explain
from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import EpochManifest, LakeError
from tests.lake_maker import Attempt, derived, settings
from tests.view_rig import ask, put

pytestmark = pytest.mark.slow  # many lakes

# What the files and manifests hold under their own names.
AS_STORED = {"spans", "epoch_manifests", "rejections"}


def said(role: str, text: str) -> str:
    return json.dumps([{"role": role, "content": text}])


def two_at_once(rollout: str, attempt: str, reward: float, epoch: int = 0) -> Attempt:
    """A boss with two agents at work at once; a call of one of them, and one that either could have made."""
    made = Attempt(rollout, attempt)
    root = made.root(epoch=epoch)
    boss = made.agent("boss", (0.1, 0.9), root)
    solver = made.agent("solver", (0.2, 0.8), boss)
    made.agent("critic", (0.2, 0.8), boss)
    texts = {"input_messages": said("user", "add"), "output_messages": said("assistant", "three")}
    made.call([1, 2], [3], (0.3, 0.4), solver, input_tokens=2, output_tokens=1, **texts)
    made.call([5], [6], (0.5, 0.6))
    made.reward(reward)
    return made


def nameless(rollout: str, attempt: str, reward: float, epoch: int = 0) -> Attempt:
    made = Attempt(rollout, attempt, group="n")
    made.root(epoch=epoch)
    made.call([7], [8])
    made.reward(reward)
    return made


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """Two epochs with the same numbers of spans, so their calls have the same numbers; the first one was trained on."""
    rows: list[dict[str, Any]] = []
    for number in range(4):
        rows += two_at_once(f"r.{number}", f"a{number}", float(number % 2), epoch=number // 2).rows
        rows += nameless(f"n.{number}", f"n{number}", float(number % 2), epoch=number // 2).rows
    home = tmp_path_factory.mktemp("home")
    how: dict[str, Any] = {"assign": "discounted", "gamma": 0.5}
    lake, first = derived(home, rows, versions={"policy": "v0000"}, **how)
    first.finish("train policy", "key", {"version": "v0001", "metrics": {}}, 1.0)
    second = EpochManifest(run="run", epoch=1, opened_offset=0, sealed_offset=1 << 40)
    derive(Epoch(settings(home, **how), second), "key")
    put(lake, first)
    put(lake, second)
    return lake


def test_a_column_has_one_type_wherever_it_is(lake: Lake) -> None:
    types = defaultdict(set)
    for row in ask(lake, "SELECT table_name, column_name, data_type FROM duckdb_columns() WHERE schema_name = 'main'"):
        if row["table_name"] not in AS_STORED:
            types[row["column_name"]].add(row["data_type"].replace("BIGINT", "INTEGER"))
    assert {name: kinds for name, kinds in types.items() if len(kinds) > 1} == {}
    assert not {"tool", "input_tokens", "output_tokens", "end_ns", "emitted_ns"} & set(types)


def test_every_column_is_in_the_dictionary_and_the_dictionary_has_no_other(lake: Lake) -> None:
    assert ask(lake, "SELECT table_name, column_name FROM columns WHERE coalesce(meaning, '') = ''") == []
    there = ask(lake, "SELECT table_name, column_name FROM columns")
    known = {(row["table_name"], row["column_name"]) for row in there} | {(None, row["column_name"]) for row in there}
    meanings = [(row["of_table"], row["column_name"]) for row in ask(lake, "FROM meanings")]
    assert set(meanings) <= known and len(meanings) == len(set(meanings))


def test_who_has_no_name_is_null_in_every_view(lake: Lake) -> None:
    views = ask(lake, "SELECT table_name FROM duckdb_columns() WHERE column_name = 'agent' AND schema_name = 'main'")
    assert len(views) > 15
    for row in views:
        assert ask(lake, f"SELECT DISTINCT agent FROM {row['table_name']} WHERE agent IN ('', '(no name)')") == [], row


def test_a_call_has_one_id_in_the_lake_and_every_table_joins_by_it(lake: Lake) -> None:
    calls = ask(lake, "SELECT epoch, call_id FROM policy_calls")
    assert len({row["call_id"] for row in calls}) == len(calls) == 12
    stored = ask(lake, "SELECT count(DISTINCT call_id) AS n FROM stored.policy_calls")
    assert stored == [{"n": 6}], "their numbers are those of the epoch"
    for table in ("merges", "exclusions", "call_returns", "reward_steps", "trained_calls", "triplets"):
        lost = f"SELECT call_id FROM {table} ANTI JOIN policy_calls USING (call_id) WHERE call_id IS NOT NULL"
        assert ask(lake, f"SELECT count(call_id) > 0 AS some FROM {table}") == [{"some": True}], table
        assert ask(lake, lost) == [], table
    trained = ask(
        lake,
        """
        SELECT calls.agent, calls.epoch, sequences.epoch AS epoch_of_sequence
        FROM (SELECT epoch, unnest(call_ids) AS call_id FROM sequences) AS sequences
        JOIN policy_calls AS calls USING (call_id)
        """,
    )
    assert len(trained) == 8 and all(row["epoch"] == row["epoch_of_sequence"] for row in trained)
    assert ask(lake, "SELECT DISTINCT epoch FROM trained_calls") == [{"epoch": 0}]


def test_an_ambiguous_call_says_how_many_could_have_made_it_and_who(lake: Lake) -> None:
    found = ask(
        lake,
        "SELECT agent, ambiguous, candidates, candidate_agents FROM policy_calls WHERE epoch = 0 AND attempt_id = 'a0' ORDER BY started",
    )
    names = ("agent", "ambiguous", "candidates", "candidate_agents")
    assert [tuple(row[name] for name in names) for row in found] == [
        ("solver", False, None, None),
        (None, True, 2, ["critic", "solver"]),
    ]


def test_triplets_have_prompt_response_reward_and_whether_they_were_trained_on(lake: Lake) -> None:
    columns = (
        "agent",
        *("prompt_ids", "response_ids", "input_messages", "output_messages"),
        *("policy", "policy_version", "return", "trained", "left_out"),
    )
    found = ask(lake, "FROM triplets WHERE attempt_id = 'a1' ORDER BY prompt_ids")
    first = ("solver", [1, 2], [3], said("user", "add"), said("assistant", "three"), "policy", "v0000")
    assert tuple(found[0][name] for name in columns) == (*first, 1.0, True, None)
    assert found[0]["advantage"] > 0 and found[0]["sequence_id"].startswith("r.1/a1/")
    assert [(row["trained"], row["left_out"]) for row in found] == [(True, None), (False, "ambiguous_agent")]
    assert {row["trained"] for row in ask(lake, "FROM triplets WHERE epoch = 1")} == {False}, "no training yet"


def test_each_choice_of_a_call_is_a_triplet_with_its_own_tokens_and_text(tmp_path: Path) -> None:
    rows = []
    for number in range(2):
        made = Attempt(f"r.{number}", f"a{number}")
        made.root()
        texts = [{"role": "assistant", "content": text} for text in ("one two", "three")]
        made.call([1], [2, 3, 4], choice_lengths=[2, 1], output_messages=json.dumps(texts))
        made.reward(float(number))
        rows += made.rows
    lake, _ = derived(tmp_path, rows)
    found = ask(lake, "FROM triplets WHERE attempt_id = 'a0' ORDER BY choice")
    assert [row["response_ids"] for row in found] == [[2, 3], [4]]
    assert [len(row["response_logprobs"]) for row in found] == [2, 1]
    assert [json.loads(row["output_messages"])[0]["content"] for row in found] == ["one two", "three"]


def test_an_epoch_has_the_share_of_its_successes(lake: Lake) -> None:
    assert [row["share_success"] for row in ask(lake, "FROM epochs ORDER BY epoch")] == [0.5, 0.5]


def test_a_catalog_of_before_says_what_renews_it(tmp_path: Path) -> None:
    lake, _ = derived(tmp_path, two_at_once("r.0", "a", 1.0).rows)
    lake.rebuild_catalog()
    with duckdb.connect(str(lake.root / "catalog.duckdb"), config={"file_search_path": str(lake.root)}) as con:
        con.execute("CREATE OR REPLACE VIEW scored_attempts AS FROM stored.scored_attempts")
    with pytest.raises(LakeError, match=r"another version's .*`lightning-flows ingest` renews it"):
        explain(lake.root, "r.0")
