"""verify finds damaged, missing, swapped and unlisted files."""

import shutil

import pyarrow.parquet as pq
import pytest

from pipeline.checking.verify import verify
from pipeline.dataset import open_dataset
from pipeline.dataset.manifest import DamagedError
from tests.pipeline.verify.forging import QUARANTINE, SHARD, UNITS, problems


def test_a_sealed_dataset_verifies(sealed):
    report = verify(str(sealed))
    assert report.ok
    facts = report.to_dict()
    assert (facts["documents"], facts["records"], facts["quarantined"], facts["shards"]) == (31, 33, 2, 2)


def test_a_copy_without_the_job_verifies(dataset):
    for name in ("units", "job", "generations", "staging"):
        shutil.rmtree(dataset / name, ignore_errors=True)
    assert problems(dataset) == []


def test_the_bar_reaches_the_end(sealed):
    steps = []
    verify(str(sealed), progress=lambda done, total: steps.append((done, total)))
    assert steps[-1][0] == steps[-1][1] > 0


def test_every_flipped_byte_of_a_shard_is_noticed(dataset):
    path = dataset / SHARD
    content = path.read_bytes()
    for position in range(0, len(content), max(1, len(content) // 150)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        assert f"{SHARD}: its sha256 is not the one in manifest.json" in problems(dataset)


def test_a_flipped_bit_in_a_page_is_named_by_its_checksum(dataset):
    path = dataset / SHARD
    with pq.ParquetFile(path) as parquet:
        column = next(
            parquet.metadata.row_group(0).column(index)
            for index in range(parquet.metadata.num_columns)
            if parquet.metadata.row_group(0).column(index).path_in_schema == "text"
        )
        position = column.data_page_offset + column.total_compressed_size - 5
    content = bytearray(path.read_bytes())
    content[position] ^= 4
    path.write_bytes(content)
    found = problems(dataset)
    assert found[0] == f"{SHARD}: its sha256 is not the one in manifest.json"
    assert found[1].startswith(f"{SHARD}: row group 0, column text: ")
    assert "CRC checksum verification failed" in found[1]
    # Readers notice the damage by page checksums, without any hash.
    with pytest.raises(DamagedError, match=r"part-00000\.parquet is damaged: .*checksum"):
        list(open_dataset(str(dataset)).read_batches())


@pytest.mark.parametrize("keep", [0, 3, -1, -100])
def test_a_truncated_shard_is_named(dataset, keep):
    path = dataset / SHARD
    content = path.read_bytes()
    path.write_bytes(content[:keep])
    found = problems(dataset)
    assert f"{SHARD}: has {len(content[:keep]):,} bytes, not {len(content):,}" in found
    assert any(each.startswith(f"{SHARD}: cannot be read as Parquet") for each in found)
    with pytest.raises(DamagedError, match=r"part-00000\.parquet is damaged: it has"):
        open_dataset(str(dataset))


@pytest.mark.parametrize("path", [SHARD, UNITS, QUARANTINE])
def test_a_missing_file_is_named_and_hides_nothing(dataset, path):
    (dataset / path).unlink()
    (dataset / "README.md").unlink()
    assert problems(dataset) == [
        "README.md: the data card is missing; `datasets.load_dataset` needs it to find the shards",
        f"{path}: is missing",
    ]


@pytest.mark.parametrize("path", ["data/0001/part-00007.parquet", "data/0002/part-00000.parquet", "ledger/stray.txt"])
def test_a_file_that_is_not_listed_is_named(dataset, path):
    (dataset / path).parent.mkdir(exist_ok=True)
    shutil.copy(dataset / SHARD, dataset / path)
    assert problems(dataset) == [f"{path}: manifest.json does not list it"]


def test_swapped_shards_are_named(dataset):
    one, other = dataset / SHARD, dataset / "data/0001/part-00001.parquet"
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    found = "\n".join(problems(dataset))
    assert f"{SHARD}: has " in found
    assert "part-00001.parquet: the record is not in the order of the inputs" in found
