"""verify finds rows that are inconsistent, or contradict thresholds or records."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.datasets import write_parquet
from tests.pipeline.verify.forging import SHARD, change_text, edit, problems, reforge


def shorten_text(rows):
    rows[3]["text"] = rows[3]["text"][:-1]


def drop_an_end(rows):
    rows[3]["ends"] = rows[3]["ends"][:-1]


def repeat_an_end(rows):
    rows[3]["ends"] = [rows[3]["ends"][0], *rows[3]["ends"][1:][:1], rows[3]["ends"][1]]


def start_at_zero(rows):
    rows[3]["ends"] = [0, *rows[3]["ends"][1:]]


def null_end(rows):
    rows[3]["ends"] = [None, *rows[3]["ends"][1:]]


def no_ends(rows):
    rows[3]["ends"] = []


@pytest.mark.parametrize(
    "change", [change_text, shorten_text, drop_an_end, repeat_an_end, start_at_zero, null_end, no_ends]
)
def test_ends_that_lose_or_repeat_text_are_named(dataset, change):
    reforge(dataset, change=change)
    what = "`ends` do not partition `text` into sentences (1 row, the first is corpus.jsonl#3)"
    assert f"{SHARD}: {what}" in problems(dataset)


def test_a_changed_text_of_equal_size_is_found_only_by_inputs_or_hash(dataset):
    def change(rows):
        rows[3]["text"] = rows[3]["text"].replace("Satz", "Sutz")

    reforge(dataset, change=change)
    assert problems(dataset) == []


def test_a_text_of_another_size_is_found_by_the_totals_of_its_unit(dataset):
    def change(rows):
        rows[3]["text"] = rows[3]["text"].replace("Satz", "Sätz")

    reforge(dataset, change=change)
    (found,) = problems(dataset)
    assert found.startswith("ledger: the rows of 1 unit have a different number of bytes_text than it says")
    assert "unit 00000000" in found


def swap_tags(rows):
    rows[4]["toxicity_aligned"] = [not tag for tag in rows[4]["toxicity_aligned"]]


def drop_tags(rows):
    rows[4]["toxicity_aligned"] = None


def shorten_tags(rows):
    rows[4]["toxicity_aligned"] = rows[4]["toxicity_aligned"][:-1]


def raise_score(rows):
    rows[4]["toxicity"] = [9.0] * 3


@pytest.mark.parametrize("change", [swap_tags, drop_tags, shorten_tags, raise_score])
def test_tags_that_contradict_scores_and_threshold_are_named(dataset, change):
    reforge(dataset, change=change)
    assert any(
        each.startswith(f"{SHARD}: `toxicity_aligned` is not `toxicity` <= 0.25 (1 row, the first is corpus.jsonl#4)")
        for each in problems(dataset)
    )


def test_a_changed_threshold_is_reported_once_per_shard(dataset):
    edit(dataset, sealed_too=True, thresholds__toxicity__value=0.0)
    found = [each for each in problems(dataset) if "`toxicity_aligned` is not `toxicity` <= 0 (" in each]
    assert len(found) == 2  # one per shard


@pytest.mark.parametrize("score", [-0.5, float("nan"), float("inf"), None])
def test_invalid_scores_are_named(dataset, score):
    def change(rows):
        rows[5]["toxicity"] = [score, *rows[5]["toxicity"][1:]]

    reforge(dataset, change=change)
    what = "`toxicity` holds scores that are negative, NaN, infinite or null (1 row, the first is corpus.jsonl#5)"
    assert f"{SHARD}: {what}" in problems(dataset)


def test_a_missing_score_is_named(dataset):
    def change(rows):
        rows[5]["toxicity"] = rows[5]["toxicity"][1:]
        rows[5]["toxicity_aligned"] = rows[5]["toxicity_aligned"][1:]

    reforge(dataset, change=change)
    assert f"{SHARD}: `toxicity` does not have one score per sentence (1 row, the first is corpus.jsonl#5)" in problems(
        dataset
    )


def test_a_repeated_row_is_named(dataset):
    reforge(dataset, change=lambda rows: rows.insert(2, dict(rows[1])))
    found = problems(dataset)
    assert f"{SHARD}: the record occurs twice (1 row, the first is corpus.jsonl#1)" in found
    assert any(each.startswith(f"{SHARD}: has ") and " rows, not " in each for each in found)


def test_a_row_that_is_repeated_later_or_moved_is_named(dataset):
    reforge(dataset, change=lambda rows: rows.append(dict(rows[1])))
    what = "the record is not in the order of the inputs, or occurs twice (1 row, the first is corpus.jsonl#1)"
    assert f"{SHARD}: {what}" in problems(dataset)


def test_a_lost_row_is_named(dataset):
    reforge(dataset, change=lambda rows: rows.pop(6))
    found = problems(dataset)
    assert any(each.startswith(f"{SHARD}: has ") and " rows, not " in each for each in found)
    assert "ledger: the units have 31 rows, but the shards hold 30" in found


def test_a_row_of_another_source_is_named(dataset):
    reforge(dataset, change=lambda rows: rows[2].update(source="elsewhere.jsonl"))
    what = "its source is not among the inputs (1 row, the first is elsewhere.jsonl#2)"
    assert f"{SHARD}: {what}" in problems(dataset)


def test_a_record_that_is_labelled_and_quarantined_is_named(dataset):
    reforge(dataset, change=lambda rows: rows[8].update(position=9))
    what = "the record is also in quarantine (1 row, the first is corpus.jsonl#9)"
    assert f"{SHARD}: {what}" in problems(dataset)


def test_other_columns_are_named(dataset):
    schema = pq.read_schema(dataset / SHARD)
    schema = schema.set(2, pa.field("position", pa.int32(), nullable=False))
    reforge(dataset, change=lambda rows: None, schema=schema)
    assert problems(dataset) == [f"{SHARD}: its columns are not those of the manifest"]


def test_a_text_that_is_not_utf8_is_named(dataset):
    table = pq.read_table(dataset / SHARD)
    text = pa.array([b"\xff\xfe"] * table.num_rows, pa.large_binary()).view(pa.large_string())
    table = table.set_column(3, table.schema.field("text"), text)
    write_parquet(dataset, SHARD, table, table.schema)
    found = "\n".join(problems(dataset))
    assert f"{SHARD}: row group 0: " in found
    assert "UTF8" in found
