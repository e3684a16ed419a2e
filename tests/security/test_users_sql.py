"""SQL that a user, or an agent in a user's name, wrote: it reads the lake, and nothing that it can say writes or reads elsewhere."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest
from click.testing import CliRunner, Result

from lightning_core.agents.grading import grade
from lightning_core.checks.check import check
from lightning_core.config import SettingsError
from lightning_core.epoch.derive import attempts
from lightning_core.epoch.derive_inputs import check_estimators
from lightning_core.epoch.epoch import Epoch
from lightning_core.epoch.patterns import check_patterns, settle
from lightning_core.lake import ask, catalog, sql, user_sql
from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import EpochManifest
from lightning_flows.flows.cli import main
from tests import analysis_lake
from tests.lake_maker import settings

SECRET = "the-gateways-secret"
Ask = Callable[..., Result]


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    made = analysis_lake.make(tmp_path_factory.mktemp("home"))
    made.rebuild_catalog()
    (made.root.parent / "services").mkdir(exist_ok=True)
    (made.root.parent / "services/secret").write_text(SECRET)
    return made


@pytest.fixture
def asked(lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Asks by the command, from another folder than the lake's."""
    monkeypatch.chdir(tmp_path)

    def ask(question: str, *options: str) -> Result:
        return CliRunner().invoke(main, ["sql", question, "--home", str(lake.root.parent), "--format", "csv", *options])

    return ask


def contents(folder: Path) -> dict[str, str]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


WRITES = [
    "COPY (SELECT 1) TO '{manifest}'",
    "WITH w AS (COPY rejections TO '{manifest}') FROM w",
    "SELECT * FROM (WITH w AS (INSERT INTO rejections SELECT * FROM rejections RETURNING *) FROM w)",
    "SUMMARIZE (WITH w AS (COPY rejections TO '{manifest}') FROM w)",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '{manifest}'",
    "EXPLAIN (ANALYZE, FORMAT json) WITH w AS (COPY rejections TO '{manifest}') FROM w",
    "/* a */ EXPLAIN /* b */ ANALYZE COPY (SELECT 1) TO '{manifest}'",
    "FROM json_execute_serialized_sql(json_serialize_sql('WITH w AS (COPY rejections TO ''{manifest}'') FROM w'))",
    "FROM system.main.\"JSON_execute_serialized_SQL\"('{{}}')",
    "FROM query('SELECT 1')",
    "SELECT 1; COPY (SELECT 1) TO '{manifest}'",
    "EXPORT DATABASE '{folder}'",
    "ATTACH '{folder}/x.duckdb' AS x",
    "CREATE TEMP TABLE t AS SELECT 1",
    "SET memory_limit = '100GB'",
    "FROM enable_logging('QueryLog', storage := 'file', storage_path := '{folder}')",
    "FROM enable_profiling(save_location := '{folder}/profile')",
    "CALL pragma_version()",
    "PRAGMA version",
    "",
    "/* nothing */",
]


@pytest.mark.parametrize("text", WRITES)
def test_nothing_but_one_query_is_run(asked: Ask, lake: Lake, text: str) -> None:
    before = contents(lake.root.parent)
    manifest = lake.root / "manifests/spans.json"
    done = asked(text.format(manifest=manifest, folder=lake.root / "made"))
    assert done.exit_code == 1 and len(done.stderr.splitlines()) == 1, done.output
    assert contents(lake.root.parent) == before and not (lake.root / "made").exists()


READS = [
    "SELECT content FROM read_text('{home}/services/secret')",
    "SELECT content FROM read_text('{home}/lake/../services/secret')",
    "SELECT content FROM read_blob('{home}/*/secret')",
    "FROM glob('{home}/services/*')",
    "FROM read_csv('{home}/services/secret', header = false)",
    "FROM sniff_csv('{home}/services/secret')",
    "FROM read_text('/etc/passwd')",
    "FROM read_text('elsewhere.csv')",
]


@pytest.mark.parametrize("text", READS)
def test_no_file_outside_the_lake_is_read(asked: Ask, lake: Lake, tmp_path: Path, text: str) -> None:
    (tmp_path / "elsewhere.csv").write_text(SECRET)
    done = asked(text.format(home=lake.root.parent))
    assert done.exit_code == 1 and SECRET not in done.output, done.output
    assert "--read-from FOLDER" in done.stderr and len(done.stderr.splitlines()) == 1


