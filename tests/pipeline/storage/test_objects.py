"""The contract of storage, on an object store."""

import itertools
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from pipeline.storage.base import Storage
from pipeline.storage.open import open_storage
from scorers.errors import UserError
from tests.pipeline import probe
from tests.pipeline.label_job import Labelling, wait_for
from tests.pipeline.storage_contract import StorageContract

NAMES = itertools.count()


@pytest.fixture(scope="module")
def environment(s3: dict[str, str]) -> dict[str, str]:
    """The environment in which clients find the server, with a bucket `bucket`."""
    filesystem, _ = pafs.FileSystem.from_uri("s3://bucket/?allow_bucket_creation=true")
    filesystem.create_dir("bucket")
    return s3


@pytest.fixture
def storage(environment: dict[str, str]) -> Storage:
    return open_storage(f"s3://bucket/some/prefix-{next(NAMES)}")


class TestS3(StorageContract):
    """The whole contract."""


def test_only_one_of_many_clients_creates_an_object(storage: Storage) -> None:
    with ThreadPoolExecutor(16) as threads:
        clients = [open_storage(storage.uri) for _ in range(16)]
        outcomes = list(threads.map(lambda each: each[1].put_if_absent("x", str(each[0]).encode()), enumerate(clients)))
    assert sum(outcomes) == 1
    assert storage.read("x") == str(outcomes.index(True)).encode()


def test_failures_of_the_store_are_brief_os_errors(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    storage.put("x", b"1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    other = open_storage(storage.uri)
    for act in (
        lambda: other.read("x"),
        lambda: other.put("y", b"1"),
        lambda: other.put_if_absent("y", b"1"),
        lambda: list(other.list()),
        lambda: other.move("x", "y"),
    ):
        with pytest.raises(OSError, match="s3://bucket/some") as caught:
            act()
        assert len(str(caught.value)) < 500
        assert "<?xml" not in str(caught.value)
    with pytest.raises(UserError, match="credentials"):
        other.check()


def test_a_missing_bucket_or_server_is_refused(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="s3://nobucket/x"):
        open_storage("s3://nobucket/x").check()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(UserError, match="endpoint"):
        open_storage("s3://bucket/x").check()


@pytest.mark.slow
def test_labelling_into_a_bucket_survives_a_killed_driver(environment: dict[str, str], tmp_path: Path) -> None:
    texts = [f"Sentence one of {number}. And a second one, {number * number}. " * 20 for number in range(60)]
    local = Labelling(tmp_path / "local", env=environment)
    remote = Labelling(tmp_path / "remote", env=environment)
    for made in (local, remote):
        made.write(texts)
    uri = f"s3://bucket/labelled-{next(NAMES)}"
    storage = open_storage(uri)

    remote.hold(25)
    process = remote.start("--unit-size", "10500", output=uri)
    wait_for(lambda: len(list(storage.list("units"))) >= 2 or process.poll() is not None)
    process.kill()
    process.communicate()
    committed = {info.path for info in storage.list("units")}
    assert committed
    remote.release()

    result = remote.run("--unit-size", "10500", "--json", output=uri)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["records"] == 60
    assert committed <= {info.path for info in storage.list("units")}
    assert list(storage.list("staging")) == []
    assert set(remote.scored()) == set(map(probe.key, texts))

    local.run_undisturbed("--unit-size", "10500")
    expected = {path.relative_to(local.output).as_posix(): path for path in (local.output / "data").rglob("*.parquet")}
    assert [info.path for info in storage.list("data")] == sorted(expected)
    for name, path in expected.items():
        assert storage.read(name) == path.read_bytes()

    verified = subprocess.run(
        [sys.executable, "-m", "phf", "verify", uri], env=remote.env, capture_output=True, text=True, check=False
    )
    assert verified.returncode == 0, verified.stdout + verified.stderr
