"""The scheduler's crew as Ray actors. Ray restarts and retries nothing itself: the scheduler counts attempts."""

import itertools
import os
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayError

from pipeline.corpus.plan import Unit
from pipeline.labelling.head import HeadWatch
from pipeline.labelling.scheduler import Event, Kind
from pipeline.labelling.worker import Job, PartResult, UnitLabeller
from scorers.errors import UserError
from scorers.isolation import describe


@dataclass(frozen=True)
class _Started:
    node: str
    fingerprints: dict[str, str]


@dataclass(frozen=True)
class _NotStarted:
    node: str
    error: str


@dataclass(frozen=True)
class _Failed:
    error: str


class LabelActor:
    """A process that labels units. Its failures are values: no exception takes text of the corpus to Ray's logs."""

    def __init__(self, job: Job, group: str) -> None:
        self._job = job
        self._group = group

    def start(self) -> _Started | _NotStarted:
        """Build the scorers, which can take long."""
        node = os.uname().nodename
        try:
            self._labeller = UnitLabeller(self._job, self._group)
        except Exception as error:  # noqa: BLE001 - whatever it is, the driver tells the user
            return _NotStarted(node, _brief(error))
        return _Started(node, self._labeller.fingerprints)

    def label(self, unit: Unit, staged: str) -> PartResult | _Failed:
        """Stage the group's part of a unit."""
        try:
            return self._labeller.label(unit, staged)
        except Exception as error:  # noqa: BLE001 - whatever it is, the scheduler counts it
            return _Failed(_brief(error))


@dataclass
class _Actor:
    handle: Any
    group: str
    calls: deque[Any] = field(default_factory=deque)


class RayCrew:
    """Actors that label units of one job; see `pipeline.labelling.scheduler.Crew`.

    Args:
        job: as the driver knows it.
        fingerprints: by column, expected of every actor's scorers.
        staging: folder below the output for what is staged.
        resources: by group, options of `ray.remote` such as `num_cpus`.
    """

    def __init__(
        self, job: Job, fingerprints: Mapping[str, str], staging: str, resources: Mapping[str, Mapping[str, Any]]
    ) -> None:
        # A million units need not travel to every actor: it is sent each one that it works on.
        self._job = ray.put(replace(job, plan=replace(job.plan, units=[])))
        self._fingerprints = fingerprints
        self._staging = staging
        self._classes = {
            group: ray.remote(max_restarts=0, max_task_retries=0, **options)(LabelActor)
            for group, options in resources.items()
        }
        self._actors: dict[int, _Actor] = {}
        self._workers: dict[Any, int] = {}  # by call
        self._names = itertools.count()
        self._staged = itertools.count()
        self._head = HeadWatch(ray.get_runtime_context().gcs_address)

    def hire(self, group: str) -> int:
        """Start an actor."""
        number = next(self._names)
        self._actors[number] = _Actor(self._classes[group].remote(self._job, group), group)
        self._call(number, self._actors[number].handle.start.remote())
        return number

    def send(self, worker: int, unit: Unit) -> None:
        """Give an actor a unit, to be staged under a name that nothing else ever uses."""
        actor = self._actors[worker]
        staged = f"{self._staging}/{unit.name}.{actor.group}.{next(self._staged)}.parquet"
        self._call(worker, actor.handle.label.remote(unit, staged))

    def dismiss(self, worker: int) -> None:
        """Kill an actor."""
        actor = self._actors.pop(worker)
        for call in actor.calls:
            self._workers.pop(call, None)
        ray.kill(actor.handle)

    def wait(self, timeout: float) -> list[Event]:
        """What the actors' calls have returned.

        Raises:
            UserError: an actor's scorers cannot be built, or are not those of the job.
            HeadLostError: the cluster has lost its head.
        """
        self._head.check()
        # Calls of one actor end in order, so that the first of each says all.
        waiting = [actor.calls[0] for actor in self._actors.values() if actor.calls]
        if not waiting:
            return []
        done, _ = ray.wait(waiting, num_returns=1, timeout=timeout)
        if done:
            done, _ = ray.wait(waiting, num_returns=len(waiting), timeout=0)
        return [self._event(call) for call in done]

    def _call(self, worker: int, call: Any) -> None:
        self._actors[worker].calls.append(call)
        self._workers[call] = worker

    def _event(self, call: Any) -> Event:
        worker = self._workers.pop(call)
        self._actors[worker].calls.popleft()
        try:
            result = ray.get(call)
        except RayError as error:
            self.dismiss(worker)
            return Event(Kind.DIED, worker, error=_cause_of_death(error))
        match result:
            case PartResult():
                return Event(Kind.DONE, worker, part=result)
            case _Started():
                self._check(result)
                return Event(Kind.READY, worker)
            case _NotStarted():
                raise UserError(f"On {result.node} the scorers cannot start: {result.error}.")
        return Event(Kind.FAILED, worker, error=result.error)

    def _check(self, started: _Started) -> None:
        for column, fingerprint in started.fingerprints.items():
            if fingerprint != self._fingerprints[column]:
                raise UserError(
                    f"The scorer {column!r} on {started.node} is not the one of this job: its fingerprint is "
                    f"{fingerprint}, not {self._fingerprints[column]}. Install the same versions of its libraries and "
                    "the same weights on all machines."
                )


def _brief(error: Exception) -> str:
    """An exception without text of the corpus: only errors that we wrote ourselves are known to hold none."""
    if isinstance(error, UserError):
        return str(error).rstrip(".")
    if isinstance(error, OSError) and error.strerror:
        return f"{type(error).__name__}: {error.strerror} ({error.filename})"
    return describe(error)


def _cause_of_death(error: RayError) -> str:
    if isinstance(error, OutOfMemoryError):
        return "Ray killed its process because the machine ran out of memory"
    return f"its process died ({type(error).__name__})"
