"""The scheduler with simulated workers and a simulated clock."""

import time
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpus.plan import Unit
from pipeline.labelling.scheduler.autoscaling import Pool
from pipeline.labelling.scheduler.scheduler import Scheduler
from scorers.errors import IncompleteError
from tests.pipeline.simulation import Completed, Recorded, SimulatedBackend, units


def schedule(
    backend: SimulatedBackend, workers: dict[str, int], count: int, **options: Any
) -> tuple[Completed, Scheduler]:
    completed = Completed()
    pools = {group: Pool.of(count) for group, count in workers.items()}
    scheduler = Scheduler(backend, pools, completed, clock=backend.clock, **options)
    scheduler.run(units(count))
    assert backend.workers == {}, "every worker is dismissed at the end"
    return completed, scheduler


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_every_unit_is_done_once_and_handed_out_in_order(workers: int) -> None:
    backend = SimulatedBackend(seconds=lambda unit, group: 1 + unit.index % 3)
    completed, scheduler = schedule(backend, {"cpu": workers}, 50)
    assert sorted(completed.parts) == list(range(50))
    assert set(backend.begun.values()) == {1}
    assert scheduler.failures == []
    # Each worker queues one unit, so that units begin in order except for those.
    assert all(abs(position - index) <= 2 * workers for position, index in enumerate(backend.order["cpu"]))
    assert backend.hired == workers


def test_nothing_to_do_ends_at_once() -> None:
    completed, _ = schedule(SimulatedBackend(), {"cpu": 2}, 0)
    assert completed.parts == {}


def test_workers_are_never_idle_while_there_is_work() -> None:
    backend = SimulatedBackend()
    schedule(backend, {"cpu": 8}, 800)
    assert backend.now == pytest.approx(0.5 + 100, abs=2)


def test_at_the_end_no_unit_waits_behind_a_busy_worker() -> None:
    # One unit takes ten times as long as the others; its worker must not have another one queued.
    backend = SimulatedBackend(seconds=lambda unit, group: 10.0 if unit.index == 6 else 1.0)
    schedule(backend, {"cpu": 4}, 8)
    assert backend.now == pytest.approx(0.5 + 1 + 10, abs=0.1)


def test_a_unit_is_complete_with_the_parts_of_all_groups_in_their_order() -> None:
    backend = SimulatedBackend(seconds=lambda unit, group: 5.0 if group == "toxicity" else 0.1)
    completed, _ = schedule(backend, {"cpu": 2, "toxicity": 1}, 30)
    assert set(map(tuple, completed.parts.values())) == {("cpu", "toxicity")}
    assert len(completed.parts) == 30


def test_a_fast_group_waits_for_a_slow_one() -> None:
    ahead = 0

    def seconds(unit: Unit, group: str) -> float:
        nonlocal ahead
        if group == "cpu":
            ahead = max(ahead, unit.index - max(backend.order.get("toxicity", [0])))
        return 10.0 if group == "toxicity" else 0.01

    backend = SimulatedBackend(seconds=seconds)
    schedule(backend, {"cpu": 2, "toxicity": 1}, 200)
    assert 3 <= ahead <= 4 * 3


def test_a_dead_worker_is_replaced_and_its_unit_tried_again() -> None:
    backend = SimulatedBackend(fate=lambda unit, group, attempt: "die" if unit.index == 3 and attempt < 3 else "done")
    notes: list[str] = []
    completed, scheduler = schedule(backend, {"cpu": 2}, 10, notify=notes.append)
    assert sorted(completed.parts) == list(range(10))
    assert scheduler.failures == []
    assert backend.begun[3, "cpu"] == 3
    assert backend.hired == 4
    assert [note for note in notes if "Unit 00000003 is retried record by record" in note]
    # After its first loss this unit, and no other, is tried record by record.
    assert backend.isolated == [(3, "cpu"), (3, "cpu")]


@pytest.mark.parametrize(("fate", "begun"), [("die", 3), ("hang", 3), ("raise", 2)])
def test_a_unit_that_fails_as_a_whole_is_given_up_and_the_others_are_done(fate: str, begun: int) -> None:
    backend = SimulatedBackend(fate=lambda unit, group, attempt: fate if unit.index == 3 else "done")
    completed, scheduler = schedule(backend, {"cpu": 2}, 10, attempts=2, unit_deadline_s=30)
    assert sorted(completed.parts) == [index for index in range(10) if index != 3]
    assert [(each.unit.index, each.group, each.attempts) for each in scheduler.failures] == [(3, "cpu", 2)]
    # A unit that lost a worker is then tried record by record with all its attempts.
    assert backend.begun[3, "cpu"] == begun
    # Units queued behind the poisoned one have lost no attempt: each was begun once.
    assert all(begun == 1 for (index, _), begun in backend.begun.items() if index != 3)


