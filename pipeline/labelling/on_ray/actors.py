"""The scheduler's backend as Ray actors. Ray restarts and retries nothing itself: the scheduler counts attempts."""

import gc
import itertools
import os
import queue
import sys
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, NodeDiedError, OutOfMemoryError

from pipeline.corpus.plan import Unit, Units
from pipeline.labelling.on_ray.head import HeadWatch, ask_with_timeout
from pipeline.labelling.scheduler.autoscaling import Pool
from pipeline.labelling.scheduler.backend import Event, Kind
from pipeline.labelling.workers.isolation import describe_error, label_isolated
from pipeline.labelling.workers.memory import resident_memory, watch_memory
from pipeline.labelling.workers.secrecy import discard_output, forbid_core_dumps
from pipeline.labelling.workers.worker import Job, PartResult, UnitLabeller
from scorers.amounts import size_of
from scorers.errors import UserError

# Seconds in which an actor that does not answer must have been found dead, with its node or without, or be given up.
_UNREACHABLE_S = 60.0
_LOOK_EVERY_S = 1.0

_RAY_OPTIONS = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}


@dataclass(frozen=True)
class _Started:
    node: str
    node_id: str
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
        discard_output()
        forbid_core_dumps()
        self._job = job
        self._group = group
        self._labeller: UnitLabeller | None = None

    def start(self) -> _Started | _NotStarted:
        """Build the scorers, which can take long."""
        forbid_core_dumps()
        node = os.uname().nodename
        try:
            self._labeller = UnitLabeller(self._job, self._group)
            self._watch_memory()
        except Exception as error:  # noqa: BLE001 - whatever it is, the driver tells the user
            return _NotStarted(node, describe_error(error))
        return _Started(node, ray.get_runtime_context().get_node_id(), self._labeller.fingerprints)

    def label(self, unit: Unit, staged: str, isolated: bool) -> PartResult | _Failed:
        """Stage the group's part of a unit."""
        try:
            if isolated:
                self._make_room()
                return label_isolated(self._job, self._group, unit, staged)
            if self._labeller is None:
                self._labeller = UnitLabeller(self._job, self._group)
            return self._labeller.label(unit, staged)
        except Exception as error:  # noqa: BLE001 - whatever it is, the scheduler counts it
            return _Failed(describe_error(error))
        except BaseException:  # noqa: BLE001 - `sys.exit` in a library: Ray would write its message down everywhere
            os._exit(1)

    def _make_room(self) -> None:
        """Give the memory of the scorers, and of their GPU, to a child process that builds its own."""
        self._labeller = None
        gc.collect()
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    def _watch_memory(self) -> None:
        limit = self._job.config.execution.memory_limit
        if limit is None:
            return
        holds = resident_memory(os.getpid())
        if holds > limit:
            raise UserError(
                f"a worker of the group {self._group} holds {size_of(holds)} before its first unit, more than "
                f"execution.memory_limit ({size_of(limit)}) allows"
            )
        # At once, from a thread: the main one may be deep in a scorer, which no exception would reach.
        watch_memory(limit, lambda: os._exit(1))


@dataclass
class _Actor:
    handle: Any
    group: str
    node_id: str = ""
    calls: "deque[Future[Any]]" = field(default_factory=deque)


@dataclass
class _Unreachable:
    """An actor that does not answer: it, its node or the network is gone, and Ray does not know yet which."""

    ping: "Future[Any]"
    give_up_at: float


