"""The contract of a place where jobs run. A new place is a folder of `infra` with one such class.

`phf submit` first checks the job itself (`scorers.rehearsal`), then the place, and then submits. It passes a job with
the same command line that runs it here; a place adds only what the place decides, such as the address of its cluster.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from infra.submission.job import Job, Kind, Status
from infra.submission.store import JobFiles
from scorers.errors import UserError
from scorers.printing import printable
from scorers.rehearsal import Rehearsal


class NoAnswerError(UserError):
    """A place did not answer in time; asking it again would take as long."""


class Log(ABC):
    """What a job prints, read piece by piece."""

    @abstractmethod
    def read(self, *, ended: bool) -> bytes:
        """Return what was printed since the last call, or a part of it; empty if there is nothing new.

        Args:
            ended: whether the job has ended, so that the log is complete. Otherwise the last line may be kept back.

        Raises:
            UserError: the place does not answer.
        """


class FileLog(Log):
    """A log file on this machine."""

    def __init__(self, files: JobFiles) -> None:
        self._files, self._read = files, 0

    def read(self, *, ended: bool) -> bytes:  # noqa: D102 - see Log
        piece = self._files.read_log(self._read)
        self._read += len(piece)
        return piece


class Place(ABC):
    """A place where jobs run."""

    name: ClassVar[str]
    """The value of `--on`."""
    Options: ClassVar[type]
    """A frozen dataclass of the place's options. Each field is annotated with a `typer.Option`, and its default, None
    or False, means that it was not given. Options with the same name at several places have the same annotation.
    """

    decides: ClassVar[Mapping[Kind, Mapping[str, Any]]] = {}
    """Parameters of the job's command that the place sets in `render`, each with its value while the job is checked."""

    def instead(self, kind: Kind) -> str:
        """Return what to give instead of a parameter that the place decides, as a sentence; may be empty."""
        return ""

    def rehearsal(self, job: Job, options: Any) -> Rehearsal:
        """Return how far the job can be checked on this machine; `job` has no output yet."""
        return Rehearsal()

    @abstractmethod
    def render(self, job: Job, options: Any, files: JobFiles) -> str:
        """Return the script, manifest or command line that would be submitted. Nothing is asked of the place.

        Args:
            job: what to run.
            options: an instance of `Options`.
            files: where the job's log goes.

        Raises:
            UserError: options contradict each other or the job.
        """

    def check(self, job: Job, options: Any) -> None:  # noqa: B027 - a place may have nothing to check
        """Check that the place is there and accepts the options, as far as it can be known before submitting.

        Raises:
            UserError: says what is missing, in a sentence.
        """

    @abstractmethod
    def submit(self, job: Job, options: Any, files: JobFiles) -> dict[str, str]:
        """Submit a job, and return its handle: what the other methods need to find it.

        Raises:
            UserError: the place refused the job; says why, in a sentence.
        """

    @abstractmethod
    def status(self, job: Job, files: JobFiles) -> Status:
        """Return how a job is going.

        Raises:
            UserError: the place does not answer.
        """

    @abstractmethod
    def cancel(self, job: Job, files: JobFiles) -> None:
        """Ask a job to stop, so that it saves its work. Returns at once.

        Raises:
            UserError: the place does not answer.
        """

    def open_log(self, job: Job, files: JobFiles) -> Log:
        """Return the log of a job, to be read as it grows; by default its log file."""
        return FileLog(files)

    def read_last_lines(self, job: Job, files: JobFiles, most: int) -> list[str]:
        """Return the last lines of what the job has printed, each of at most 1,000 characters."""
        return files.read_last_lines(most)


def place_of(job: Job, places: Mapping[str, Place]) -> Place:
    """Return the place of a job.

    Raises:
        UserError: this version of phf does not know it.
    """
    if job.place not in places:
        raise UserError(f"{job.id} was submitted by another version of phf, --on {printable(job.place)}.")
    return places[job.place]
