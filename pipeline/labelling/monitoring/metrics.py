"""Prometheus metrics of a run, through Ray's metrics API; Ray's agent on the node serves them.

Ray prefixes every name with `ray_`, reports every ten seconds (`RAY_metrics_report_interval_ms`), and adds its own
labels. All metrics come from the driver. They count what is committed, as the ledger does, unless the description says
otherwise.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from pipeline.dataset.manifest import PURGED
from pipeline.job.unit_records import UnitRecord
from pipeline.labelling.monitoring.progress import STEPS, Progress
from pipeline.labelling.scheduler.events import RunEvent, Tick, UnitCommitted, UnitFailed, UnitStaged, WorkerLost
from pipeline.labelling.workers.worker import PartResult

# Seconds: a unit is about a minute of work, and may take up to `execution.unit_deadline_s`.
_BUCKETS_S = [0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 90.0, 120.0, 300.0, 600.0, 1800.0, 3600.0]
_REASON = re.compile(r"[a-z][a-z0-9-]{0,39}")


class Description(NamedTuple):
    """A metric: its type, its help text, and its labels besides `dataset` and `run`."""

    type: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()


METRICS = {
    "phf_units_committed_total": Description("counter", "Units committed"),
    "phf_records_total": Description("counter", "Records read, quarantined ones included"),
    "phf_sentences_total": Description("counter", "Sentences of the labelled records"),
    "phf_bytes_text_total": Description("counter", "UTF-8 bytes of the labelled records' text"),
    "phf_quarantined_total": Description("counter", "Records quarantined", ("reason",)),
    "phf_scorer_seconds_total": Description("counter", "Seconds in a scorer, summed over workers", ("column",)),
    "phf_step_seconds_total": Description(
        "counter", "Seconds in reading, splitting and writing, summed over workers", ("step",)
    ),
    "phf_attempts_failed_total": Description(
        "counter",
        "Failed attempts: units that raised and workers lost with a unit, even if it is committed later",
        ("group",),
    ),
    "phf_workers_lost_total": Description(
        "counter", "Workers that died, hung or were lost with their node", ("group",)
    ),
    "phf_unit_seconds": Description(
        "histogram", "Seconds from the start of a unit until it is staged, committed or not", ("group",)
    ),
    "phf_workers": Description("gauge", "Workers, by state", ("group", "state")),
    "phf_backlog": Description("gauge", "Units that no worker of the group has had", ("group",)),
    "phf_units": Description("gauge", "Units of the job, by state", ("state",)),
    "phf_inputs_cut": Description("gauge", "Inputs that cannot be read to their end; what follows is lost"),
    "phf_remaining_seconds": Description("gauge", "Seconds until all units are committed, at the recent pace"),
}


Labels = tuple[tuple[str, str], ...]


@dataclass
class Changes:
    """Changes since the last update: increments of counters, values of gauges, and observations of histograms."""

    counted: dict[tuple[str, Labels], float] = field(default_factory=lambda: defaultdict(float))
    gauges: dict[tuple[str, Labels], float] = field(default_factory=dict)
    observed: list[tuple[str, Labels, float]] = field(default_factory=list)


class Instruments:
    """Ray's metric objects, in a process on the cluster.

    Args:
        dataset: URI of the output.
        run: name of the run, as in its log.
    """

    def __init__(self, dataset: str, run: str) -> None:
        # Ray reads its environment on import, after `pipeline.labelling.on_ray.cluster` has set it.
        from ray.util import metrics

        made: dict[str, Any] = {}
        for name, (kind, text, labels) in METRICS.items():
            tags = (*labels, "dataset", "run")
            if kind == "histogram":
                made[name] = metrics.Histogram(name, text, boundaries=_BUCKETS_S, tag_keys=tags)
            else:
                made[name] = (metrics.Counter if kind == "counter" else metrics.Gauge)(name, text, tag_keys=tags)
            made[name].set_default_tags({"dataset": dataset, "run": run})
        self._metrics = made

    def apply(self, changes: Changes) -> None:
        """Update the metrics."""
        for (name, labels), value in changes.counted.items():
            if value > 0:  # Ray refuses increments of 0
                self._metrics[name].inc(value, dict(labels))
        for (name, labels), value in changes.gauges.items():
            self._metrics[name].set(value, dict(labels))
        for name, labels, value in changes.observed:
            self._metrics[name].observe(value, dict(labels))


class Metrics:
    """Counts a run's work; an observer of its events. Create it while Ray is running.

    Args:
        dataset: URI of the output.
        run: name of the run, as in its log.
        progress: figures of the run, read at every tick.
        cut: inputs that cannot be read to their end.
    """

    def __init__(self, dataset: str, run: str, progress: Progress, cut: int) -> None:
        import ray
        from ray.util.client import ray as client

        self._progress = progress
        self._cut = cut
        self._changes = Changes()
        self._apply: Callable[[Changes], object]
        if client.is_connected():  # type: ignore[no-untyped-call]
            # The driver is outside the cluster (`ray://…`), where nothing serves its metrics.
            actor: Any = ray.remote(num_cpus=0, max_restarts=-1)(Instruments).remote(dataset, run)
            self._apply = actor.apply.remote
        else:
            self._apply = Instruments(dataset, run).apply

    def __call__(self, event: RunEvent) -> None:
        """Count an event; at a tick, update Ray's metrics."""
        match event:
            case UnitStaged(group=group, seconds=seconds):
                self._changes.observed.append(("phf_unit_seconds", (("group", group),), seconds))
            case UnitFailed(group=group):
                self._count("phf_attempts_failed_total", 1, group=group)
            case WorkerLost(group=group, unit=unit, counted=counted):
                self._count("phf_workers_lost_total", 1, group=group)
                if unit is not None and counted:
                    self._count("phf_attempts_failed_total", 1, group=group)
            case UnitCommitted(_, record, parts):
                self._count_unit(record, parts)
            case Tick():
                self._show_figures()
                changes, self._changes = self._changes, Changes()
                self._apply(changes)

    def _count_unit(self, record: UnitRecord, parts: Sequence[PartResult]) -> None:
        self._count("phf_units_committed_total", 1)
        self._count("phf_records_total", record.records)
        self._count("phf_sentences_total", record.sentences)
        self._count("phf_bytes_text_total", record.bytes_text)
        for each in record.quarantined:
            if each.reason == PURGED:
                continue  # removed on request: nothing to be alerted to
            # A third-party scorer may give any text as the reason; a label must not contain text of the corpus.
            self._count("phf_quarantined_total", 1, reason=each.reason if _REASON.fullmatch(each.reason) else "other")
        for part in parts:
            for name, seconds in part.seconds.items():
                if name in STEPS:
                    self._count("phf_step_seconds_total", seconds, step=name)
                else:
                    self._count("phf_scorer_seconds_total", seconds, column=name)

    def _show_figures(self) -> None:
        progress, activity = self._progress, self._progress.activity
        for group, states in activity.workers().items():
            for state, workers in states.items():
                self._set("phf_workers", workers, group=group, state=state)
        for group, units in activity.backlog().items():
            self._set("phf_backlog", units, group=group)
        given_up, working = len(progress.failed), activity.open_units
        waiting = progress.units - progress.committed - given_up - working
        by_state = {"committed": progress.committed, "given-up": given_up, "working": working, "waiting": waiting}
        for units_state, units in by_state.items():
            self._set("phf_units", units, state=units_state)
        self._set("phf_inputs_cut", self._cut)
        self._set("phf_remaining_seconds", progress.remaining_s or 0.0)

    def _count(self, name: str, value: float, **labels: str) -> None:
        self._changes.counted[name, tuple(labels.items())] += value

    def _set(self, name: str, value: float, **labels: str) -> None:
        self._changes.gauges[name, tuple(labels.items())] = value
