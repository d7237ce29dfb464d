"""Plan the labelling of a corpus before it starts: nodes, hours, cost, storage and memory, and what limits them.

The arithmetic is that of the job: one process reads the inputs and cuts them into units, workers on all cores and GPUs
label them, the driver commits them one by one, and one process seals the dataset. A test compares the hours with those
of the real scheduler on a simulated clock, within 5 %.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.labelling.rates import (
    ACTOR_BYTES,
    COMMITS_PER_S,
    DATA_COLUMN_SHARE,
    DATA_SHARE,
    DRIVER_BYTES,
    PLAN_BYTES_PER_S,
    SCORER_BYTES,
    SEAL_COLUMN_SECONDS,
    SEAL_SECONDS,
    UNIT_BYTES,
    UNITS_COLUMN_SHARE,
    UNITS_SHARE,
    StepRate,
)
from scorers.amounts import format_count, format_duration, format_size
from scorers.errors import UserError

# A job of more units than this has a plan of gigabytes and commits for days.
_MOST_UNITS = 1_000_000
# A lost worker costs a unit; its time is at most this.
_MOST_UNIT_S = 600.0
# Sealing that takes longer than this is worth several datasets; a mixture gives each at least a thousandth.
_MOST_SEAL_S = 24 * 3600.0
_MOST_JOBS = 1000
_UNIT_STEP = 1024 * 1024
# English prose has 4 to 4.5 bytes per token with GPT-2's vocabulary.
BYTES_PER_TOKEN = 4.2


@dataclass(frozen=True)
class Workload:
    """What is labelled, and how.

    Attributes:
        text_bytes: UTF-8 bytes of the corpus's text.
        unit_size: bytes of a unit.
        steps: read, split, the scorers and writing, each with its rate.
        threads: threads of a worker.
    """

    text_bytes: float
    unit_size: int
    steps: Sequence[StepRate]
    threads: int = 1

    @property
    def units(self) -> int:
        """The number of units."""
        return max(1, math.ceil(self.text_bytes / self.unit_size))

    @property
    def columns(self) -> int:
        """The number of score columns."""
        return sum(bool(each.kind) for each in self.steps)

    def seconds(self, *, on_gpu: bool) -> float:
        """Seconds of a core, or of a GPU, for a byte of text."""
        return sum(each.seconds for each in self.steps if each.on_gpu == on_gpu)


@dataclass(frozen=True)
class Fleet:
    """The nodes to plan for.

    Attributes:
        cores, gpus: of a node.
        nodes: how many; None to find out from `hours`.
        hours: in which all must be done; None for as long as it takes.
        price: of a node for an hour; None if it is not known.
    """

    cores: int
    gpus: int = 0
    nodes: int | None = 1
    hours: float | None = None
    price: float | None = None


@dataclass(frozen=True)
class CapacityPlan:
    """The plan. Times are in seconds, sizes in bytes.

    Attributes:
        nodes: nodes that label.
        parts: the time of each part by its name. `plan` and `seal` run on one core, before and after; of the others,
            which run at the same time, the longest counts.
        bottleneck: what to change first.
        cost: with the nodes given back while one process plans and seals, and with all kept; None without a price.
        storage: by part; `peak` counts what exists at once.
        node_memory, driver_memory: of the workers of a node, and of the driver.
        advice: sentences.
    """

    work: Workload
    fleet: Fleet
    nodes: int
    parts: dict[str, float]
    bottleneck: str
    cost: tuple[float, float] | None
    storage: dict[str, float]
    node_memory: float
    driver_memory: float
    advice: list[str] = field(default_factory=list)

    @property
    def label_seconds(self) -> float:
        """Time from the first unit to the last commit."""
        return max(seconds for name, seconds in self.parts.items() if name not in ("plan", "seal"))

    @property
    def seconds(self) -> float:
        """Time of the whole job."""
        return self.parts["plan"] + self.label_seconds + self.parts["seal"]

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain JSON values."""
        return {
            "text_bytes": self.work.text_bytes,
            "tokens": self.work.text_bytes / BYTES_PER_TOKEN,
            "units": self.work.units,
            "unit_size": self.work.unit_size,
            "nodes": self.nodes,
            "cores_per_node": self.fleet.cores,
            "gpus_per_node": self.fleet.gpus,
            "seconds": self.seconds,
            "parts": self.parts,
            "bottleneck": self.bottleneck,
            "cost": None if self.cost is None else {"released": self.cost[0], "kept": self.cost[1]},
            "storage": self.storage,
            "node_memory": self.node_memory,
            "driver_memory": self.driver_memory,
            "rates": [asdict(each) for each in self.work.steps],
            "advice": self.advice,
        }


