"""The figures for `phf status`: workers and units, and a status file that stays fresh and belongs to one driver."""

import io
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from pipeline.checking.status import JobStatus, watch_status
from pipeline.commands.status_view import status_view
from pipeline.corpus.plan import Unit
from pipeline.job.epoch import Epoch
from pipeline.job.run_status import PROGRESS, RunStatus, read_status
from pipeline.job.unit_records import UnitRecord
from pipeline.labelling.monitoring.progress import Activity, Progress
from pipeline.labelling.monitoring.status_file import StatusFile, status_of
from pipeline.labelling.scheduler.autoscaling import Pool
from pipeline.labelling.scheduler.events import (
    UnitCommitted,
    UnitGivenUp,
    UnitSent,
    UnitStaged,
    WorkerHired,
    WorkerLost,
    WorkerReady,
)
from pipeline.labelling.scheduler.scheduler import Scheduler
from pipeline.labelling.workers.worker import PartResult
from pipeline.storage.open import open_storage
from tests.pipeline.committed import commit_units
from tests.pipeline.label_job import wait_for
from tests.pipeline.simulation import PART, SimulatedBackend, part_of, units


def record(unit: int) -> UnitRecord:
    return UnitRecord(unit=unit, epoch=1, parts=[PART], records=1, empty=0, sentences=1, bytes_text=1, quarantined=[])


class Checking:
    """Compares an activity with the state of the backend."""

    def __init__(self, backend: SimulatedBackend, activity: Activity, total: int) -> None:
        self.backend = backend
        self.activity = activity
        self.total = total
        self.committed = 0

    def check(self) -> None:
        states = Counter(
            (worker.group, "working" if worker.units else "idle" if worker.ready else "starting")
            for worker in self.backend.workers.values()
        )
        shown = {(group, state): n for group, each in self.activity.workers().items() for state, n in each.items() if n}
        assert shown == dict(states)
        assert self.activity.working == sum(n for (_, state), n in states.items() if state == "working")
        for backlog in self.activity.backlog().values():
            assert 0 <= backlog <= self.total - self.committed


@pytest.mark.parametrize("groups", [{"cpu": 3}, {"cpu": 3, "gpu": 1}])
@given(fates=st.lists(st.sampled_from(["done", "done", "done", "raise", "die"]), min_size=1, max_size=40))
def test_activity_matches_the_workers_of_the_backend(groups: dict[str, int], fates: list[str]) -> None:
    total = 30
    backend = SimulatedBackend(
        seconds=lambda unit, group: 1.0 + unit.index % 3 + len(group),
        fate=lambda unit, group, attempt: fates[(unit.index * 7 + attempt) % len(fates)] if attempt == 1 else "done",
    )
    activity = Activity(list(groups), total)
    checking = Checking(backend, activity, total)

    def complete(unit: Unit, parts: Sequence[PartResult]) -> None:
        checking.committed += 1
        activity(UnitCommitted(unit, record(unit.index), parts))

    scheduler = Scheduler(
        backend,
        {group: Pool.of(each) for group, each in groups.items()},
        complete,
        clock=backend.clock,
        observer=activity,
    )
    scheduler.run(units(total), checking.check)
    assert checking.committed == total
    assert activity.open_units == 0
    assert set(activity.backlog().values()) == {0}
    raised = sum(fates[(index * 7 + 1) % len(fates)] in {"raise", "die"} for index in range(total))
    assert activity.failed_attempts.total() == raised * len(groups)
    assert activity.workers() == {group: {"starting": 0, "idle": 0, "working": 0} for group in groups}


def test_a_given_up_unit_is_in_no_backlog() -> None:
    activity = Activity(["cpu", "gpu"], 3)
    first, second, third = units(3)
    activity(WorkerHired(1, "cpu"))
    activity(WorkerReady(1, "cpu", "node"))
    assert activity.workers()["cpu"] == {"starting": 0, "idle": 1, "working": 0}
    activity(UnitSent(first, "cpu", 1, 1, isolated=False))
    activity(UnitStaged(first, "cpu", 1, 1, part_of(first, "cpu"), 1.0))
    assert (activity.open_units, activity.backlog()) == (1, {"cpu": 2, "gpu": 3})
    activity(WorkerHired(2, "gpu"))
    activity(UnitSent(first, "gpu", 2, 3, isolated=True))
    activity(WorkerLost(2, "gpu", "its process died", unit=first, counted=True))
    activity(UnitGivenUp(first, "gpu", 3, "its process died"))
    assert (activity.open_units, activity.backlog()) == (0, {"cpu": 2, "gpu": 2})
    assert [failure.error for failure in activity.failures] == ["its process died", "given up: its process died"]
    assert activity.failed_attempts == {"gpu": 1}
    assert activity.given_up_units == [first.name]
    assert (second.name, third.name) == ("00000001", "00000002")