class RayBackend:
    """Actors that label units of one job; see `pipeline.labelling.scheduler.backend.Backend`.

    What an event costs does not depend on how many actors there are: each call tells when it is over.

    Args:
        job: as the driver knows it.
        fingerprints: by column, expected of every actor's scorers.
        staging: folder below the output for what is staged.
        pools: what the actors of each group need of the cluster.
    """

    def __init__(self, job: Job, fingerprints: Mapping[str, str], staging: str, pools: Mapping[str, Pool]) -> None:
        # A million units need not travel to every actor: it is sent each one that it works on.
        self._job = ray.put(replace(job, plan=replace(job.plan, units=Units.of([]))))
        self._fingerprints = fingerprints
        self._staging = staging
        self._classes = {group: ray.remote(**_options(pool))(LabelActor) for group, pool in pools.items()}
        self._actors: dict[int, _Actor] = {}
        self._unreachable: dict[int, _Unreachable] = {}
        self._look_at = 0.0
        self._over: queue.SimpleQueue[int] = queue.SimpleQueue()  # workers, a call of whom is over
        self._names = itertools.count()
        self._staged = itertools.count()
        self._resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        self._head = HeadWatch(ray.get_runtime_context().gcs_address)

    def hire(self, group: str) -> int:
        """Ask for an actor."""
        number = next(self._names)
        self._actors[number] = _Actor(self._classes[group].remote(self._job, group), group)
        self._call(number, self._actors[number].handle.start.remote())
        return number

    def send(self, worker: int, unit: Unit, *, isolated: bool) -> None:
        """Give an actor a unit, to be staged under a name that nothing else ever uses."""
        actor = self._actors[worker]
        staged = f"{self._staging}/{unit.name}.{actor.group}.{next(self._staged)}.parquet"
        self._call(worker, actor.handle.label.remote(unit, staged, isolated))

    def dismiss(self, worker: int) -> None:
        """Kill an actor."""
        self._unreachable.pop(worker, None)
        ray.kill(self._actors.pop(worker).handle)

    def wait(self, timeout: float) -> list[Event]:
        """What the actors' calls have returned.

        Raises:
            UserError: an actor's scorers cannot be built, or are not those of the job.
            HeadLostError: the cluster has lost its head.
        """
        self._head.check()
        events = self._look_for_unreachable()
        try:
            worker = self._over.get(block=not events, timeout=timeout)
            while True:
                events += self._events(worker)
                worker = self._over.get_nowait()
        except queue.Empty:
            return events

    def resources(self) -> Mapping[str, float]:
        """What the cluster's nodes have, or had when they were last asked."""
        self._resources = ask_with_timeout(ray.cluster_resources) or self._resources
        return self._resources

    def _call(self, worker: int, call: Any) -> None:
        future: Future[Any] = call.future()
        self._actors[worker].calls.append(future)
        future.add_done_callback(lambda _: self._over.put(worker))

    def _events(self, worker: int) -> list[Event]:
        """What an actor's calls that are over come to, in their order, whichever was heard of first."""
        actor = self._actors.get(worker)
        events: list[Event] = []
        while actor is not None and worker not in self._unreachable and actor.calls and actor.calls[0].done():
            call = actor.calls.popleft()
            error = call.exception()
            if isinstance(error, ActorUnavailableError):
                ping = actor.handle.__ray_ready__.remote().future()
                self._unreachable[worker] = _Unreachable(ping, time.monotonic() + _UNREACHABLE_S)
            elif error is not None:
                return [*events, self._died(worker, error)]
            else:
                events.append(self._result(worker, actor, call.result()))
        return events

    def _result(self, worker: int, actor: _Actor, result: Any) -> Event:
        match result:
            case PartResult():
                return Event(Kind.DONE, worker, part=result)
            case _Started():
                self._check(result)
                actor.node_id = result.node_id
                return Event(Kind.READY, worker, node=result.node)
            case _NotStarted():
                raise UserError(f"On {result.node} the scorers cannot start: {result.error}.")
        return Event(Kind.FAILED, worker, error=result.error)

    def _died(self, worker: int, error: BaseException) -> Event:
        node_id = self._actors[worker].node_id
        with_node = _went_with_node(error) or (bool(node_id) and not _is_alive(node_id))
        self.dismiss(worker)
        return Event(Kind.DIED, worker, error=_cause_of_death(error, with_node=with_node), with_node=with_node)

    def _look_for_unreachable(self) -> list[Event]:
        """Ray hears of a machine that is gone only after some seconds; until then it is nobody's fault."""
        if not self._unreachable or time.monotonic() < self._look_at:
            return []
        self._look_at = time.monotonic() + _LOOK_EVERY_S
        events = []
        for worker, each in list(self._unreachable.items()):
            node_id = self._actors[worker].node_id
            error = each.ping.exception() if each.ping.done() else None
            if each.ping.done() and not isinstance(error, ActorUnavailableError):
                events.append(self._died(worker, error or ActorUnavailableError("", None)))
            elif (node_id and not _is_alive(node_id)) or time.monotonic() > each.give_up_at:
                self.dismiss(worker)
                events.append(Event(Kind.DIED, worker, error="its machine cannot be reached", with_node=True))
            elif each.ping.done():
                each.ping = self._actors[worker].handle.__ray_ready__.remote().future()
        return events

    def _check(self, started: _Started) -> None:
        for column, fingerprint in started.fingerprints.items():
            if fingerprint != self._fingerprints[column]:
                raise UserError(
                    f"The scorer {column!r} on {started.node} is not the one of this job: its fingerprint is "
                    f"{fingerprint}, not {self._fingerprints[column]}. Install the same versions of its libraries and "
                    "the same weights on all machines."
                )


def _options(pool: Pool) -> dict[str, Any]:
    needs = {_RAY_OPTIONS[name]: need for name, need in pool.needs.items()}
    return {"max_restarts": 0, "max_task_retries": 0, "num_cpus": 0, **needs}


def _is_alive(node_id: str) -> bool:
    return any(node["NodeID"] == node_id and node["Alive"] for node in ask_with_timeout(ray.nodes) or [])


def _went_with_node(error: BaseException) -> bool:
    """Whether Ray says that the machine died or was taken away, or that the connection alone was lost."""
    if isinstance(error, NodeDiedError | ActorUnavailableError):
        return True
    return isinstance(error, ActorDiedError) and (error.preempted or "its node has died" in str(error))


def _cause_of_death(error: BaseException, *, with_node: bool) -> str:
    if with_node:
        return "its machine went away"
    if isinstance(error, OutOfMemoryError):
        return "Ray killed its process because the machine ran out of memory"
    return f"its process died ({type(error).__name__})"
