from itertools import pairwise

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipeline.dataset.packing import pack, row_sizes
from pipeline.dataset.schema import unit_schema


def table(texts):
    rows = [
        {"doc_id": "d", "source": "s", "position": i, "text": text, "meta": "{}", "ends": [1] * len(text), "c": None}
        for i, text in enumerate(texts)
    ]
    return pa.Table.from_pylist(rows, schema=unit_schema(["c"]))


@given(
    st.lists(st.text(max_size=20), max_size=30),
    st.lists(st.integers(0, 30), max_size=5),
    st.integers(1, 800),
    st.integers(1, 400),
)
def test_cuts_depend_on_the_rows_and_not_on_their_chunking(texts, cuts, shard_bytes, group_bytes):
    rows = table(texts)
    bounds = [0, *sorted(min(cut, len(texts)) for cut in cuts), len(texts)]
    pieces = [rows.slice(start, stop - start) for start, stop in pairwise(bounds)]
    whole = [(group.shard, group.rows.to_pylist()) for group in pack([rows], shard_bytes, group_bytes)]
    assert [(group.shard, group.rows.to_pylist()) for group in pack(pieces, shard_bytes, group_bytes)] == whole
    assert [row for _, group in whole for row in group] == rows.to_pylist()
    assert [shard for shard, _ in whole] == sorted(shard for shard, _ in whole)


@given(st.lists(st.text(max_size=20), min_size=1, max_size=30), st.integers(1, 800), st.integers(1, 400))
def test_a_group_and_a_shard_end_with_the_row_that_fills_them(texts, shard_bytes, group_bytes):
    shards: dict[int, list[int]] = {}
    groups = list(pack([table(texts)], shard_bytes, group_bytes))
    for group in groups:
        sizes = row_sizes(group.rows)
        assert sum(sizes[:-1]) < group_bytes
        shards.setdefault(group.shard, []).extend(sizes)
    for index, sizes in shards.items():
        assert sum(sizes[:-1]) < shard_bytes
        assert sum(sizes) >= shard_bytes or index == max(shards)
    assert list(shards) == list(range(len(shards)))


def test_the_size_of_a_row_is_that_of_its_values():
    one, two = row_sizes(table(["", "ä€"]))
    assert two - one == 5 + 2 * 4
