"""Rows of tables in many chunks, against Arrow's own on one chunk."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmfusion.retrieval import products
from mmfusion.retrieval.products import read_rows, row_blocks, take_rows


def table_of(sizes: list[int]) -> pa.Table:
    chunks, first = [], 0
    for size in sizes:
        numbers = list(range(first, first + size))
        nested = [
            {"title": None if number % 3 == 0 else f"t{number}", "tags": [number] * (number % 4)} for number in numbers
        ]
        kind = pa.struct([("title", pa.string()), ("tags", pa.list_(pa.int64()))])
        chunks.append(
            pa.table({"product_id": pa.array(map(str, numbers), pa.string()), "metadata": pa.array(nested, kind)})
        )
        first += size
    return pa.concat_tables(chunks)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.data(), st.integers(1, 20))
def test_rows_are_those_that_arrow_takes(sizes: list[int], data: st.DataObject, block: int) -> None:
    table, count = table_of(sizes), sum(sizes)
    drawn = data.draw(st.lists(st.integers(0, count - 1), max_size=30) if count else st.just([]))
    rows = np.array(drawn, dtype=np.int64)
    expected = table.combine_chunks().take(pa.array(rows))
    assert read_rows(table, rows) == expected.to_pylist()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(products, "BLOCK", block)
        taken = take_rows(table, rows)
        blocks = list(row_blocks(table))
    assert taken.equals(expected) and taken.schema == table.schema
    assert [row for one in blocks for row in one.to_pylist()] == table.to_pylist()
    assert all(len(one) == block for one in blocks[:-1])


@pytest.mark.slow
def test_more_than_2_gib_of_text_is_no_limit() -> None:
    """Arrow's own take fails here, which is why take_rows exists."""
    text = pa.array(["x" * 30_000] * 20_000)
    table = pa.table({"text": pa.chunked_array([text] * 4)})
    rows = np.array([79_999, 0, 40_000, 79_999])
    with pytest.raises(pa.ArrowInvalid, match="offset overflow"):
        table.take(pa.array(rows))
    assert [len(row["text"]) for row in read_rows(table, rows)] == [30_000] * 4
    assert len(take_rows(table, rows)) == 4
    assert sum(len(one) for one in row_blocks(table.slice(0, 65_536))) == 65_536