def test_a_unit_given_up_in_one_group_is_not_handed_to_another() -> None:
    backend = SimulatedBackend(
        seconds=lambda unit, group: 1.0 if group == "toxicity" else 0.1,
        fate=lambda unit, group, attempt: "raise" if (unit.index, group) == (5, "cpu") else "done",
    )
    completed, scheduler = schedule(backend, {"cpu": 1, "toxicity": 1}, 8, attempts=1)
    assert sorted(completed.parts) == [0, 1, 2, 3, 4, 6, 7]
    assert [each.unit.index for each in scheduler.failures] == [5]
    assert backend.begun[5, "toxicity"] == 0


def test_a_unit_lost_with_its_node_loses_no_attempt() -> None:
    # The unit loses six nodes, but is neither given up nor isolated, although it has only one attempt.
    backend = SimulatedBackend(
        fate=lambda unit, group, attempt: "lose-node" if unit.index == 3 and attempt <= 6 else "done"
    )
    completed, scheduler = schedule(backend, {"cpu": 2}, 10, attempts=1)
    assert len(completed.parts) == 10
    assert scheduler.failures == []
    assert backend.isolated == []


def test_a_unit_that_loses_node_after_node_is_finally_isolated() -> None:
    backend = SimulatedBackend(fate=lambda unit, group, attempt: "lose-node" if unit.index == 3 else "done")
    completed, scheduler = schedule(backend, {"cpu": 2}, 10, attempts=2)
    assert len(completed.parts) == 9
    assert [each.unit.index for each in scheduler.failures] == [3]
    # Ten node losses are free; the next isolates the unit, and two more use up its attempts.
    assert backend.begun[3, "cpu"] == 10 + 1 + 2


def test_workers_lost_with_their_nodes_while_starting_do_not_end_the_job() -> None:
    backend = SimulatedBackend(start=lambda number: "ready" if number >= 8 else "lose-node")
    completed, _ = schedule(backend, {"cpu": 2}, 10)
    assert len(completed.parts) == 10


def test_a_unit_tried_record_by_record_has_more_time() -> None:
    # The first hang exceeds the deadline of 30 s; 200 s record by record do not.
    backend = SimulatedBackend(
        seconds=lambda unit, group: 200.0 if backend.begun[unit.index, group] > 1 else 5.0,
        fate=lambda unit, group, attempt: "hang" if unit.index == 3 and attempt == 1 else "done",
    )
    completed, scheduler = schedule(backend, {"cpu": 2}, 10, unit_deadline_s=30)
    assert len(completed.parts) == 10
    assert scheduler.failures == []


def test_a_deadline_counts_from_when_the_worker_begins_the_unit() -> None:
    backend = SimulatedBackend(seconds=lambda unit, group: 9.0)
    completed, scheduler = schedule(backend, {"cpu": 1}, 6, unit_deadline_s=10)
    assert len(completed.parts) == 6
    assert scheduler.failures == []


def test_workers_that_die_while_starting_end_the_job() -> None:
    with pytest.raises(IncompleteError, match="die while starting: no model"):
        schedule(SimulatedBackend(start=lambda number: "die"), {"cpu": 2}, 10)


def test_an_occasional_death_while_starting_does_not_end_the_job() -> None:
    completed, _ = schedule(SimulatedBackend(start=lambda number: "ready" if number % 2 else "die"), {"cpu": 2}, 10)
    assert len(completed.parts) == 10


def test_many_failed_units_in_a_row_end_the_job() -> None:
    backend = SimulatedBackend(fate=lambda unit, group, attempt: "raise")
    with pytest.raises(IncompleteError, match=r"10 units in a row failed.*ValueError"):
        schedule(backend, {"cpu": 2}, 1000)
    assert backend.begun.total() < 40


def test_an_exception_in_complete_ends_the_job() -> None:
    def refuse(unit: Unit, parts: object) -> None:
        raise IncompleteError("no space")

    backend = SimulatedBackend()
    with pytest.raises(IncompleteError, match="no space"):
        Scheduler(backend, {"cpu": Pool.of(3)}, refuse, clock=backend.clock).run(units(10))
    assert backend.workers == {}


