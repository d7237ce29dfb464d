"""The cost of scheduling: with a thousand simulated workers and a million units, and with real workers.

The scheduler is the real one. A simulated worker answers at once; a real one is a Ray actor with a scorer that sleeps.
"""

import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.corpus.plan import Unit
from pipeline.labelling.resolve import ResolvedJob, groups_of, resolve_config
from pipeline.labelling.scheduler.autoscaling import Pool
from pipeline.labelling.scheduler.backend import Event, Kind
from pipeline.labelling.scheduler.events import RunEvent, UnitStaged
from pipeline.labelling.scheduler.scheduler import Scheduler
from pipeline.labelling.workers.worker import PartResult, UnitLabeller
from tests.benchmarks.measure import Comparison, compare
from tests.pipeline import probe

WORKERS, UNITS = 1000, 1_000_000


class InstantBackend:
    """Simulated workers that finish the oldest units at once, with as little work as possible."""

    def __init__(self, batch: int = 64) -> None:
        self._batch = batch
        self._names = itertools.count()
        self._given: dict[tuple[int, int], None] = {}
        self._events: list[Event] = []
        self.now = 0.0

    def clock(self) -> float:
        return self.now

    def hire(self, group: str) -> int:
        number = next(self._names)
        self._events.append(Event(Kind.READY, number))
        return number

    def send(self, worker: int, unit: Unit, *, isolated: bool) -> None:
        self._given[worker, unit.index] = None

    def dismiss(self, worker: int) -> None:
        pass

    def resources(self) -> dict[str, float]:
        return {}

    def wait(self, timeout: float) -> list[Event]:
        self.now += 0.01
        events, self._events = self._events, []
        for worker, unit in list(itertools.islice(self._given, self._batch)):
            del self._given[worker, unit]
            events.append(Event(Kind.DONE, worker, part=part(unit)))
        return events


def part(unit: int) -> PartResult:
    return PartResult(unit, "cpu", "", 1, "", 1, 1, 0, 1, 1, [], {})


def simulate(units: int, workers: int) -> None:
    """Run units through the real scheduler; they are made as it requests them."""
    backend = InstantBackend()
    count = 0

    def complete(unit: Unit, parts: Sequence[PartResult]) -> None:
        nonlocal count
        count += 1

    scheduler = Scheduler(backend, {"cpu": Pool.of(workers)}, complete, clock=backend.clock)
    scheduler.run(Unit(index, ()) for index in range(units))
    assert count == units


def bare(units: int, workers: int) -> None:
    """The same events and sends without a scheduler."""
    backend = InstantBackend()
    for worker in range(workers):
        backend.hire("cpu")
        backend.send(worker, Unit(worker, ()), isolated=False)
    done, index = 0, workers
    while done < units:
        for event in backend.wait(1.0):
            if event.part is not None:
                done += 1
                if index < units:
                    backend.send(event.worker, Unit(index, ()), isolated=False)
                    index += 1


class Stopwatch:
    """Count units and time from when every worker has done one: by then, scorers have loaded what they load lazily."""

    def __init__(self, workers: int) -> None:
        self._cold = set(range(workers))
        self._began = self._ended = 0.0
        self._done = 0

    def __call__(self, event: RunEvent) -> None:
        if not isinstance(event, UnitStaged):
            return
        now = time.perf_counter()
        if self._cold:
            self._cold.discard(event.worker)
            self._began = now
        else:
            self._done += 1
            self._ended = now

    @property
    def rate(self) -> float:
        return self._done / (self._ended - self._began)


def job(folder: Path, units: int, delay_s: float) -> ResolvedJob:
    """A job of units of one record each, with a scorer that only sleeps `delay_s` per unit."""
    from pipeline.config import LabelConfig
    from pipeline.corpus.cut_units import make_plan

    corpus = folder / f"{units}.jsonl"
    corpus.write_text("".join(json.dumps({"text": f"One of {index}. Two."}) + "\n" for index in range(units)))
    config = LabelConfig.model_validate(
        {
            "inputs": [str(corpus)],
            "output": str(folder / "labelled"),
            "scorers": {"probe": {"kind": "probe", "delay_s": delay_s}},
            "unit_size": 1,
        }
    )
    config = resolve_config(config)
    plan = make_plan(config)
    assert len(plan.units) == units
    return ResolvedJob(config, plan, groups_of(config), {})


def on_ray(job: ResolvedJob, workers: int) -> float:
    """Units per second with `workers` actors."""
    from pipeline.labelling.on_ray.actors import RayBackend

    pools = {"cpu": Pool(workers, workers, {"CPU": 1.0})}
    fingerprints = {column: scorer.fingerprint for column, scorer in UnitLabeller(job, "cpu").scorers.items()}
    watch = Stopwatch(workers)
    backend = RayBackend(replace(job, fingerprints=fingerprints), "staging", pools)
    Scheduler(backend, pools, lambda unit, parts: None, observer=watch).run(job.plan.units)
    return watch.rate


def alone(job: ResolvedJob) -> float:
    """Units per second of the same work in this process."""
    labeller = UnitLabeller(job, "cpu")
    began = time.perf_counter()
    for unit in job.plan.units:
        labeller.label(unit, f"staging/{unit.name}.alone.parquet")
    return len(job.plan.units) / (time.perf_counter() - began)


def run() -> Iterator[Comparison]:
    yield compare(
        f"schedule for {WORKERS:,} workers, against the simulated workers alone",
        "units/s",
        UNITS,
        lambda: simulate(UNITS, WORKERS),
        lambda: bare(UNITS, WORKERS),
        rounds=1,
    )
    few = UNITS // 10
    yield compare(
        f"schedule for {WORKERS:,} workers, against 10",
        "units/s",
        few,
        lambda: simulate(few, WORKERS),
        lambda: simulate(few, 10),
        rounds=3,
    )
    yield from _run_on_ray()


def _run_on_ray() -> Iterator[Comparison]:
    from pipeline.labelling.on_ray.cluster import ray_cluster

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        probe.install(folder / "packages")
        sys.path.append(str(folder / "packages"))
        os.environ["PYTHONPATH"] = os.pathsep.join(each for each in sys.path if each)
        os.environ[probe.LOG] = str(folder / "log")
        with ray_cluster(None, 2):
            idle, asleep = job(folder, 500, 0.0), job(folder, 60, 0.5)
            rates = [(on_ray(idle, 1), alone(idle)) for _ in range(3)]
            yield Comparison("unit of an idle scorer on Ray, against in process", "units/s", *zip(*rates, strict=True))
            rates = [(on_ray(asleep, 2) / 2, on_ray(asleep, 1)) for _ in range(3)]
            yield Comparison("a sleeping scorer: each of 2 actors, against 1", "units/s", *zip(*rates, strict=True))
