"""verify, repair, gc and purge on a real S3 server."""

import io

import pyarrow.fs as pafs
import pytest

from pipeline.checking.verify import verify
from pipeline.dataset import open_dataset
from pipeline.dataset.derived import CACHE_VARIABLE
from pipeline.job.epoch import Epoch
from pipeline.labelling.monitoring.console import PlainReporter
from pipeline.storage.open import open_storage
from pipeline.upkeep.gc import collect
from pipeline.upkeep.purge import Request, purge
from pipeline.upkeep.repair import repair
from tests.pipeline import upkept
from tests.pipeline.committed import bytes_below
from tests.pipeline.upkept import EXECUTION, Made

pytestmark = pytest.mark.slow


def test_a_damaged_dataset_in_a_bucket_is_repaired(s3, tmp_path, monkeypatch):
    upkept.set_up(monkeypatch, tmp_path / "site")
    made = Made(tmp_path / "made")
    made.folder.mkdir()
    made.enter(monkeypatch)
    upkept.label(made, layers=1)
    files = bytes_below(made.out, "")
    filesystem, _ = pafs.FileSystem.from_uri("s3://bucket/?allow_bucket_creation=true")
    filesystem.create_dir("bucket")
    uri = "s3://bucket/repair/out"
    storage = open_storage(uri)
    for path, data in files.items():
        if path != "job/config.json":
            storage.put(path, data.replace(str(made.out).encode(), uri.encode()))
    storage.put("job/config.json", files["job/config.json"])
    assert verify(uri).problems == []

    storage.delete("units/0001/00001/00000003.cpu.parquet")
    storage.put("data/0001/part-00000.parquet", b"damaged")
    storage.delete("generations/0001.json")
    assert repair(uri, EXECUTION, PlainReporter(io.StringIO())).left == []
    assert verify(uri).problems == []
    assert storage.read("data/0001/part-00000.parquet") == files["data/0001/part-00000.parquet"]

    Epoch.claim(storage)
    storage.put("staging/00000001/00000007.cpu.0.parquet", b"left")
    storage.put("units/0001/00001/00000003.old.parquet", b"left")
    assert {each.path for each in collect(uri, delete=True).orphans} == {
        "staging/00000001/",
        "units/0001/00001/00000003.old.parquet",
    }
    assert verify(uri).problems == []
    assert list(storage.list("staging")) == []

    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    assert len(purge(uri, Request(frozenset({"r1"}))).found.rows) == 1
    report = verify(uri)
    assert (report.problems, report.unfinished) == ([], ())
    ids = [each for batch in open_dataset(uri).read_batches(["doc_id"]) for each in batch.column(0).to_pylist()]
    assert ids == [f"r{number}" for number in range(15) if number != 1]
    assert {info.path.split("/")[1] for info in storage.list("data")} == {"0002"}
