"""Pools of workers: their configuration, and how they grow and shrink, on a simulated clock."""

from collections.abc import Callable
from typing import Any

import pytest

from pipeline.config import LabelExecution
from pipeline.labelling.scheduler.autoscaling import Pool, local_ray_cpus, missing_resources, most_workers, pools_of
from pipeline.labelling.scheduler.scheduler import Scheduler
from scorers.doctor import machine
from scorers.doctor.machine import usable_cores
from tests.pipeline.simulation import Completed, Recorded, SimulatedBackend, units

ONE_CPU = {"CPU": 1.0}
HALF_A_GPU = {"GPU": 0.5}


def pools(units: int = 1000, groups: tuple[str, ...] = ("cpu", "toxicity"), **execution: Any) -> dict[str, Pool]:
    return pools_of(LabelExecution.model_validate(execution), groups, units)


def test_workers_sets_a_fixed_number() -> None:
    assert pools(workers=3, threads=2, groups=("cpu",)) == {"cpu": Pool(3, 3, {"CPU": 2.0})}
    assert pools(workers=3, units=2, groups=("cpu",)) == {"cpu": Pool(2, 2, {"CPU": 1.0})}


def test_a_device_alone_gives_a_pool_with_one_gpu_per_worker() -> None:
    assert pools(pools={"toxicity": "cuda"}) == {"cpu": Pool(1, 1000, ONE_CPU), "toxicity": Pool(1, 1000, {"GPU": 1.0})}


def test_a_pool_sets_the_resources_of_each_worker() -> None:
    configured = {"device": "cuda:0", "cpus": 2, "gpus": 0.5, "memory": "4GB", "min": 2, "max": 8}
    assert pools(pools={"toxicity": configured})["toxicity"] == Pool(2, 8, {"CPU": 2.0, "GPU": 0.5, "memory": 4e9})


def test_a_pool_gets_the_room_beside_the_minimum_of_all_others() -> None:
    configured = {"cpu": Pool(1, None, ONE_CPU), "pii": Pool(2, 3, {"CPU": 2.0}), "toxicity": Pool(1, None, HALF_A_GPU)}
    assert most_workers(configured, {"CPU": 16, "GPU": 2}) == {"cpu": 12, "pii": 3, "toxicity": 4}
    # Never below the minimum, however small the cluster is: it may grow once they are requested.
    assert most_workers(configured, {"CPU": 1}) == {"cpu": 1, "pii": 2, "toxicity": 1}


def test_missing_resources_are_described_by_pool() -> None:
    configured = {"cpu": Pool(1, None, ONE_CPU), "toxicity": Pool(1, 1, {"GPU": 1.0, "memory": 8e9})}
    assert missing_resources(configured, {"CPU": 1, "GPU": 1, "memory": 1e10}) == {}
    assert missing_resources(configured, {"CPU": 1}) == {"toxicity": "1 GPU per worker, 8 GB of memory per worker"}


def test_a_local_ray_has_room_for_every_pool() -> None:
    fixed = LabelExecution.model_validate({"workers": 2, "threads": 3})
    assert local_ray_cpus(fixed, pools_of(fixed, ["cpu", "pii"], 10)) == 9
    free = LabelExecution.model_validate({"pools": {"pii": {"cpus": 4096}}})
    assert local_ray_cpus(free, pools_of(free, ["cpu", "pii"], 10)) == 4097
    assert local_ray_cpus(LabelExecution(), pools_of(LabelExecution(), ["cpu"], 10)) == usable_cores()


@pytest.mark.parametrize(
    ("cores", "limit", "usable"), [({1, 5, 9}, None, 3), (set(range(64)), 2.5, 2), ({0}, 8.0, 1), ({0, 1}, 0.5, 1)]
)
def test_a_local_ray_has_the_usable_cores_and_room_for_every_pool(
    cores: set[int], limit: float | None, usable: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: cores)
    monkeypatch.setattr(machine, "cgroup_cores", lambda: limit)
    free = LabelExecution()
    assert local_ray_cpus(free, pools_of(free, ["cpu"], 10)) == usable
    assert local_ray_cpus(free, pools_of(free, ["cpu", "pii", "toxicity", "pep8"], 10)) == max(usable, 4)


def run(
    backend: SimulatedBackend, configured: dict[str, Pool], count: int, tick: Callable[[], None] = lambda: None
) -> tuple[Recorded, list[str]]:
    completed, recorded, notes = Completed(), Recorded(), list[str]()
    scheduler = Scheduler(backend, configured, completed, clock=backend.clock, observer=recorded, notify=notes.append)
    scheduler.run(units(count), tick)
    assert len(completed.parts) == count
    assert scheduler.failures == []
    assert backend.workers == {}
    return recorded, notes


