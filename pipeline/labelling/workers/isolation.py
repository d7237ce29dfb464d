"""Find the records of a unit that kill their process, hang or exceed the memory limit, and label all others.

A child process (`isolated`) scores the records of the unit one at a time and reports each step before it begins. If the
process dies, or exceeds its time or memory, the reported step has used up an attempt. After `execution.attempts` the
record is poison, and the next child skips it in that scorer. At the end the unit is labelled as usual, all records
together, with placeholders for poison, so that the other records get the same scores as beside a record that the
scorer refuses.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from multiprocessing.connection import Pipe

from pipeline.config import LabelExecution
from pipeline.corpus.plan import Unit
from pipeline.labelling.resolve import ResolvedJob
from pipeline.labelling.workers.label_records import KnownErrors
from pipeline.labelling.workers.memory import machine_memory, resident_memory
from pipeline.labelling.workers.worker import PartResult
from scorers import interpreter
from scorers.attempt import allowed_seconds
from scorers.contract import ScoringError
from scorers.describe_error import describe
from scorers.errors import UserError

WORKER_DIED, WORKER_HUNG, MEMORY_LIMIT = "worker-died", "worker-hung", "memory-limit"

# Added to a scorer's own deadline, in seconds and as a share, so that a scorer that enforces it can answer first.
_MARGIN_S, _MARGIN = 5.0, 0.25
# Seconds for an interpreter to start and to build the scorers.
_START_S = 600.0
# Poison records in a row after which the scorer is at fault, not the records.
_POISON_IN_A_ROW = 10
# Share of the machine's memory that a child may use if no limit is set; Ray kills whole workers at 0.95.
_MEMORY_SHARE = 0.8
_POLL_INTERVAL_S = 0.05
# Seconds to wait for the exit of a process that has closed its pipe.
_DEATH_S = 10.0


class IsolationError(UserError):
    """A unit cannot be labelled, and no single record is at fault."""


class Phase(StrEnum):
    """What a child is doing."""

    START = "start"  # starts, builds its scorers and warms them up
    READ = "read"  # reads the next record
    RECORD = "record"  # splits or scores one record
    TOGETHER = "together"  # labels the whole unit


@dataclass(frozen=True)
class Step:
    """The step that a child is about to begin.

    Attributes:
        phase: what it does.
        index: index of the record in the unit.
        source, position: key of the record.
        column: column of the scorer, or `split`.
        characters: length of the record's text.
    """

    phase: Phase
    index: int = 0
    source: str = ""
    position: int = 0
    column: str = ""
    characters: int = 0


@dataclass(frozen=True)
class Task:
    """The work of a child: try the records from index `first` one by one, then label the whole unit."""

    job: ResolvedJob
    group: str
    unit: Unit
    staged: str
    first: int
    known_errors: KnownErrors


@dataclass(frozen=True)
class Raised:
    """An exception in a child, without text of the corpus."""

    error: str


@dataclass(frozen=True)
class _Loss:
    """Why a child was lost, and at which step."""

    step: Step
    reason: str
    detail: str


@dataclass
class _Findings:
    """What is known about a unit: losses by record and column, and poison records."""

    attempts: int
    first: int = 0
    known_errors: dict[tuple[str, int], dict[str, ScoringError]] = field(default_factory=dict)
    losses: Counter[tuple[int, str]] = field(default_factory=Counter)
    in_a_row: int = 0
    latest: int = -1

    def add(self, loss: _Loss) -> None:
        """Count a loss.

        Raises:
            IsolationError: no single record is at fault.
        """
        step = loss.step
        key = (step.index, step.column or step.phase)
        self.losses[key] += 1
        if step.phase is Phase.TOGETHER:
            raise IsolationError(
                f"each record can be scored alone, but not all together ({loss.reason}: {loss.detail}); if memory is "
                "short, raise execution.memory_limit or use fewer workers"
            )
        if step.phase in {Phase.READ, Phase.RECORD}:
            # Skip the records that have passed, so that a scorer that leaks memory makes progress.
            self.first = max(self.first, step.index)
        if self.losses[key] < self.attempts:
            return
        if step.phase is Phase.START:
            raise IsolationError(f"its scorers cannot score even a short test text ({loss.reason}: {loss.detail})")
        if step.phase is Phase.READ:
            raise IsolationError(f"record {step.index} of the unit cannot be read ({loss.reason}: {loss.detail})")
        if step.index != self.latest:
            self.in_a_row = self.in_a_row + 1 if step.index == self.latest + 1 else 1
            self.latest = step.index
        if self.in_a_row >= _POISON_IN_A_ROW:
            raise IsolationError(f"{self.in_a_row} records in a row cannot be scored ({loss.reason}: {loss.detail})")
        times = "once" if self.attempts == 1 else f"{self.attempts} times"
        self.known_errors.setdefault((step.source, step.position), {})[step.column] = ScoringError(
            loss.reason, f"{loss.detail}, {times}"
        )


def label_isolated(job: ResolvedJob, group: str, unit: Unit, staged: str) -> PartResult:
    """Label a unit like `UnitLabeller.label`, but in child processes; quarantine the records that kill them.

    The reasons are `worker-died`, `worker-hung` and `memory-limit`; the detail names the scorer and the signal.

    Raises:
        IsolationError: no single record is at fault, or the child raised.
    """
    findings = _Findings(job.config.execution.attempts)
    while True:
        with _Child(job.config.execution) as child:
            outcome = child.run(Task(job, group, unit, staged, findings.first, findings.known_errors))
        match outcome:
            case PartResult():
                return outcome
            case Raised():
                raise IsolationError(outcome.error)
        findings.add(outcome)


def describe_error(error: Exception) -> str:
    """Describe an exception without quoting the corpus: only messages of our own errors are known to be safe."""
    if isinstance(error, UserError):
        return str(error).rstrip(".")
    if isinstance(error, OSError) and error.strerror:
        return f"{type(error).__name__}: {error.strerror} ({error.filename})"
    return describe(error)


class _Child:
    """A fresh interpreter that runs one task."""

    def __init__(self, execution: LabelExecution) -> None:
        self._execution = execution
        self._most_memory = execution.memory_limit or int(_MEMORY_SHARE * machine_memory())

    def __enter__(self) -> "_Child":
        self._connection, theirs = Pipe()
        # Discard what libraries print: it may quote the corpus.
        self._process = subprocess.Popen(  # noqa: S603 - this interpreter, this package
            interpreter.command("pipeline.labelling.workers.isolation_child", str(theirs.fileno())),
            env=interpreter.environment(),
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        theirs.close()
        return self

    def __exit__(self, *_: object) -> None:
        self._kill()
        self._connection.close()

    def run(self, task: Task) -> "PartResult | Raised | _Loss":
        """Run a task and follow the child until it has a result or is lost."""
        step = Step(Phase.START)
        due = time.monotonic() + _START_S
        look = 0.0
        with contextlib.suppress(BrokenPipeError):
            self._connection.send(task)
        while True:
            try:
                message = self._connection.recv() if self._connection.poll(_POLL_INTERVAL_S) else None
            except (EOFError, ConnectionResetError):
                return _Loss(step, WORKER_DIED, self._cause_of_death())
            if isinstance(message, Step):
                step = message
                due = time.monotonic() + self._allowed_s(step)
            elif message is not None:
                result: PartResult | Raised = message
                return result
            now = time.monotonic()
            if now >= look:
                look = now + _POLL_INTERVAL_S
                if resident_memory(self._process.pid) > self._most_memory:
                    return _Loss(step, MEMORY_LIMIT, f"more than {self._most_memory / 1e6:,.0f} MB of memory")
                if self._process.poll() is not None and not self._connection.poll():
                    return _Loss(step, WORKER_DIED, self._cause_of_death())
            if now > due:
                return _Loss(step, WORKER_HUNG, f"no progress for {self._allowed_s(step):.3g} s")

    def _allowed_s(self, step: Step) -> float:
        """Seconds allowed for a step, at most those of a whole unit."""
        execution = self._execution
        if step.phase is Phase.START:
            return _START_S
        if step.phase is Phase.RECORD:
            seconds = allowed_seconds(execution.of(step.column).deadline_s, step.characters)
            return min(seconds * (1 + _MARGIN) + _MARGIN_S, execution.unit_deadline_s)
        return execution.unit_deadline_s

    def _cause_of_death(self) -> str:
        try:
            status = self._process.wait(_DEATH_S)
        except subprocess.TimeoutExpired:
            return "it closed its pipe"
        if status >= 0:
            return f"exit status {status}"
        with contextlib.suppress(ValueError):
            return signal.Signals(-status).name
        return f"signal {-status}"

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
