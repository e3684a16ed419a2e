"""Sequences that would train on wrong numbers are refused by name; those that are too long are counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_core.training.dataset import Sequences, read_sequences
from lightning_core.training.errors import TrainingDataError
from tests.training_data import make_sequence, random_group, write_parquet

TWO_TURNS = make_sequence("r1", "g", [([1, 2, 3], [10]), ([4], [12])])
ONE_TURN = make_sequence("r2", "g", [([1, 2, 3], [10])])


def read(path: Path, max_tokens: int = 100) -> Sequences:
    return read_sequences(path, policy="policy", vocabulary=300, max_tokens=max_tokens)


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    written = random_group("g", 5, np.random.default_rng(1))
    rows = read(write_parquet(written, tmp_path / "s.parquet")).rows
    for before, after in zip(written, rows, strict=True):
        assert (after.sequence_id, after.rollout, after.group_id) == (
            before.sequence_id,
            before.rollout,
            before.group_id,
        )
        assert after.prompt_length == before.prompt_length
        for name in ("token_ids", "loss_mask", "logprobs", "advantages"):
            np.testing.assert_array_equal(getattr(after, name), getattr(before, name))


def test_several_row_groups_are_read_as_one_table(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    path = write_parquet([TWO_TURNS, ONE_TURN], tmp_path / "s.parquet")
    pq.write_table(pq.read_table(path), path, row_group_size=1)
    assert [len(row) for row in read(path).rows] == [6, 4]


def test_too_long_sequences_are_left_out_and_counted(tmp_path: Path) -> None:
    found = read(write_parquet([TWO_TURNS, ONE_TURN], tmp_path / "s.parquet"), max_tokens=5)
    assert [row.sequence_id for row in found.rows] == ["r2"]
    assert found.left_out == {"too_long": 1}


def test_sequences_without_a_trained_token_are_left_out_and_counted(tmp_path: Path) -> None:
    path = write_parquet([TWO_TURNS, ONE_TURN], tmp_path / "s.parquet", loss_mask=[[0] * 6, [0, 0, 0, 1]])
    assert read(path).left_out == {"nothing_trained": 1}


def test_nothing_left_to_train_is_an_error_that_says_what_was_left_out(tmp_path: Path) -> None:
    with pytest.raises(TrainingDataError, match=r"nothing to train.*too_long': 2.*more than 3 tokens"):
        read(write_parquet([TWO_TURNS, ONE_TURN], tmp_path / "s.parquet"), max_tokens=3)


def test_an_empty_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TrainingDataError, match="no sequences"):
        read(write_parquet([], tmp_path / "s.parquet"))


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("token_ids", [[1, 2, 3, 10, 11, -4], [1, 2, 3, 10]], r"'r1' of rollout 'r1': token id -4 is outside"),
        ("token_ids", [[1, 2, 3, 10, 11, 4], [1, 2, 3, 300]], r"'r2' of rollout 'r2': token id 300 .*\(0..299\)"),
        ("token_ids", [[1, 2, 3, 10, 11, None], [1, 2, 3, 10]], r"`token_ids` holds a null in row 0"),
        ("token_ids", [[1, 2, 3, 10, 11, 4], None], r"`token_ids` is null in row 1"),
        ("advantages", [[0] * 6, [0, 0, 0, float("nan")]], r"'r2'.*`advantages` is nan at token 3"),
        ("logprobs", [[0, 0, 0, -1, 0, float("-inf")], [0] * 4], r"'r1'.*`logprobs` is -inf at token 5"),
        ("logprobs", [[0, 0, 0, -1, 0, 0.5], [0] * 4], r"'r1'.*`logprobs` holds 0.5"),
        ("logprobs", [[0] * 5, [0] * 4], r"'r1'.*`logprobs` has 5 entries, `token_ids` has 6"),
        ("loss_mask", [[0] * 6, [0, 0, 0, 1, 1]], r"'r2'.*`loss_mask` has 5 entries"),
        ("loss_mask", [[0, 1, 0, 1, 1, 1], [0, 0, 0, 1]], r"'r1'.*token 1 is marked as trained but lies in the prompt"),
        ("prompt_length", [0, 3], r"'r1'.*`prompt_length` is 0"),
        ("prompt_length", [3, 5], r"'r2'.*`prompt_length` is 5, expected 1..4"),
        ("sequence_id", ["r1", "r1"], r"'r1' of rollout 'r2': the id occurs twice"),
        ("group_id", ["g", None], r"'r2'.*`group_id` is null"),
        ("policy", ["policy", "other"], r"'r2'.*belongs to policy 'other'"),
    ],
)
def test_wrong_values_name_the_sequence_and_what_is_wrong(
    tmp_path: Path, column: str, values: Any, message: str
) -> None:
    path = write_parquet([TWO_TURNS, ONE_TURN], tmp_path / "s.parquet", **{column: values})
    with pytest.raises(TrainingDataError, match=message):
        read(path)


def test_a_missing_file_and_a_file_of_another_kind_are_named(tmp_path: Path) -> None:
    with pytest.raises(TrainingDataError, match="no such file"):
        read(tmp_path / "none.parquet")
    (tmp_path / "half.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(TrainingDataError, match="not a readable Parquet file"):
        read(tmp_path / "half.parquet")


def test_missing_columns_are_named(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    path = write_parquet([ONE_TURN], tmp_path / "s.parquet")
    pq.write_table(pq.read_table(path).drop_columns(["advantages", "group_id"]), path)
    with pytest.raises(TrainingDataError, match="columns missing: group_id, advantages"):
        read(path)
