"""SQL files run in the order that the `Inputs:` of their headers say."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from lightning_core.epoch.derive_inputs import GIVEN
from lightning_core.lake import sql

FILES = [name for folder in ("hierarchy", "triplets", "advantages") for name in sql.names(folder)]


@pytest.fixture
def own_sql(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `sql/` to plant files in."""
    shutil.copytree(sql.ROOT, tmp_path / "sql")
    monkeypatch.setattr(sql, "ROOT", tmp_path / "sql")
    return tmp_path / "sql"


@pytest.mark.parametrize("name", FILES)
def test_a_header_names_every_table_that_its_file_reads(name: str) -> None:
    text = re.sub(r"--.*", "", sql.text(name))
    read = set(re.findall(r"(?:FROM|JOIN)\s+(\w+)\b(?!\()", text)) - set(
        re.findall(r"(\w+)(?: \([^()]*\))? AS (?:NOT |MATERIALIZED )*\(", text)
    )
    known = {file.rsplit("/", 1)[-1] for file in FILES} | GIVEN | {"attribute_aliases"}
    assert read & known == set(sql.inputs(name))


@pytest.mark.parametrize("name", FILES)
def test_the_name_of_a_table_stands_for_that_table_in_every_file(name: str) -> None:
    """No other thing has it there, but a part of that table."""
    text = re.sub(r"--.*", "", sql.text(name))
    made = dict(
        re.findall(r"(\w+)(?:\([^()]*\))?(?: USING KEY \([^()]*\))? AS (?:MATERIALIZED )?\(\n((?:    .*\n)*)\)", text)
    )
    made |= {alias: source for source, alias in re.findall(r"(?:FROM|JOIN) (\w+|\([^()]*\)) AS (\w+)", text)}
    tables = {file.rsplit("/", 1)[-1] for file in FILES} | GIVEN
    for alias in made.keys() & (tables - {name.rsplit("/", 1)[-1]}):
        assert alias in sql.inputs(name) and re.search(rf"FROM {alias}\b", made[alias]), (alias, made[alias])


def test_no_file_has_the_tolerance_of_clocks_as_a_number() -> None:
    for name in sql.names():
        text = re.sub(r"--.*", "", sql.text(name))
        assert name == "macros" or not re.search(r"50_?000_?000|9_?223_?372", text), name


def test_each_file_comes_after_its_inputs() -> None:
    files = sql.steps("exclusions", "sequences", "span_tree", there=GIVEN)
    place = {file.rsplit("/", 1)[-1]: at for at, file in enumerate(files)}
    assert len(place) == len(files) > 60
    for file in files:
        for table in set(sql.inputs(file)) - GIVEN:
            assert place[table] < place[file.rsplit("/", 1)[-1]], (table, file)


def test_what_is_there_is_not_made_again() -> None:
    assert sql.steps("sequences", there={"kept_triplets", "triplets"}) == ("advantages/sequences",)


@pytest.mark.parametrize(
    ("name", "header", "message"),
    [
        ("unknown", "Inputs: nodes, no_such.", r"unknown\.sql: its header names the input 'no_such', which no file of"),
        ("silent", "Grain: one row.", r"silent\.sql: the header has no `Inputs:"),
        ("round", "Inputs: round.", r"a circle: round → round"),
    ],
)
def test_a_header_that_cannot_be_followed_is_an_error_that_names_the_file(
    own_sql: Path, name: str, header: str, message: str
) -> None:
    (own_sql / "hierarchy" / f"{name}.sql").write_text(f"-- A planted file.\n-- {header}\nSELECT 1")
    with pytest.raises(ValueError, match=message):
        sql.steps(name, there=GIVEN)


def test_a_new_file_runs_where_its_header_puts_it(own_sql: Path) -> None:
    (own_sql / "hierarchy" / "planted.sql").write_text("-- New.\n-- Inputs: id_bearers (node), spans.\nSELECT 1")
    assert sql.steps("planted", there={*GIVEN, "nodes"}) == ("hierarchy/id_bearers", "hierarchy/planted")
