"""Submitted jobs in the user's state folder: a record, a log and a list of events each, readable by the user alone.

Jobs on other machines write their events there too, if they share the folder, as home folders on clusters are.
"""

import fcntl
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from infra.submission.job import JOB_ID, Job
from scorers.errors import UserError
from scorers.paths import escape_path
from scorers.stored import read_stored

_LARGEST = 64 * 1024 * 1024


def state_folder() -> Path:
    """Return the folder of the jobs: `phf/jobs` in XDG_STATE_HOME, by default ~/.local/state."""
    return Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser().absolute() / "phf" / "jobs"


@dataclass(frozen=True)
class Event:
    """A line of a job's events: Unix time, what happened, to which task, and a word about it.

    Events are `submitted PLACE`, `started HOST`, `runs PROCESS` (only at the place `local`), `ended STATUS` and
    `cancelled -`; the task is `-` for the job itself.
    """

    time: int
    what: str
    task: str
    value: str


@dataclass(frozen=True)
class JobFiles:
    """The files of a job; `folder` exists once the job has been submitted."""

    folder: Path
    id: str

    @property
    def record(self) -> Path:
        """The record, as JSON."""
        return self.folder / f"{self.id}.json"

    @property
    def log(self) -> Path:
        """The output of the job, of all attempts."""
        return self.folder / f"{self.id}.log"

    @property
    def events(self) -> Path:
        """The events, a line each."""
        return self.folder / f"{self.id}.events"

    @property
    def script(self) -> Path:
        """The script that was submitted, at places that run one."""
        return self.folder / f"{self.id}.sbatch"

    def add_event(self, what: str, value: str = "-", task: str = "-") -> None:
        """Append an event."""
        with _private(self.events) as descriptor:
            os.write(descriptor, f"{int(time.time())} {what} {task} {value}\n".encode())

    @contextmanager
    def begin_attempt(self, place: str) -> Iterator[None]:
        """Add the event `submitted`, and take it back if the block fails: the job is then as it was before."""
        size = self.events.stat().st_size if self.events.exists() else 0
        self.add_event("submitted", place)
        try:
            yield
        except BaseException:
            os.truncate(self.events, size)
            raise

    def add_to_log(self, text: bytes) -> None:
        """Append to the log, which is created if it is missing."""
        with _private(self.log) as descriptor:
            os.write(descriptor, text)

    def read_events(self) -> list[Event]:
        """Return the events since the job was last submitted; leaves out lines that are none."""
        try:
            lines = read_stored(self.events, _LARGEST).decode(errors="replace").splitlines()
        except OSError:
            return []
        found: list[Event] = []
        for line in lines:
            words = line.split(" ")
            if len(words) == 4 and words[0].isdecimal():
                event = Event(int(words[0]), *words[1:])
                found = [event] if event.what == "submitted" else [*found, event]
        return found

    def read_log(self, offset: int, most: int = 1 << 20) -> bytes:
        """Return at most `most` bytes of the log from `offset`; empty if there is none."""
        try:
            with self.log.open("rb") as file:
                file.seek(offset)
                return file.read(most)
        except FileNotFoundError:
            return b""

    def read_last_lines(self, most: int) -> list[str]:
        """Return the last lines of the log, each of at most 1,000 characters."""
        try:
            size = self.log.stat().st_size
        except FileNotFoundError:
            return []
        lines = self.read_log(max(0, size - 16_384)).decode(errors="replace").splitlines()
        return [line[:1_000] for line in lines[-most:]]

    def write_private(self, path: Path, text: str) -> None:
        """Replace one of the files atomically."""
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.unlink(missing_ok=True)
        with _private(temporary) as descriptor, os.fdopen(os.dup(descriptor), "w", encoding="utf-8") as file:
            file.write(text)
        temporary.replace(path)


@contextmanager
def _private(path: Path) -> Iterator[int]:
    """Open a file to append, created readable by its user alone; no link is followed."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


class Store:
    """The submitted jobs of this user."""

    def __init__(self) -> None:
        self._folder = state_folder()

    def files(self, job_id: str) -> JobFiles:
        """Return the files of a job."""
        return JobFiles(self._folder, job_id)

    @contextmanager
    def submitting(self, job_id: str) -> Iterator[JobFiles]:
        """Let only one process at a time submit a job.

        Raises:
            UserError: another one does so at this moment, or the folder cannot be written.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = os.open(
                self._folder / f"{job_id}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
            )
        except OSError as error:
            raise UserError(
                f"Jobs are recorded in {escape_path(str(self._folder))}, which cannot be written: "
                f"{error.strerror}. Set XDG_STATE_HOME to a folder of yours."
            ) from None
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(f"{job_id} is being submitted at this moment. See `phf jobs {job_id}`.") from None
            yield self.files(job_id)
        finally:
            os.close(lock)

    def write(self, job: Job) -> None:
        """Write the record of a job; call it in `submitting`."""
        files = self.files(job.id)
        files.write_private(files.record, job.model_dump_json(indent=2) + "\n")

    def find(self, job_id: str) -> Job | None:
        """Return a job; None if it was never submitted.

        Raises:
            UserError: its record is damaged or of another version.
        """
        record = self.files(job_id).record
        if not re.fullmatch(JOB_ID, job_id):
            return None
        try:
            return Job.model_validate_json(read_stored(record, _LARGEST))
        except FileNotFoundError:
            return None
        except (OSError, ValidationError):
            raise UserError(
                f"The record of a job, {escape_path(str(record))}, is damaged, or of another version of phf. Remove it "
                "once the job is no longer running."
            ) from None

    def jobs(self) -> tuple[list[Job], list[UserError]]:
        """Return all jobs, the newest first, and what `find` raises for damaged records."""
        found, damaged = [], []
        for path in sorted(self._folder.glob("*.json")):
            try:
                job = self.find(path.stem)
            except UserError as error:
                damaged.append(error)
            else:
                found += [job] if job is not None else []
        return sorted(found, key=lambda job: -job.submitted_at), damaged
