"""Find the records of a unit that kill their process, hang in it or outgrow the memory, and label all the others.

A child process (`isolated`) scores the records of the unit one at a time and says before each step what it is about to
do. Whatever it is doing when it ends, or when its time or its memory is used up, has then used up
an attempt; after `execution.attempts` that record is poison, and the child goes on without it in that scorer. At the
end the unit is labelled as usual, all records together, with placeholders for poison: the others get the scores that
they would have had beside a record that the scorer refuses.
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
from pipeline.labelling.workers.label_records import Spared
from pipeline.labelling.workers.memory import machine_memory, resident_memory
from pipeline.labelling.workers.worker import Job, PartResult
from scorers import interpreter
from scorers.contract import ScoringError
from scorers.errors import UserError
from scorers.isolation import allowed_seconds, describe

WORKER_DIED, WORKER_HUNG, MEMORY_LIMIT = "worker-died", "worker-hung", "memory-limit"

# A scorer that keeps its own deadline has answered by then: what it may take on top of that, in seconds and as a share.
_MARGIN_S, _MARGIN = 5.0, 0.25
# Seconds for an interpreter to start and to build the scorers.
_START_S = 600.0
# Records in a row that are poison, before it is the scorer that is at fault.
_POISON_IN_A_ROW = 10
# Share of the machine's memory that a child may hold where no limit is set; Ray ends whole workers at 0.95.
_MEMORY_SHARE = 0.8
_LOOK_EVERY_S = 0.05
# Seconds that a process which has let go of its pipe may take to be gone.
_DEATH_S = 10.0


class IsolationError(UserError):
    """A unit cannot be labelled, and no record of it alone is at fault."""


class Phase(StrEnum):
    """What a child does."""

    START = "start"  # starts, builds its scorers and tries them on a text of ours
    READ = "read"  # reads the next record
    RECORD = "record"  # splits or scores one record
    TOGETHER = "together"  # labels the whole unit


@dataclass(frozen=True)
class Step:
    """What a child is about to do.

    Attributes:
        phase: see there.
        index: of the record in the unit.
        source, position: its key.
        column: of the scorer that gets it, or `split`.
        characters: of its text.
    """

    phase: Phase
    index: int = 0
    source: str = ""
    position: int = 0
    column: str = ""
    characters: int = 0


@dataclass(frozen=True)
class Order:
    """What a child is to do: the records from `first` on one by one, then the unit as a whole."""

    job: Job
    group: str
    unit: Unit
    staged: str
    first: int
    spared: Spared


@dataclass(frozen=True)
class Raised:
    """A child's exception, without text of the corpus."""

    error: str


@dataclass(frozen=True)
class _Loss:
    """How a child was lost, and at which step."""

    step: Step
    reason: str
    detail: str


@dataclass
class _Findings:
    """What is known of a unit: attempts by record and column, and poison."""

    attempts: int
    first: int = 0
    spared: dict[tuple[str, int], dict[str, ScoringError]] = field(default_factory=dict)
    losses: Counter[tuple[int, str]] = field(default_factory=Counter)
    in_a_row: int = 0
    latest: int = -1

    def add(self, loss: _Loss) -> None:
        """Count a loss.

        Raises:
            IsolationError: no record can be blamed for it.
        """
        step = loss.step
        key = (step.index, step.column or step.phase)
        self.losses[key] += 1
        if step.phase is Phase.TOGETHER:
            raise IsolationError(
                f"each record can be scored alone, but not all together ({loss.reason}: {loss.detail}); if that is for "
                "want of memory, raise execution.memory_limit or use fewer workers"
            )
        if step.phase in {Phase.READ, Phase.RECORD}:
            # Those before it have passed, and need not again: a scorer that only leaks gets on with fresh memory.
            self.first = max(self.first, step.index)
        if self.losses[key] < self.attempts:
            return
        if step.phase is Phase.START:
            raise IsolationError(f"its scorers do not even score a few words of ours ({loss.reason}: {loss.detail})")
        if step.phase is Phase.READ:
            raise IsolationError(f"record {step.index} of the unit cannot be read ({loss.reason}: {loss.detail})")
        if step.index != self.latest:
            self.in_a_row = self.in_a_row + 1 if step.index == self.latest + 1 else 1
            self.latest = step.index
        if self.in_a_row >= _POISON_IN_A_ROW:
            raise IsolationError(f"{self.in_a_row} records in a row cannot be scored ({loss.reason}: {loss.detail})")
        times = "once" if self.attempts == 1 else f"{self.attempts} times"
        self.spared.setdefault((step.source, step.position), {})[step.column] = ScoringError(
            loss.reason, f"{loss.detail}, {times}"
        )


def label_isolated(job: Job, group: str, unit: Unit, staged: str) -> PartResult:
    """Do what `UnitLabeller.label` does, in child processes; records that kill them are quarantined.

    Their reasons are `worker-died`, `worker-hung` and `memory-limit`; the detail names the scorer and the signal.

    Raises:
        IsolationError: the unit cannot be labelled, and no record of it alone is at fault, or the child raised.
    """
    findings = _Findings(job.config.execution.attempts)
    while True:
        with _Child(job.config.execution) as child:
            outcome = child.run(Order(job, group, unit, staged, findings.first, findings.spared))
        match outcome:
            case PartResult():
                return outcome
            case Raised():
                raise IsolationError(outcome.error)
        findings.add(outcome)


def brief(error: Exception) -> str:
    """An exception without text of the corpus: only errors that we wrote ourselves are known to hold none."""
    if isinstance(error, UserError):
        return str(error).rstrip(".")
    if isinstance(error, OSError) and error.strerror:
        return f"{type(error).__name__}: {error.strerror} ({error.filename})"
    return describe(error)


class _Child:
    """A fresh interpreter that obeys one order."""

    def __init__(self, execution: LabelExecution) -> None:
        self._execution = execution
        self._most_memory = execution.memory_limit or int(_MEMORY_SHARE * machine_memory())

    def __enter__(self) -> "_Child":
        self._connection, theirs = Pipe()
        # What libraries print may quote the corpus; it goes nowhere.
        self._process = subprocess.Popen(  # noqa: S603 - this interpreter, this package
            interpreter.command("pipeline.labelling.workers.isolated", str(theirs.fileno())),
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

    def run(self, order: Order) -> "PartResult | Raised | _Loss":
        """Follow the child until it has a result, or is lost."""
        step = Step(Phase.START)
        due = time.monotonic() + _START_S
        look = 0.0
        with contextlib.suppress(BrokenPipeError):
            self._connection.send(order)
        while True:
            try:
                message = self._connection.recv() if self._connection.poll(_LOOK_EVERY_S) else None
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
                look = now + _LOOK_EVERY_S
                if resident_memory(self._process.pid) > self._most_memory:
                    return _Loss(step, MEMORY_LIMIT, f"more than {self._most_memory / 1e6:,.0f} MB of memory")
                if self._process.poll() is not None and not self._connection.poll():
                    return _Loss(step, WORKER_DIED, self._cause_of_death())
            if now > due:
                return _Loss(step, WORKER_HUNG, f"nothing came for {self._allowed_s(step):.3g} s")

    def _allowed_s(self, step: Step) -> float:
        """Seconds for a step; never more than for a whole unit, which could not have been labelled then."""
        execution = self._execution
        if step.phase is Phase.START:
            return _START_S
        if step.phase is Phase.RECORD:
            seconds = execution.deadlines.get(step.column, execution.deadline_s)
            seconds = allowed_seconds(seconds, step.characters)
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
