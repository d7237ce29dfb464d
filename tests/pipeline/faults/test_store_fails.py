"""Label into a real S3 server through a proxy that refuses requests, cuts connections and loses answers."""

import itertools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from pipeline.job.epoch import Epoch
from pipeline.storage.base import Storage
from pipeline.storage.objects import RETRY_VARIABLE
from pipeline.storage.open import open_storage
from tests.pipeline.faults.job import COUNT, DIED, DONE, INCOMPLETE, STOPPED, Job, check, records
from tests.pipeline.faults.proxy import Fault, Plan, Proxy, Request, after, sometimes, storm
from tests.pipeline.faults.test_driver_dies import LABELLING, rule
from tests.pipeline.label_job import wait_for

KINDS = [Fault.REFUSE, Fault.CUT_BODY, Fault.LOSE_ANSWER, Fault.CUT_ANSWER]
NAMES = itertools.count()


@pytest.fixture(scope="module")
def endpoint(s3: dict[str, str]) -> Iterator[tuple[Proxy, str]]:
    """A proxy in front of the server, and its endpoint; the server has a bucket."""
    filesystem, _ = pafs.FileSystem.from_uri("s3://faults/?allow_bucket_creation=true")
    filesystem.create_dir("faults")
    host, _, port = s3["AWS_ENDPOINT_URL"].removeprefix("http://").partition(":")
    proxy = Proxy((host, int(port)))
    with proxy.listening() as address:
        yield proxy, address


@pytest.fixture
def proxy(endpoint: tuple[Proxy, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """The proxy for all storages opened in this test; it does not fail any request yet."""
    made, address = endpoint
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    made.done.clear()
    yield made
    made.plan, made.delay_s = lambda request: None, 0.0


@pytest.fixture
def storage(proxy: Proxy) -> Storage:
    """A new prefix behind the proxy."""
    return open_storage(f"s3://faults/storage-{next(NAMES)}")


@pytest.fixture
def job(proxy: Proxy, tmp_path: Path) -> Job:
    """A job whose output is behind the proxy."""
    return Job(tmp_path, dict(os.environ), uri=f"s3://faults/job-{next(NAMES)}")


def _write(storage: Storage) -> str:
    with storage.open_write("stream") as file:
        for number in range(8):
            file.write(bytes([number]) * (1 << 20))
    return file.sha256


def _move(storage: Storage) -> None:
    storage.move("x", "y")
    assert storage.read("y") == b"x" * 1000
    assert not storage.exists("x")


def _delete(storage: Storage) -> None:
    storage.delete_folder("folder")
    assert list(storage.list("folder")) == []


ACTS: dict[str, tuple[str, Callable[[Storage], object]]] = {
    "put": ("PUT", lambda storage: storage.put("z", b"z")),
    "stream": ("PUT", _write),
    "stream, asked for": ("POST", _write),
    "move": ("PUT", _move),
    "delete one": ("POST", lambda storage: storage.delete("x")),
    "delete": ("POST", _delete),
    "read": ("GET", lambda storage: storage.read("x")),
    "read on": ("GET", lambda storage: storage.open_read("x").read()),
    "size": ("HEAD", lambda storage: storage.size("x")),
    "list": ("GET", lambda storage: [info.path for info in storage.list()]),
    "children": ("GET", lambda storage: storage.children()),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_request_is_retried_after_any_fault(proxy: Proxy, storage: Storage, kind: str) -> None:
    for name, (method, act) in ACTS.items():
        outcomes = []
        for plan in (lambda request: None, after({method: [kind, kind]})):
            storage.put("x", b"x" * 1000)
            storage.put("folder/file", b"1")
            proxy.done.clear()
            proxy.plan = plan
            outcomes.append(act(storage))
            proxy.plan = lambda request: None
        assert proxy.done[kind] == 2, name
        assert outcomes[0] == outcomes[1], name


@pytest.mark.parametrize("kind", KINDS)
def test_a_claim_whose_answer_was_lost_is_recognized_as_ours(proxy: Proxy, storage: Storage, kind: str) -> None:
    proxy.plan = after({"PUT": [kind, kind]})
    assert Epoch.claim(storage).number == 1
    assert proxy.done[kind] == 2
    assert Epoch.claim(storage).number == 2


def test_an_upload_survives_a_lost_answer_to_its_completion(proxy: Proxy, storage: Storage) -> None:
    lost: list[Request] = []

    def plan(request: Request) -> str | None:
        if request.method == "POST" and "uploadId" in request.target and not lost:
            lost.append(request)
            return Fault.LOSE_ANSWER
        return None

    proxy.plan = plan
    _write(storage)
    assert lost
    assert storage.size("stream") == 8 << 20


def test_a_long_outage_is_an_error_in_bounded_time(
    proxy: Proxy, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.put("x", b"1")
    monkeypatch.setenv(RETRY_VARIABLE, "1.5")
    impatient = open_storage(storage.uri)
    proxy.plan = storm(60)
    begun = time.monotonic()
    with pytest.raises(OSError, match="503"):
        impatient.read("x")
    assert 0.5 < time.monotonic() - begun < 10


def run(job: Job, proxy: Proxy, plan: Plan, patience_s: float) -> int:
    job.env[RETRY_VARIABLE] = str(patience_s)
    proxy.plan = plan
    ended = job.label()
    proxy.plan = lambda request: None
    printed = " ".join(ended.printed.split())
    assert ended.code == DONE or "same command continues" in printed, printed
    assert "Traceback" not in printed
    return ended.code


def test_a_short_outage_is_survived(proxy: Proxy, job: Job, reference: Job) -> None:
    proxy.delay_s = 0.01
    calm, weather = itertools.count(), storm(3.0)
    assert run(job, proxy, lambda request: weather(request) if next(calm) > 60 else None, 60) == DONE
    assert proxy.done[Fault.REFUSE] > 3
    check(job, reference)


def test_a_long_outage_ends_the_driver_with_4_and_the_same_command_resumes(
    proxy: Proxy, job: Job, reference: Job
) -> None:
    for first in (0, 20, 45):
        calm = itertools.count()
        code = run(job, proxy, lambda request: Fault.REFUSE if next(calm) >= first else None, 1.0)  # noqa: B023
        assert code == INCOMPLETE, first
    assert 0 < len(job.committed()) < COUNT
    assert run(job, proxy, lambda request: None, 60) == DONE
    check(job, reference)


def test_a_network_that_loses_every_sixth_request_loses_nothing(proxy: Proxy, job: Job, reference: Job) -> None:
    assert run(job, proxy, sometimes(1 / 6, seed=3), 60) == DONE
    assert set(proxy.done) == set(KINDS)
    check(job, reference)


def test_a_driver_that_dies_at_every_point_into_a_bucket_loses_nothing(proxy: Proxy, job: Job, reference: Job) -> None:
    for name in LABELLING:
        ended = job.label(failpoints=rule(name, "kill"))
        assert ended.code in (DIED, DONE), ended.printed
    assert job.label().code == DONE
    check(job, reference)


def test_the_newer_of_two_drivers_into_a_bucket_wins(proxy: Proxy, job: Job, reference: Job) -> None:
    job.hold(25)
    older = job.fork(log="older.log")
    wait_for(lambda: len(records(open_storage(job.uri))) >= 2 or not older.process.is_alive())
    newer = job.fork()
    wait_for(lambda: len(open_storage(job.uri).children("job/epochs")) == 2)
    job.release()
    assert (older.wait().code, newer.wait().code) == (STOPPED, DONE)
    check(job, reference, orphans=True)
