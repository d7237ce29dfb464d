"""Choose the number of workers of each group: by backlog, within the bounds of configuration and cluster."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.config import LabelExecution, PoolOptions
from pipeline.labelling.resolve import BASE_GROUP
from scorers.doctor.machine import usable_cores


@dataclass(frozen=True, slots=True)
class Pool:
    """The bounds of a group's pool of workers, and the resources of each worker.

    Attributes:
        minimum, maximum: numbers of workers; `maximum` None for as many as fit.
        needs: what each worker reserves, by resource (`CPU`, `GPU`, `memory` in bytes).
    """

    minimum: int = 1
    maximum: int | None = None
    needs: Mapping[str, float] = field(default_factory=dict)

    @staticmethod
    def of(workers: int) -> "Pool":
        """A pool of fixed size whose workers reserve no resources."""
        return Pool(workers, workers)


@dataclass(frozen=True, slots=True)
class Load:
    """How busy a pool is.

    Attributes:
        workers: all workers; `starting` ones are not ready yet, `idle` ones are ready and have no unit.
        backlog: units that wait for a worker of the pool.
    """

    workers: int
    starting: int
    idle: int
    backlog: int


def without_ray(execution: LabelExecution, units: int) -> bool:
    """Whether one process of this machine is to label the units: it is asked for, or Ray would have one worker too."""
    if execution.workers is not None:
        return execution.workers == 0
    return units == 1 and not (execution.address or execution.pools or execution.metrics_port)


def pools_of(execution: LabelExecution, groups: Sequence[str], units: int) -> dict[str, Pool]:
    """The configured pools, none larger than the number of units."""
    pools = {}
    for group in groups:
        options = execution.pools.get(group, PoolOptions())
        minimum, maximum = options.min, options.max
        if group == BASE_GROUP and execution.workers is not None:
            minimum = maximum = execution.workers
        pools[group] = Pool(
            min(minimum, units), units if maximum is None else min(maximum, units), _needs(options, execution.threads)
        )
    return pools


def most_workers(pools: Mapping[str, Pool], resources: Mapping[str, float]) -> dict[str, int]:
    """The most workers of each pool that fit in `resources` beside the minimum of all other pools."""
    reserved: Counter[str] = Counter()
    for pool in pools.values():
        reserved.update({name: pool.minimum * need for name, need in pool.needs.items()})
    found = {}
    for group, pool in pools.items():
        fitting = [
            math.floor((resources.get(name, 0.0) - reserved[name]) / need + 1e-6) + pool.minimum
            for name, need in pool.needs.items()
        ]
        bounds = fitting if pool.maximum is None else [*fitting, pool.maximum]
        found[group] = max(pool.minimum, min(bounds, default=pool.minimum))
    return found


def spare_workers(
    group: str, pools: Mapping[str, Pool], workers: Mapping[str, int], resources: Mapping[str, float]
) -> int | None:
    """How many more workers of a group fit beside all existing workers; None if they reserve no resources."""
    fitting = []
    for name, need in pools[group].needs.items():
        used = sum(workers[each] * pool.needs.get(name, 0.0) for each, pool in pools.items())
        fitting.append(math.floor((resources.get(name, 0.0) - used) / need + 1e-6))
    return max(0, min(fitting)) if fitting else None


def missing_resources(pools: Mapping[str, Pool], resources: Mapping[str, float]) -> dict[str, str]:
    """Describe by group the resources that the cluster lacks for the minimum of all pools; omit groups that fit."""
    wanted: Counter[str] = Counter()
    for pool in pools.values():
        wanted.update({name: pool.minimum * need for name, need in pool.needs.items()})
    lacking = {name for name, amount in wanted.items() if amount > resources.get(name, 0.0) + 1e-6}
    return {
        group: ", ".join(f"{_amount(name, pool.needs[name])} per worker" for name in short)
        for group, pool in pools.items()
        if (short := [name for name in pool.needs if name in lacking])
    }


def wanted_workers(load: Load, maximum: int, spare: int | None) -> int:
    """The number of workers a pool should have now; idle workers are handled elsewhere.

    A pool doubles when all its workers are busy and at least as many units wait: it is then the bottleneck. It does
    not grow while workers are still starting, because their effect is not visible yet.
    """
    if load.workers > maximum:
        return maximum
    if load.starting or load.idle or load.backlog < max(1, load.workers):
        return load.workers
    growth = max(1, load.workers)
    return min(maximum, load.workers + (growth if spare is None else min(growth, spare)))


def local_ray_cpus(execution: LabelExecution, pools: Mapping[str, Pool]) -> int:
    """CPUs to give to a local Ray: the usable cores, or what the minimum of all pools needs if that is more.

    Ray's own default counts all cores of the machine even if the process may use only some of them, and none in a
    container that is limited to half a core.
    """
    needed = math.ceil(sum(pool.minimum * pool.needs.get("CPU", 0.0) for pool in pools.values()))
    return max(1, needed) if execution.workers is not None else max(usable_cores(), needed)


def _needs(options: PoolOptions, threads: int) -> dict[str, float]:
    on_cpu = options.device == "cpu"
    needs = {
        "CPU": (float(threads) if on_cpu else 0.0) if options.cpus is None else options.cpus,
        "GPU": (0.0 if on_cpu else 1.0) if options.gpus is None else options.gpus,
        "memory": float(options.memory or 0),
    }
    return {name: need for name, need in needs.items() if need}


def _amount(name: str, value: float) -> str:
    return f"{value / 1e9:.3g} GB of memory" if name == "memory" else f"{value:g} {name}"