def test_figures_stay_fresh_while_the_driver_is_busy(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    assert read_status(storage) is None
    epoch = Epoch.claim(storage)
    with StatusFile(epoch, every_s=0.05) as file:
        progress = Progress(units=10, before=5, workers=2)
        file.show(status_of(epoch, "run", "labelling", progress))
        wait_for(lambda: read_status(storage) is not None)
        first = read_status(storage)
        assert first is not None
        # The driver is busy.
        wait_for(lambda: (later := read_status(storage)) is not None and later.written > first.written)
        progress.add(record(0), [])
        file.show(status_of(epoch, "run", "done", progress), at_once=True)
        status = read_status(storage)
        assert status is not None
        assert (status.state, status.epoch, status.committed, status.records) == ("done", 1, 6, 1)
    storage.put(PROGRESS, b"{")
    time.sleep(0.2)
    assert read_status(storage) is None, "nothing is written afterwards, and what is damaged is no figure"


def test_an_older_driver_does_not_overwrite_the_newer_ones_figures(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    old = Epoch.claim(storage)
    with StatusFile(old, every_s=0.02) as file:
        file.show(status_of(old, "old", "labelling", Progress(units=1, before=0, workers=1)), at_once=True)
        new = Epoch.claim(storage)
        with StatusFile(new) as newer:
            newer.show(status_of(new, "new", "labelling", Progress(units=1, before=0, workers=1)), at_once=True)
        time.sleep(0.2)
        status = read_status(storage)
    assert status is not None
    assert status.run == "new"


def test_a_failing_storage_does_not_stop_the_figures(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path / "output"))
    epoch = Epoch.claim(storage)
    job = tmp_path / "output" / "job"
    with StatusFile(epoch, every_s=0.02) as file:
        (job / "progress.json").mkdir()
        (job / "progress.json" / "in-the-way").touch()
        file.show(status_of(epoch, "run", "labelling", Progress(units=1, before=0, workers=1)), at_once=True)
        (job / "progress.json" / "in-the-way").unlink()
        (job / "progress.json").rmdir()
        wait_for(lambda: read_status(storage) is not None)


def run_status(state: str, silent_s: float = 0.0) -> RunStatus:
    made = status_of(Epoch(None, 1), "run", state, Progress(units=3, before=0, workers=2))  # type: ignore[arg-type]
    return made.model_copy(update={"written": datetime.now(UTC) - timedelta(seconds=silent_s)})


@pytest.mark.parametrize(
    ("state", "silent_s", "shown"),
    [
        ("starting", 0, "running"),
        ("labelling", 20, "running"),
        ("labelling", 31, "stopped"),
        ("sealing", 20, "running"),
        ("sealing", 40, "stopped"),
        ("stopped", 0, "stopped"),
        ("incomplete", 0, "stopped"),
        ("labelling", -60, "running"),  # its clock is ahead
    ],
)
def test_a_job_is_running_while_its_figures_are_fresh(tmp_path: Path, state: str, silent_s: float, shown: str) -> None:
    made = commit_units(tmp_path, [[{"text": "One.", "toxicity": [0.1]}], [{"text": "Two.", "toxicity": [0.1]}]])
    storage = made.epoch.storage
    made.write_job()
    storage.put(PROGRESS, run_status(state, silent_s).model_dump_json().encode())
    looks = watch_status(storage)
    found = next(looks)
    assert (found.state, found.units, found.committed, found.records) == (shown, 2, 2, 2)
    storage.put(PROGRESS, run_status("stopped").model_dump_json().encode())
    assert next(looks).state == "stopped"


def test_the_view_of_a_running_job() -> None:
    activity = Activity(["cpu", "toxicity"], 900)
    moment = datetime(2026, 5, 4, 12, 30, 1, tzinfo=UTC)
    for worker, group in enumerate(["cpu", "cpu", "cpu", "toxicity"]):
        activity(WorkerHired(worker, group))
        if worker:
            activity(WorkerReady(worker, group, "node"))
        if worker > 1:
            activity(UnitSent(units(5)[worker], group, worker, 1, isolated=False))
    activity(WorkerLost(2, "cpu", "its process died [oom]", unit=units(3)[2], counted=True))
    now = 1000.0
    progress = Progress(units=1000, before=100, workers=4, activity=activity, clock=lambda: now)
    now += 10
    progress.add(record(0), [part_of(units(1)[0], "pii")])
    run = status_of(Epoch(None, 1), "run", "labelling", progress)  # type: ignore[arg-type]
    run = run.model_copy(update={"failures": [each.model_copy(update={"at": moment}) for each in run.failures]})
    status = JobStatus(
        output="s3://bucket/labelled",
        state="running",
        units=1000,
        committed=101,
        records=1010,
        sentences=9000,
        empty=3,
        quarantined={"deadline": 2, "not-json": 10},
        sources_cut=1,
        run=run.model_copy(update={"host": "head", "pid": 17}),
        silent_s=2.0,
    )
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(status_view(status))
    shown = [line.rstrip() for line in console.export_text().splitlines()]
    assert shown == [
        "s3://bucket/labelled: labelling on head, process 17; last update 2.0 s ago.",
        "",
        "units             101 of 1,000 committed (10%), 2 begun",
        "records           1,010, 3 of them empty",
        "sentences         9,000",
        "quarantined       12 (deadline 2, not-json 10)",
        "cut inputs        1 not read whole",
        "this run          0.1 records/s lately, 0.1 records/s over 10 s",
        "left              2 h 29 min",
        "workers cpu       1 idle, 1 starting; 900 units waiting",
        "workers toxicity  1 working; 899 units waiting",
        "slowest scorer    pii, 100% of the workers' time",
        "failed            1 attempt, 0 units given up",
        "                  12:30:01 UTC, unit 00000002, cpu: its process died [oom]",
    ]
