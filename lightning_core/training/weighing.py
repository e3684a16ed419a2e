"""An algorithm's SQL from what it scored of each trained token to the tokens' advantages: in the training, and in what-if."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from lightning_core.algorithms import Algorithm
from lightning_core.lake import sql
from lightning_core.training.errors import TrainingError

Scores = dict[str, dict[str, np.ndarray]]  # name → sequence id → one number a trained token


def run_weighing(algorithm: Algorithm, scored: Scores, sequences: str, calls: str) -> tuple[Scores, dict[str, float]]:
    """Run the file that `algorithm.weigh()` names; return its lists of the tokens, by column, and its metrics.

    sequences: Parquet file of the sequences that were scored. calls: one of sql/tokens/sequence_calls.sql. Raises
    TrainingError for SQL that does not run, has no column `advantages`, or misses a token.
    """
    source = algorithm.weigh()
    assert source is not None
    ids = sorted({sequence for of_sequences in scored.values() for sequence in of_sequences})
    lists = {name: [of_sequences[i] for i in ids] for name, of_sequences in scored.items()}
    options = algorithm.options.model_dump(mode="json")
    with duckdb.connect() as con:
        con.register("token_scores", pa.table({"sequence_id": ids} | lists))
        con.register("options", pa.table({name: [value] for name, value in (options or {"none": None}).items()}))
        con.read_parquet(sequences).create_view("sequences")
        con.read_parquet(calls).create_view("sequence_calls")
        try:
            answer = con.sql(weighing_sql(source)).to_arrow_table()
        except duckdb.Error as error:
            raise TrainingError(f"{source}: {error}") from None
    weighed, metrics = _checked(source, answer, scored, ids)
    if "advantages" not in weighed:
        raise TrainingError(
            f"{source}: no column `advantages`; it returns one list a sequence, with a number for each trained token"
        )
    return weighed, metrics


def weighing_sql(source: str | Path) -> str:
    """Return the text of what `weigh()` names: a file of sql/ or a path. Raises TrainingError where it is not there."""
    try:
        return Path(source).read_text() if str(source).endswith(".sql") else sql.text(str(source))
    except OSError as error:
        raise TrainingError(f"weigh() returned {str(source)!r}: {error}") from None


def _checked(source: str | Path, answer: pa.Table, scored: Scores, ids: list[str]) -> tuple[Scores, dict[str, float]]:
    found = answer.column("sequence_id").to_pylist() if "sequence_id" in answer.column_names else []
    if Counter(found) != Counter(ids):
        raise TrainingError(
            f"{source}: it returns {len(found)} rows for {len(ids)} sequences; it has to return one for each `sequence_id`"
        )
    weighed: Scores = {}
    metrics: dict[str, float] = {}
    lengths = {sequence: len(values) for sequence, values in next(iter(scored.values())).items()}
    for name in [name for name in answer.column_names if name != "sequence_id"]:
        column = answer.column(name)
        try:
            if not pa.types.is_list(column.type):
                value = column[0].as_py()
                metrics |= {} if value is None else {name: float(value)}
                continue
            rows = [np.asarray([] if values.values is None else values.values, np.float32) for values in column]
        except (TypeError, ValueError):
            raise TrainingError(
                f"{source}: column `{name}` is {column.type}; beside `sequence_id` it has to return lists of numbers, and "
                "numbers as metrics"
            ) from None
        for sequence, numbers in zip(found, rows, strict=True):
            if len(numbers) != lengths[sequence] or not np.isfinite(numbers).all():
                raise TrainingError(
                    f"{source}: `{name}` of sequence {sequence!r} has {len(numbers)} numbers, or one that is not finite; "
                    f"it has to have one for each of its {lengths[sequence]} trained tokens"
                )
        weighed[name] = dict(zip(found, rows, strict=True))
    return weighed, metrics
