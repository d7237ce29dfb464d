"""The scheduler's backend as Ray actors. Ray restarts and retries nothing itself: the scheduler counts attempts."""

import itertools
import queue
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
from pipeline.labelling.resolve import ResolvedJob
from pipeline.labelling.scheduler.autoscaling import Pool
from pipeline.labelling.scheduler.backend import Event, Kind, event_of
from pipeline.labelling.workers.labelling_process import LabellingProcess, NotStarted, Started

# Seconds after which an actor that does not answer is given up if Ray has not reported it dead.
_UNREACHABLE_S = 60.0
_POLL_INTERVAL_S = 1.0

_RAY_OPTIONS = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}


class LabelActor(LabellingProcess):
    """A process that labels units. It returns failures as values, so that no exception carries text to Ray's logs."""

    def start(self) -> Started | NotStarted:
        """Build the scorers, and report the node too."""
        started = super().start()
        if isinstance(started, NotStarted):
            return started
        return replace(started, node_id=ray.get_runtime_context().get_node_id())


@dataclass
class _Actor:
    handle: Any
    group: str
    node_id: str = ""
    calls: "deque[Future[Any]]" = field(default_factory=deque)


@dataclass
class _Unreachable:
    """An actor that does not answer: it, its node or the network has failed, and Ray does not know yet which."""

    ping: "Future[Any]"
    give_up_at: float


class RayBackend:
    """Runs workers as Ray actors; see `pipeline.labelling.scheduler.backend.Backend`.

    Calls report their own completion, so that the cost of an event does not depend on the number of actors.

    Args:
        job: the job, with all units.
        staging: folder for staged parts, below the output.
        pools: resources of each group's actors.
    """

    def __init__(self, job: ResolvedJob, staging: str, pools: Mapping[str, Pool]) -> None:
        # Leave the units out: an actor gets each unit that it works on, not a million of them.
        self._job = ray.put(replace(job, plan=replace(job.plan, units=Units.of([]))))
        self._fingerprints = job.fingerprints
        self._staging = staging
        self._classes = {group: ray.remote(**_options(pool))(LabelActor) for group, pool in pools.items()}
        self._actors: dict[int, _Actor] = {}
        self._unreachable: dict[int, _Unreachable] = {}
        self._look_at = 0.0
        self._finished: queue.SimpleQueue[int] = queue.SimpleQueue()  # workers with a finished call
        self._names = itertools.count()
        self._staged = itertools.count()
        self._resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        self._head = HeadWatch(ray.get_runtime_context().gcs_address)

    def hire(self, group: str) -> int:
        """Create an actor."""
        number = next(self._names)
        self._actors[number] = _Actor(self._classes[group].remote(self._job, group), group)
        self._call(number, self._actors[number].handle.start.remote())
        return number

    def send(self, worker: int, unit: Unit, *, isolated: bool) -> None:
        """Send a unit to an actor, with a unique path for its staged part."""
        actor = self._actors[worker]
        staged = f"{self._staging}/{unit.name}.{actor.group}.{next(self._staged)}.parquet"
        self._call(worker, actor.handle.label.remote(unit, staged, isolated))

    def dismiss(self, worker: int) -> None:
        """Kill an actor."""
        self._unreachable.pop(worker, None)
        ray.kill(self._actors.pop(worker).handle)

    def wait(self, timeout: float) -> list[Event]:
        """Return the events of finished calls, after at most `timeout` seconds.

        Raises:
            UserError: an actor's scorers cannot be built, or are not those of the job.
            HeadLostError: the cluster has lost its head.
        """
        self._head.check()
        events = self._check_unreachable()
        try:
            worker = self._finished.get(block=not events, timeout=timeout)
            while True:
                events += self._events(worker)
                worker = self._finished.get_nowait()
        except queue.Empty:
            return events

    def resources(self) -> Mapping[str, float]:
        """The cluster's total resources, from the last successful query."""
        self._resources = ask_with_timeout(ray.cluster_resources) or self._resources
        return self._resources

    def _call(self, worker: int, call: Any) -> None:
        future: Future[Any] = call.future()
        self._actors[worker].calls.append(future)
        future.add_done_callback(lambda _: self._finished.put(worker))

    def _events(self, worker: int) -> list[Event]:
        """Turn an actor's finished calls into events, in call order."""
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
                result = call.result()
                if isinstance(result, Started):
                    actor.node_id = result.node_id
                events.append(event_of(worker, result, self._fingerprints))
        return events

    def _died(self, worker: int, error: BaseException) -> Event:
        node_id = self._actors[worker].node_id
        with_node = _is_node_loss(error) or (bool(node_id) and not _is_alive(node_id))
        self.dismiss(worker)
        return Event(Kind.DIED, worker, error=_cause_of_death(error, with_node=with_node), with_node=with_node)

    def _check_unreachable(self) -> list[Event]:
        """Find out what happened to unreachable actors; Ray takes some seconds to notice that a machine is gone."""
        if not self._unreachable or time.monotonic() < self._look_at:
            return []
        self._look_at = time.monotonic() + _POLL_INTERVAL_S
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


def _options(pool: Pool) -> dict[str, Any]:
    needs = {_RAY_OPTIONS[name]: need for name, need in pool.needs.items()}
    return {"max_restarts": 0, "max_task_retries": 0, "num_cpus": 0, **needs}


def _is_alive(node_id: str) -> bool:
    return any(node["NodeID"] == node_id and node["Alive"] for node in ask_with_timeout(ray.nodes) or [])


def _is_node_loss(error: BaseException) -> bool:
    """Whether Ray reports that the node died or was preempted, or only that the connection was lost."""
    if isinstance(error, NodeDiedError | ActorUnavailableError):
        return True
    return isinstance(error, ActorDiedError) and (error.preempted or "its node has died" in str(error))


def _cause_of_death(error: BaseException, *, with_node: bool) -> str:
    if with_node:
        return "its machine went away"
    if isinstance(error, OutOfMemoryError):
        return "Ray killed its process because the machine ran out of memory"
    return f"its process died ({type(error).__name__})"