def test_an_option_names_a_folder_that_may_be_read_too(asked: Ask, lake: Lake, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own/labels.csv").write_text("task_id,label\nheld,easy\n")
    query = "SELECT DISTINCT label FROM rollouts JOIN read_csv('own/labels.csv') USING (task_id)"
    assert asked(query, "--read-from", "own").output.splitlines() == ["label", "easy"]
    secret = asked(f"FROM read_text('{lake.root.parent}/services/secret')", "--read-from", "own")
    assert secret.exit_code == 1 and SECRET not in secret.output
    copied = asked(f"COPY (SELECT 1) TO '{tmp_path}/own/labels.csv'", "--read-from", "own")
    assert copied.exit_code == 1 and "easy" in (tmp_path / "own/labels.csv").read_text()


ADMITTED = [
    "SELECT count(*) FROM spans",
    "FROM epochs",
    "WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n WHERE i < 3) FROM n",
    "SELECT 1 AS n UNION SELECT 2 INTERSECT SELECT 2",
    "VALUES (1), (2);",
    "SUMMARIZE rollouts",
    "DESCRIBE rollouts",
    "DESCRIBE SELECT 1 AS n",
    "SHOW TABLES",
    "EXPLAIN FROM rollouts",
    "/* why is it slow? */ -- please\nEXPLAIN ANALYZE SELECT count(*) FROM calls",
    "EXPLAIN (FORMAT json) SELECT 1",
    "EXPLAIN (SELECT 1)",
    "PIVOT rollouts ON mode IN ('train', 'evaluate') USING count(*) GROUP BY run",
    "FROM read_parquet('spans/*.parquet') LIMIT 1",
    'SELECT \'"type":"COPY_QUERY_NODE"\' AS text, \'"function_name":"query"\' AS more',
    "SELECT query FROM (SELECT 1 AS query)",
    "epoch_report(p_run := 'run')",
    "spans",
]


@pytest.mark.parametrize("text", ADMITTED)
def test_whatever_is_a_query_is_answered(asked: Ask, text: str) -> None:
    done = asked(text)
    assert done.exit_code == 0 and len(done.output.splitlines()) > 1, done.output


@pytest.mark.parametrize("name", [name.removeprefix("analysis/") for name in sql.names("analysis")])
def test_every_question_is_answered(asked: Ask, name: str) -> None:
    assert asked(name).exit_code == 0


def test_a_query_without_end_is_ended(asked: Ask) -> None:
    done = asked("SELECT count(*) FROM spans a, spans b, range(1000000000) c", "--timeout", "1")
    assert done.exit_code == 1 and "took longer than 1 s and was ended" in done.stderr


def test_a_query_gets_no_more_memory_than_is_its_share(asked: Ask) -> None:
    done = asked("SELECT len(list(i)) FROM range(2000000000) AS t(i)")
    assert done.exit_code == 1 and "Out of Memory" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.fixture
def epoch(lake: Lake) -> EpochManifest:
    found = lake.manifests.epoch("run", 1)
    assert found is not None
    return found


def own(folder: Path, text: str) -> str:
    file = folder / "own.sql"
    file.write_text(text)
    return str(file)


GRADES = "SELECT rollout_id, attempt_id, {} AS reward FROM scored_attempts"
HOSTILE_GRADERS = [
    GRADES.format("(SELECT length(content) FROM read_text('{secret}'))"),
    GRADES.format("1.0") + "; COPY (SELECT 1) TO '{manifest}'",
    "WITH w AS (COPY (SELECT 1) TO '{manifest}') SELECT rollout_id, attempt_id, 1.0 AS reward FROM scored_attempts, w",
    "WITH w AS (DELETE FROM ungraded RETURNING *) SELECT rollout_id, attempt_id, 1.0 AS reward FROM w",
]


@pytest.mark.parametrize("text", HOSTILE_GRADERS)
def test_a_grader_in_sql_only_reads(lake: Lake, epoch: EpochManifest, tmp_path: Path, text: str) -> None:
    before, places = contents(lake.root.parent), {"secret": lake.root.parent / "services/secret"}
    file = own(tmp_path, text.format(manifest=lake.root / "manifests/spans.json", **places))
    posted: list[Any] = []
    with attempts(Epoch(settings(lake.root.parent), epoch)) as con, pytest.raises(SettingsError, match=r"own\.sql: "):
        grade(file, con, posted.append)
    assert posted == [] and contents(lake.root.parent) == before


def test_a_grader_in_sql_grades(lake: Lake, epoch: EpochManifest, tmp_path: Path) -> None:
    posted: list[Any] = []
    with attempts(Epoch(settings(lake.root.parent), epoch)) as con:
        grades = grade(own(tmp_path, GRADES.format("0.5")), con, posted.extend)
    assert grades.graded == len(posted) > 0 and grades.invalid == 0


def test_what_a_grader_in_sql_may_not_is_said_before_a_run(tmp_path: Path) -> None:
    given = settings(tmp_path, grader=own(tmp_path, "COPY (SELECT 1) TO 'x'"))
    (found,) = check(given, parts=("grader",))
    assert found.level == "error" and "COPY" in found.found


HOSTILE_ESTIMATORS = [
    "SELECT *, (SELECT length(content) FROM read_text('{secret}')) AS advantage FROM returns",
    "SELECT *, 1.0 AS advantage FROM returns; COPY (SELECT 1) TO '{secret}'",
    "WITH w AS (DELETE FROM returns RETURNING *) SELECT *, 1.0 AS advantage FROM w",
    "WITH w AS (COPY (SELECT 1) TO '{secret}') SELECT returns.*, 1.0 AS advantage FROM returns, w",
]


@pytest.mark.parametrize("text", HOSTILE_ESTIMATORS)
def test_an_estimator_of_the_users_only_reads(tmp_path: Path, text: str) -> None:
    (tmp_path / "secret").write_text(SECRET)
    given = settings(tmp_path, advantages=own(tmp_path, text.format(secret=tmp_path / "secret")))
    with pytest.raises(SettingsError, match=r"own\.sql: "):
        check_estimators(given.policies)
    assert (tmp_path / "secret").read_text() == SECRET


HOSTILE_PATTERNS = [
    "SELECT content FROM read_text('{secret}')",
    "SELECT 'x'; COPY (SELECT 1) TO '{manifest}'",
    "WITH w AS (COPY rejections TO '{manifest}') SELECT 'x' FROM w",
]


@pytest.mark.parametrize("text", HOSTILE_PATTERNS)
def test_a_pattern_in_sql_only_reads(lake: Lake, text: str) -> None:
    manifest, secret = lake.root / "manifests/spans.json", lake.root.parent / "services/secret"
    query = text.format(manifest=manifest, secret=secret)
    before = contents(lake.root / "manifests")
    epoch = EpochManifest(run="run", epoch=7, opened_offset=0, versions={"policy": "v0000"})
    with pytest.raises(SettingsError, match=r"policies\.policy\.agent_match: ") as error:
        settle(Epoch(settings(lake.root.parent, agent_match=f"sql:{query}"), epoch))
    assert SECRET not in str(error.value) and contents(lake.root / "manifests") == before


def test_a_pattern_in_sql_that_writes_is_refused_before_a_run(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"policies\.0\.agent_match: it is COPY"):
        check_patterns(settings(tmp_path, agent_match="sql:COPY (SELECT 1) TO 'x'"))


def test_what_no_select_can_do_is_left_to_the_connection_that_is_confined(lake: Lake) -> None:
    """Were a way found past `checked`, it could not undo this."""
    with lake.engine() as con:
        with user_sql.asked(con, "SELECT 1 AS n") as answer:
            assert list(answer.rows()) == [(1,)]
        for text in ("SET enable_external_access = true", "SET allowed_directories = ['/']", "RESET memory_limit"):
            with pytest.raises(duckdb.Error):
                con.execute(text)


def test_a_users_query_confines_no_other_connection(lake: Lake, tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("n\n1\n")
    with catalog.connect(lake.root) as con:
        assert ask.answer(lake.root, "SELECT 1 AS n", "csv") == "n\n1"
        with catalog.connect(lake.root) as other:
            for each in (con, other):
                assert each.execute(f"FROM read_csv('{tmp_path}/mine.csv')").fetchall() == [(1,)]