def stop_at(second: float, grace_s: float, **options: Any) -> tuple[SimulatedBackend, Completed]:
    backend = SimulatedBackend(**options)
    completed = Completed()
    scheduler = Scheduler(backend, {"cpu": Pool.of(3)}, completed, clock=backend.clock)

    def tick() -> None:
        if backend.now >= second and not scheduler.stopping:
            scheduler.stop(grace_s)

    scheduler.run(units(100), tick)
    assert scheduler.stopping
    assert backend.workers == {}
    return backend, completed


def test_stopping_finishes_the_units_being_worked_on_and_hands_out_no_more() -> None:
    backend, completed = stop_at(5.0, grace_s=10)
    begun = {index for index, _ in backend.begun}
    assert set(completed.parts) >= begun - set(sorted(begun)[-3:])
    assert backend.now < 8


def test_stopping_does_not_wait_longer_than_the_grace() -> None:
    backend, completed = stop_at(5.0, grace_s=4, seconds=lambda unit, group: 1000.0)
    assert completed.parts == {}
    assert 9 <= backend.now <= 11


Fates = st.dictionaries(
    st.tuples(st.integers(0, 29), st.integers(1, 6)), st.sampled_from(["die", "raise", "hang", "lose-node"])
)


def is_given_up(fates: Mapping[tuple[int, int], str], index: int) -> bool:
    """The rule restated: raised three times; or lost once, then failed three times other than with a node."""
    used, isolated = 0, False
    for attempt in range(1, 8):
        match fates.get((index, attempt)):
            case None:
                return False
            case "lose-node":
                continue
            case "die" | "hang" if not isolated:
                used, isolated = 0, True
            case _:
                used += 1
        if used == 3:
            return True
    return False


@settings(max_examples=200)
@given(
    fates=Fates,
    seconds=st.lists(st.floats(0.01, 20.0), min_size=30, max_size=30),
    workers=st.integers(1, 5),
    second_group=st.integers(0, 2),
)
def test_every_unit_is_completed_once_or_given_up_whatever_happens(
    fates: dict[tuple[int, int], str], seconds: list[float], workers: int, second_group: int
) -> None:
    backend = SimulatedBackend(
        seconds=lambda unit, group: seconds[unit.index],
        fate=lambda unit, group, attempt: fates.get((unit.index, attempt), "done"),
    )
    groups = {"cpu": Pool.of(workers)} | ({"toxicity": Pool.of(second_group)} if second_group else {})
    completed = Completed()
    recorded = Recorded()
    scheduler = Scheduler(backend, groups, completed, clock=backend.clock, unit_deadline_s=25, observer=recorded)
    try:
        scheduler.run(units(30))
    except IncompleteError:
        assert len(scheduler.failures) >= 10
        return
    doomed = {index for index in range(30) if is_given_up(fates, index)}
    assert {each.unit.index for each in scheduler.failures} == doomed
    assert set(completed.parts) == set(range(30)) - doomed
    assert backend.most_in_flight <= 2 * (workers + second_group)
    assert backend.workers == {}
    # The events account for every worker and every attempt.
    assert len(recorded.workers) == backend.hired
    assert set(recorded.workers.values()) <= {"lost", "dismissed"}
    assert recorded.doomed == doomed
    assert recorded.parts.total() >= len(completed.parts) * len(groups)


def test_units_are_pulled_as_they_are_needed() -> None:
    backend = SimulatedBackend()
    completed = Completed()
    ahead = 0

    def coming() -> Iterator[Unit]:
        nonlocal ahead
        for unit in units(500):
            ahead = max(ahead, unit.index - len(completed.parts))
            yield unit

    Scheduler(backend, {"cpu": Pool.of(5)}, completed, clock=backend.clock).run(coming())
    assert len(completed.parts) == 500
    assert ahead <= 4 * 5


def test_a_thousand_workers_cost_the_driver_little() -> None:
    backend = SimulatedBackend(seconds=lambda unit, group: 1.0 + unit.index % 7 / 10)
    count = 20_000
    began = time.process_time()
    completed, _ = schedule(backend, {"cpu": 1000}, count)
    per_unit = (time.process_time() - began) / count
    assert len(completed.parts) == count
    assert per_unit < 0.0005
