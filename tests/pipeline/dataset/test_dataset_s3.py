"""Seal, verify, retag and read a dataset on a real object store."""

import pyarrow.fs as pafs
import pytest

from pipeline.checking.verify import verify
from pipeline.dataset import open_dataset
from pipeline.sealing.retag import retag
from pipeline.storage.open import open_storage
from scorers.errors import UserError
from tests.pipeline.committed import commit_units

UNITS = [[{"text": f"Satz {n} — ja. Nein!", "toxicity": [n / 10, 0.0] if n else None} for n in range(10)]] * 2


@pytest.fixture(scope="module")
def bucket(s3):
    filesystem, _ = pafs.FileSystem.from_uri("s3://labelled/?allow_bucket_creation=true")
    filesystem.create_dir("labelled")


@pytest.fixture
def uri(bucket, tmp_path):
    uri = f"s3://labelled/{tmp_path.name}"
    made = commit_units(uri, UNITS, shard_size=500)
    made.write_job()
    made.seal()
    return uri


def test_it_verifies_and_can_be_read(uri):
    assert verify(uri).problems == []
    rows = [row for batch in open_dataset(uri).read_batches() for row in batch.to_pylist()]
    assert [row["text"] for row in rows] == [row["text"] for unit in UNITS for row in unit]


def test_it_is_retagged(uri):
    assert retag(uri, {"toxicity": 0.1}).after.generation == 2
    assert verify(uri).problems == []
    assert {info.path.split("/")[1] for info in open_storage(uri).list("data")} == {"0002"}


def test_damage_is_reported(uri):
    storage = open_storage(uri)
    storage.delete("data/0001/part-00000.parquet")
    assert [str(problem) for problem in verify(uri).problems] == ["data/0001/part-00000.parquet: is missing"]
    with pytest.raises(UserError, match=r"part-00000\.parquet is damaged: the file is missing"):
        open_dataset(uri)


@pytest.mark.parametrize("place", ["s3://labelled/nothing", "s3://no-such-bucket/out"])
def test_the_error_for_a_missing_dataset_is_readable(bucket, place):
    for work in (verify, open_dataset, lambda uri: retag(uri, {"toxicity": 0})):
        with pytest.raises(UserError, match=f"{place}"):
            work(place)