def test_a_bottleneck_pool_grows_to_its_bound_and_no_further() -> None:
    backend = SimulatedBackend(
        seconds=lambda unit, group: 8.0 if group == "toxicity" else 1.0, resources={"CPU": 2, "GPU": 4}
    )
    recorded, _ = run(backend, {"cpu": Pool(2, 2, ONE_CPU), "toxicity": Pool(1, 6, HALF_A_GPU)}, 400)
    assert recorded.sizes == {"cpu": [2], "toxicity": [1, 2, 4, 6]}
    # 400 units of 8 s on six workers, plus some seconds until there are six.
    assert backend.now < 400 * 8 / 6 + 60


def test_a_pool_grows_only_where_the_cluster_has_room() -> None:
    backend = SimulatedBackend(seconds=lambda unit, group: 8.0 if group == "pii" else 1.0, resources={"CPU": 5})
    recorded, _ = run(backend, {"cpu": Pool(2, 2, ONE_CPU), "pii": Pool(1, None, ONE_CPU)}, 200)
    assert recorded.sizes["pii"][-1] == 3


def test_an_idle_pool_shrinks_to_its_minimum_and_makes_room_for_the_bottleneck() -> None:
    # At first the base group has all CPUs; then the scorer of the other group turns out to be the bottleneck.
    backend = SimulatedBackend(seconds=lambda unit, group: 10.0 if group == "pii" else 0.1, resources={"CPU": 8})
    recorded, _ = run(backend, {"cpu": Pool(1, None, ONE_CPU), "pii": Pool(1, None, ONE_CPU)}, 300)
    assert recorded.sizes["cpu"][0] == 7
    assert recorded.sizes["cpu"][-1] == 1
    assert max(recorded.sizes["pii"]) == 7


def test_the_base_pool_follows_the_cluster_as_nodes_join_and_leave() -> None:
    backend = SimulatedBackend(resources={"CPU": 2})
    sizes: dict[int, int] = {}

    def tick() -> None:
        backend.capacity = {"CPU": 2} if backend.now < 60 else {"CPU": 16} if backend.now < 150 else {"CPU": 4}
        sizes[int(backend.now)] = len(backend.workers)

    recorded, notes = run(backend, {"cpu": Pool(1, None, ONE_CPU)}, 3000, tick)
    assert sizes[50] == 2
    assert sizes[120] == 16
    # No busy worker is killed because the cluster has shrunk; only workers lost with their node are not replaced.
    assert sizes[170] <= 16
    assert "lost" not in recorded.workers.values()
    assert notes == []


def test_workers_lost_with_nodes_are_replaced_only_if_there_is_room() -> None:
    backend = SimulatedBackend(
        fate=lambda unit, group, attempt: "lose-node" if unit.index in range(100, 112) and attempt == 1 else "done",
        start=lambda number: "ready" if number < 16 else "never",
        resources={"CPU": 16},
    )

    def tick() -> None:
        if backend.begun[111, "cpu"]:
            backend.capacity = {"CPU": 4}

    recorded, _ = run(backend, {"cpu": Pool(1, None, ONE_CPU)}, 400, tick)
    assert recorded.sizes["cpu"][-1] <= 4
    assert list(recorded.workers.values()).count("lost") == 12


def test_a_pool_that_waits_for_a_worker_is_reported_but_no_error() -> None:
    placed = False
    backend = SimulatedBackend(start=lambda number: "ready" if number == 0 or placed else "never", resources={"CPU": 1})

    def tick() -> None:
        # After ten minutes a machine with a GPU joins, and the pending worker is placed there.
        nonlocal placed
        if backend.now >= 700 and not placed:
            placed = True
            backend.place(1)

    _, notes = run(backend, {"cpu": Pool(1, 1, ONE_CPU), "toxicity": Pool(1, 1, {"GPU": 1.0})}, 20, tick)
    assert [note for note in notes if "The pool toxicity is still waiting" in note and "1 GPU per worker" in note]
    assert len(notes) == 2


@pytest.mark.parametrize("count", [1, 3])
def test_a_pool_never_has_more_workers_than_there_are_units(count: int) -> None:
    assert {pool.maximum for pool in pools(units=count, pools={"toxicity": {"min": 2}}).values()} == {count}


def test_a_pool_does_not_grow_while_workers_are_starting() -> None:
    backend = SimulatedBackend(
        seconds=lambda unit, group: 5.0 if group == "pii" else 0.1, resources={"CPU": 64}, start_s=40.0
    )
    seen: list[int] = []

    def tick() -> None:
        seen.append(sum(not each.ready for each in backend.workers.values()))

    recorded, _ = run(backend, {"cpu": Pool(1, 1, ONE_CPU), "pii": Pool(1, 32, ONE_CPU)}, 600, tick)
    assert recorded.sizes["pii"][:4] == [1, 2, 4, 8]
    # Never more workers are starting than are working.
    assert max(seen) <= 16