def plan_capacity(work: Workload, fleet: Fleet) -> CapacityPlan:
    """Plan a job.

    Raises:
        UserError: a scorer needs a GPU and the nodes have none, or no number of nodes is fast enough; says why.
    """
    for step in work.steps:
        if step.on_gpu and not fleet.gpus:
            raise UserError(f"{step.name} was measured on {step.device}: say with --plan-gpus how many a node has.")
    nodes = fleet.nodes if fleet.nodes is not None else _nodes_for(work, fleet)
    parts = _times(work, fleet, nodes)
    label_s = max(seconds for name, seconds in parts.items() if name not in ("plan", "seal"))
    alone_s = parts["plan"] + parts["seal"]
    cost = None
    if fleet.price is not None:
        hourly = fleet.price / 3600
        cost = (hourly * (nodes * label_s + alone_s), hourly * nodes * (label_s + alone_s))
    workers = max(1, fleet.cores // work.threads)
    units = work.text_bytes * (UNITS_SHARE + work.columns * UNITS_COLUMN_SHARE)
    data = work.text_bytes * (DATA_SHARE + work.columns * DATA_COLUMN_SHARE)
    staging = min(units, 2.0 * workers * nodes * work.unit_size)
    return CapacityPlan(
        work,
        fleet,
        nodes,
        parts,
        _bottleneck(work, parts),
        cost,
        {"units": units, "data": data, "staging": staging, "peak": units + data + staging},
        workers * (ACTOR_BYTES + sum(SCORER_BYTES.get(each.kind, 0) for each in work.steps) + 2 * work.unit_size),
        DRIVER_BYTES + work.units * UNIT_BYTES,
        _advice(work, fleet, parts),
    )


def _times(work: Workload, fleet: Fleet, nodes: int) -> dict[str, float]:
    parts = {"plan": work.text_bytes / PLAN_BYTES_PER_S}
    for name, on_gpu, each in (("cores", False, fleet.cores // work.threads), ("gpus", True, fleet.gpus)):
        seconds = work.seconds(on_gpu=on_gpu)
        if seconds:
            # A core's seconds are those of all threads of a worker together.
            unit_s = seconds * min(work.unit_size, work.text_bytes) / (1 if on_gpu else work.threads)
            parts[name] = unit_s * math.ceil(work.units / max(1, each * nodes))
    parts["commit"] = work.units / COMMITS_PER_S
    parts["seal"] = work.text_bytes * (SEAL_SECONDS + work.columns * SEAL_COLUMN_SECONDS)
    return parts


def _nodes_for(work: Workload, fleet: Fleet) -> int:
    """The fewest nodes that are done within `fleet.hours`."""
    assert fleet.hours is not None  # noqa: S101
    parts = _times(work, fleet, 1)
    left = fleet.hours * 3600 - parts["plan"] - parts["seal"]
    if left <= parts["commit"]:
        slowest = max(("plan", "commit", "seal"), key=lambda name: parts[name])
        advice = " ".join(_advice(work, fleet, parts))
        raise UserError(
            f"No number of nodes is done within {fleet.hours:g} h: what one process does takes "
            f"{format_duration(parts['plan'] + parts['commit'] + parts['seal'])}, most of it to {slowest}. {advice}"
        )
    wanted = max(parts.get("cores", 0.0), parts.get("gpus", 0.0)) / left
    nodes = max(1, math.ceil(wanted))
    while nodes <= work.units and max(_times(work, fleet, nodes).get(each, 0.0) for each in ("cores", "gpus")) > left:
        nodes += max(1, nodes // 100)
    if nodes > work.units:
        raise UserError(
            f"No number of nodes is done within {fleet.hours:g} h: a unit alone takes longer. Choose a smaller "
            "--unit-size."
        )
    return nodes


def _bottleneck(work: Workload, parts: dict[str, float]) -> str:
    longest = max(parts, key=lambda name: parts[name])
    if longest not in ("cores", "gpus"):
        return {
            "plan": "reading the inputs to cut them into units, in one process",
            "commit": "commits of units, by one driver",
            "seal": "sealing, in one process",
        }[longest]
    on_gpu = longest == "gpus"
    steps = [each for each in work.steps if each.on_gpu == on_gpu]
    slowest = max(steps, key=lambda each: each.seconds)
    share = slowest.seconds / work.seconds(on_gpu=on_gpu)
    what = f"scoring {slowest.name} ({slowest.kind})" if slowest.kind else f"the step {slowest.name}"
    return f"{what}, {share:.0%} of the {'GPU' if on_gpu else 'core'} time"


def _advice(work: Workload, fleet: Fleet, parts: dict[str, float]) -> list[str]:
    found = []
    if work.units > _MOST_UNITS:
        size = _UNIT_STEP * math.ceil(work.text_bytes / _MOST_UNITS / _UNIT_STEP)
        slowest = max(work.seconds(on_gpu=False) / work.threads, work.seconds(on_gpu=True))
        if slowest * size > _MOST_UNIT_S:
            size = max(work.unit_size, _UNIT_STEP * int(_MOST_UNIT_S / slowest / _UNIT_STEP))
        then = math.ceil(work.text_bytes / size)
        found.append(
            f"{format_count(work.units, 'unit')} of {format_size(work.unit_size)} are too many: their plan and commits "
            f"alone take {format_duration(parts['commit'])} and {format_size(DRIVER_BYTES + work.units * UNIT_BYTES)} "
            f"of the driver. With --unit-size {size // _UNIT_STEP}MiB there are {then:,}; a lost worker then costs "
            f"{format_duration(slowest * size)}."
        )
    if parts["seal"] > _MOST_SEAL_S:
        jobs = min(_MOST_JOBS, math.ceil(parts["seal"] / _MOST_SEAL_S))
        found.append(
            f"One process seals, for {format_duration(parts['seal'])} whatever the number of nodes. Label the corpus "
            f"as {jobs} jobs of {format_size(work.text_bytes / jobs)}, each into its own output: they seal side by "
            f"side in {format_duration(parts['seal'] / jobs)}, and `phf train --mix` trains on them together."
        )
    slots = (fleet.cores // work.threads) * (fleet.nodes or 1)
    if fleet.nodes is not None and work.units < slots:
        found.append(
            f"{format_count(work.units, 'unit')} for {slots:,} workers: fewer nodes take as long, or choose a smaller "
            "--unit-size."
        )
    return found
