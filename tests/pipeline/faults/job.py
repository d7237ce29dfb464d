"""A small labelling job to disturb, and the oracle: its result must equal that of an undisturbed job."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.checking.verify import verify
from pipeline.dataset import open_dataset
from pipeline.storage.base import Storage
from pipeline.storage.failpoints import VARIABLE
from pipeline.storage.open import open_storage
from tests.pipeline import forked, probe
from tests.pipeline.label_job import Labelling, alive, descendants

DONE, INCOMPLETE, STOPPED, DIED = 0, 4, 75, -9

TEXTS = [f"Sentence one of {n}. And a second one, {n * n}. {'x' * (n % 7)} the third " * 8 for n in range(60)]
COUNT = 10
"""Units that the texts are cut into."""
OPTIONS = ("--unit-size", "3300", "--shard-size", "16KB")

_RECORD = re.compile(r"(^|/)\d{8}\.json$")
_PART = re.compile(r"(^|/)\d{8}[./][^/]*\.parquet$")


class Job(Labelling):
    """A corpus of ten units, which become two shards or more."""

    def __init__(self, folder: Path, env: Mapping[str, str] | None = None, uri: str | None = None) -> None:
        super().__init__(folder, env=dict(env or {}))
        self.uri = uri or str(self.output)
        self.write(TEXTS)

    def fork(self, *options: str, failpoints: str = "", file_size: int = 0, log: str = "phf.log") -> forked.Forked:
        """Start labelling without Ray in a forked process."""
        arguments = self.command(*OPTIONS, *options, output=self.uri)[3:]
        return self._fork(arguments, failpoints, file_size, log)

    def label(self, *options: str, failpoints: str = "", file_size: int = 0) -> forked.Ended:
        """Label without Ray and wait for the end."""
        return self.fork(*options, failpoints=failpoints, file_size=file_size).wait()

    def retag(self, threshold: str, failpoints: str = "") -> forked.Ended:
        """Run `phf retag` and wait for the end."""
        return self._fork(["retag", self.uri, "--threshold", f"probe={threshold}"], failpoints).wait()

    def purge(self, *positions: int, failpoints: str = "") -> forked.Ended:
        """Run `phf purge` for the records at some positions of the corpus, and wait for the end."""
        (source,) = (each.uri for each in open_dataset(self.uri).manifest.sources)
        arguments = ["purge", self.uri, "--source", source, *(f"--position={each}" for each in positions)]
        return self._fork(arguments, failpoints).wait()

    def verify(self) -> forked.Ended:
        """Run `phf verify` and wait for the end."""
        return self._fork(["verify", self.uri], "").wait()

    def _fork(
        self, arguments: Sequence[str], failpoints: str, file_size: int = 0, log: str = "phf.log"
    ) -> forked.Forked:
        env = self.env | ({VARIABLE: failpoints} if failpoints else {})
        return forked.start(arguments, folder=self.folder, env=env, log=self.folder / log, file_size=file_size)

    @contextlib.contextmanager
    def driver(self, *options: str, failpoints: str = "") -> Iterator["Driver"]:
        """A real `phf label` with Ray, killed with all of its processes at the end of the context."""
        log = self.folder / f"driver-{time.monotonic_ns()}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [*self.command(*OPTIONS, *options, output=self.uri)],
                cwd=self.folder,
                env=self.env | ({VARIABLE: failpoints} if failpoints else {}),
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        below: set[int] = set()
        try:
            yield Driver(process, log)
        finally:
            below = descendants(process.pid)
            process.kill()
            process.wait()
            for pid in alive(below):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def committed(self) -> set[int]:
        """Units that have a commit record."""
        return set(records(open_storage(self.uri)))


class Driver:
    """A running `phf label` with its child processes."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self.process = process
        self._log = log

    @property
    def printed(self) -> str:
        """The output so far, as one line, because lines may be wrapped anywhere."""
        return " ".join(self._log.read_text().split())

    def wait(self, seconds: float = 180.0) -> forked.Ended:
        """Wait for its end."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"not done after {seconds} s: {self.printed}") from None
        return forked.Ended(self.process.returncode, self.printed)

    def workers(self) -> list[int]:
        """Process ids of the actors on its local Ray, the oldest first."""
        return sorted(pid for pid in alive(descendants(self.process.pid)) if "LabelActor" in command_of(pid))


def command_of(pid: int) -> str:
    """The command line of a process; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def records(storage: Storage) -> dict[int, dict[str, object]]:
    """Commit records by unit."""
    return {
        int(info.path[-13:-5]): json.loads(storage.read(info.path))
        for info in storage.list("units")
        if _RECORD.search(info.path)
    }


def rows(storage: Storage) -> list[tuple[str, int, str, float]]:
    """Every (source, position, sentence, score) of the shards, sorted."""
    found = []
    for info in storage.list("data"):
        for row in pq.read_table(pa.BufferReader(storage.read(info.path))).to_pylist():
            starts = [0, *row["ends"][:-1]]
            for start, end, score in zip(starts, row["ends"], row["probe"], strict=True):
                found.append((row["source"], row["position"], row["text"][start:end], score))
    return sorted(found)


def check(job: Job, reference: Job, *, orphans: bool = False) -> None:
    """The oracle: nothing is lost, duplicated or left over, and `phf verify` confirms it.

    `orphans` allows staged files of a process that outlived the run that finished the job.
    """
    mine, its = open_storage(job.uri), open_storage(reference.uri)
    assert rows(mine) == rows(its)
    for folder in ("data", "ledger"):
        assert _contents(mine, folder) == _contents(its, folder)
    manifest = mine.read("manifest.json")
    assert manifest == its.read("manifest.json")
    counts = json.loads(manifest)["ledger"]
    assert counts["records"] == counts["labelled"] + counts["empty"] + sum(counts["quarantined"].values()) == len(TEXTS)
    _check_units(mine)
    assert orphans or list(mine.list("staging")) == []
    report = verify(job.uri)
    assert report.ok, [str(problem) for problem in report.problems]


def _check_units(storage: Storage) -> None:
    """Check that each unit is committed once, that its parts match its record, and that every part has a record."""
    found = records(storage)
    assert sorted(found) == list(range(COUNT))
    parts = {part["path"]: part for record in found.values() for part in record["parts"]}  # type: ignore[attr-defined]
    assert {info.path for info in storage.list("units") if _PART.search(info.path)} == set(parts)
    for path, part in parts.items():
        data = storage.read(path)
        assert (len(data), hashlib.sha256(data).hexdigest()) == (part["size"], part["sha256"])


def _contents(storage: Storage, folder: str) -> dict[str, str]:
    return {info.path: hashlib.sha256(storage.read(info.path)).hexdigest() for info in storage.list(folder)}


def copy(job: Job, folder: Path) -> Job:
    """Copy a job in its present state to another folder."""
    shutil.copytree(job.folder, folder)
    return Job(folder)


def scored_once(job: Job) -> bool:
    """Whether every text was scored exactly once."""
    return set(job.scored().values()) == {1} and set(job.scored()) == set(map(probe.key, TEXTS))
