"""What is known of a call's token ids and logprobs without reading them: how many, and between which bounds.

Most of what spans take on disk is these lists; five numbers are enough to know whether a call can be trained on.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

FACTS = (
    "prompt_id_count",
    "response_id_count",
    "logprob_count",
    "lowest_token_id",
    "highest_token_id",
    "lowest_logprob",
    "highest_logprob",
)


def number_facts(spans: pa.Table) -> dict[str, pa.Array | pa.ChunkedArray]:
    """Return the columns FACTS of spans with `prompt_ids`, `response_ids` and `response_logprobs`, one row a span."""
    prompt, response, logprobs = (_whole(spans[n]) for n in ("prompt_ids", "response_ids", "response_logprobs"))
    counts = [pc.list_value_length(lists) for lists in (prompt, response, logprobs)]
    least, most = ([_of_each(lists, of) for lists in (prompt, response, logprobs)] for of in (np.minimum, np.maximum))
    bounds = [
        pc.min_element_wise(least[0], least[1]),
        pc.max_element_wise(most[0], most[1]),
        least[2],
        most[2],
    ]
    return dict(zip(FACTS, [*counts, *bounds], strict=True))


def measured(spans: pa.Table) -> pa.Table:
    """Return rows of schema.SPANS with their FACTS computed, whatever was there before."""
    for name, column in number_facts(spans).items():
        spans = spans.set_column(spans.schema.get_field_index(name), spans.schema.field(name), column)
    return spans


def _of_each(lists: pa.ListArray, of: np.ufunc) -> pa.Array:
    """Return `np.minimum` or `np.maximum` of each list; NULL for one that is NULL or empty, NaN where one is in it."""
    length = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
    filled: npt.NDArray[np.bool_] = length > 0
    numbers = lists.flatten().to_numpy()
    found = np.zeros(len(lists), numbers.dtype)
    if len(numbers):
        found[filled] = of.reduceat(numbers, (np.cumsum(length) - length)[filled])
    return pa.array(found, lists.type.value_type, mask=~filled)


def _whole(column: pa.ChunkedArray) -> pa.ListArray:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
