"""The structured log of a run, as JSON lines.

A line has `timestamp` (UTC), `level`, `event`, `run` (new for each process) and `epoch` (the number of the run's epoch,
null until it has claimed one), then the fields of the event. No line contains text of the corpus.
"""

import contextlib
import importlib.metadata
import logging
import os
import platform
import re
import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

import structlog

from pipeline.config import LabelConfig, RunConfig
from pipeline.dataset.manifest import Manifest
from pipeline.labelling.monitoring.log_file import LogFile, open_log
from pipeline.labelling.monitoring.progress import Progress
from pipeline.labelling.scheduler.events import (
    PoolResized,
    RunEvent,
    Tick,
    UnitCommitted,
    UnitFailed,
    UnitGivenUp,
    UnitSent,
    UnitStaged,
    WorkerDismissed,
    WorkerHired,
    WorkerLost,
    WorkerReady,
)
from scorers.describe_error import describe
from scorers.errors import EXIT_DEFECT, EXIT_INCOMPLETE, EXIT_QUARANTINE, EXIT_STOPPED, EXIT_USAGE, UserError
from scorers.stopping import is_stop

_LIBRARIES = ("phf", "ray", "pyarrow", "numpy", "spacy", "torch")
_SECRET = re.compile(r"token|secret|password|passwd|credential|api_?key|access_?key", re.IGNORECASE)
_WARNING_CODES = {EXIT_QUARANTINE, EXIT_STOPPED}
# Seconds between `progress` lines.
_PROGRESS_INTERVAL_S = 60.0
_STATES = {
    EXIT_USAGE: "refused",
    EXIT_QUARANTINE: "done",
    EXIT_INCOMPLETE: "incomplete",
    EXIT_STOPPED: "stopped",
}


class RunLog:
    """Writes the log of a run; an observer of its events. With `file` None it writes nothing."""

    def __init__(self, file: LogFile | None) -> None:
        self.run = secrets.token_hex(4)
        self.progress: Progress | None = None
        self._file = file
        self._progress_due = 0.0
        # Configure everything here: structlog's global configuration belongs to programs that use this as a library.
        self._log: Any = file and structlog.wrap_logger(
            structlog.WriteLogger(file),  # type: ignore[arg-type]
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True, key="timestamp"),
                _order_keys,
                structlog.processors.JSONRenderer(),
            ],
            wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
            context_class=dict,
            run=self.run,
            epoch=None,
        )

    def event(self, name: str, *, level: str = "info", **values: Any) -> None:
        """Write a line."""
        if self._log is not None:
            getattr(self._log, level)(name, **values)

    def claimed(self, epoch: int) -> None:
        """Log that the run has claimed an epoch."""
        if self._log is not None:
            self._log = self._log.bind(epoch=epoch)
        self.event("epoch-claimed")

    def started(self, config: RunConfig) -> None:
        """Log the start of the run with its settings."""
        self.event(
            "run-started",
            config=without_secrets(config.model_dump(mode="json")),
            versions={"python": platform.python_version(), **_versions()},
            host=platform.node(),
            pid=os.getpid(),
        )

    def resolved(self, config: LabelConfig, fingerprints: Mapping[str, str]) -> None:
        """Log the resolved options and the scorers' fingerprints."""
        values = config.model_dump(mode="json", include={"scorers", "thresholds"})
        self.event("config-resolved", **without_secrets(values), fingerprints=dict(fingerprints))

    def planned(self, units: int, committed: int, sources: int) -> None:
        """Log the number of units and how many of them are committed."""
        self.event("plan", units=units, committed=committed, sources=sources)

    def ray_started(self, address: str | None, resources: Mapping[str, float], seconds: float) -> None:
        """Log that Ray was started or joined."""
        kinds = {name: value for name, value in resources.items() if not name.startswith("node:")}
        self.event("ray-started", address=address, resources=kinds, seconds=_rounded(seconds))

    def __call__(self, event: RunEvent) -> None:
        """Log an event of the run."""
        if self._log is None:
            return
        match event:
            case WorkerHired(worker, group):
                self.event("worker-hired", worker=worker, group=group)
            case WorkerReady(worker, group, node):
                self.event("worker-ready", worker=worker, group=group, node=node)
            case WorkerLost(worker, group, error, unit, counted):
                name = None if unit is None else unit.name
                values = {"worker": worker, "group": group, "unit": name, "counted": counted, "error": error}
                self.event("worker-lost", level="warning", **values)
            case WorkerDismissed(worker, group):
                self.event("worker-dismissed", level="debug", worker=worker, group=group)
            case PoolResized(group, workers):
                self.event("pool-resized", group=group, workers=workers)
            case UnitSent(unit, group, worker, attempt, isolated):
                values = {"unit": unit.name, "group": group, "worker": worker, "attempt": attempt}
                if isolated:
                    self.event("unit-isolated", level="warning", **values)
                self.event("unit-sent", level="debug", **values, isolated=isolated)
            case UnitStaged():
                self._staged(event)
            case UnitFailed(unit, group, worker, attempt, error):
                values = {"unit": unit.name, "group": group, "worker": worker, "attempt": attempt, "error": error}
                self.event("unit-failed", level="warning", **values)
            case UnitGivenUp(unit, group, attempts, error):
                values = {"unit": unit.name, "group": group, "attempts": attempts, "error": error}
                self.event("unit-given-up", level="error", **values)
            case UnitCommitted():
                self._committed(event)
            case Tick():
                self._tick()

    def _staged(self, event: UnitStaged) -> None:
        self.event(
            "unit-staged",
            level="debug",
            unit=event.unit.name,
            group=event.group,
            worker=event.worker,
            attempt=event.attempt,
            seconds=_rounded(event.seconds),
            records=event.part.records,
            sentences=event.part.sentences,
            quarantined=dict(Counter(each.reason for each in event.part.quarantined)),
            scorer_seconds={column: _rounded(each) for column, each in event.part.seconds.items()},
        )

    def _committed(self, event: UnitCommitted) -> None:
        record = event.record
        self.event(
            "unit-committed",
            unit=event.unit.name,
            records=record.records,
            empty=record.empty,
            sentences=record.sentences,
            bytes_text=record.bytes_text,
            quarantined=dict(Counter(each.reason for each in record.quarantined)),
            seconds=_rounded(sum(sum(part.seconds.values()) for part in event.parts)),
        )

    def _tick(self) -> None:
        progress = self.progress
        if progress is None or progress.clock() < self._progress_due:
            return
        self._progress_due = progress.clock() + _PROGRESS_INTERVAL_S
        self.event(
            "progress",
            units=progress.units,
            committed=progress.committed,
            open=progress.activity.open_units,
            records=progress.records,
            records_per_s=_rounded(progress.records_per_s),
            remaining_s=progress.remaining_s and round(progress.remaining_s),
            quarantined=dict(progress.quarantined),
            workers=progress.activity.workers(),
            backlog=progress.activity.backlog(),
        )

    def stopping(self, grace_s: float) -> None:
        """Log that a signal has asked the run to stop."""
        self.event("stopping", level="warning", grace_s=grace_s)

    def sealed(self, manifest: Manifest) -> None:
        """Log that the dataset is sealed."""
        ledger = manifest.ledger
        self.event(
            "sealed",
            generation=manifest.generation,
            shards=len(manifest.shards),
            records=ledger.records,
            labelled=ledger.labelled,
            empty=ledger.empty,
            quarantined=ledger.quarantined,
            sources_cut=ledger.sources_cut,
            sentences=manifest.sentences,
        )

    def ended(self, exit_code: int, error: BaseException | None = None) -> None:
        """Log the end of the run with its outcome and figures."""
        # Only messages of our own errors are known to contain no text of the corpus.
        message = None if error is None else str(error) if isinstance(error, UserError) else describe(error)
        self.event(
            "run-ended",
            level="info" if not exit_code else "warning" if exit_code in _WARNING_CODES else "error",
            state=_STATES.get(exit_code, "failed") if exit_code else "done",
            exit_code=exit_code,
            error=message,
            **({} if self.progress is None else _figures(self.progress)),
            lost_lines=0 if self._file is None else self._file.lost,
        )


@contextlib.contextmanager
def run_log(config: RunConfig, notify: Callable[[str], None] = lambda _: None) -> Iterator[RunLog]:
    """Write the log that `execution.log` names, from `run-started` to `run-ended`.

    `notify` gets a message when the first line is lost.

    Raises:
        UserError: the file cannot be opened, or is below the output.
    """
    with open_log(config, notify) as file:
        log = RunLog(file)
        log.started(config)
        try:
            yield log
        except UserError as error:
            log.ended(error.exit_code, error)
            raise
        except BaseException as error:
            interrupted = 130 if isinstance(error, KeyboardInterrupt) else EXIT_DEFECT
            log.ended(EXIT_STOPPED if is_stop(error) else interrupted, error)
            raise
        log.ended(0)


def without_secrets(value: Any) -> Any:
    """Replace possible secrets in plain JSON values by `***`.

    These are the values of keys such as `token` or `secret_key`, and the user info and query of URIs.
    """
    if isinstance(value, dict):
        return {
            key: "***" if isinstance(each, str) and _SECRET.search(key) else without_secrets(each)
            for key, each in value.items()
        }
    if isinstance(value, list):
        return [without_secrets(each) for each in value]
    if isinstance(value, str) and "://" in value:
        scheme, _, rest = value.partition("://")
        rest, question, _ = rest.partition("?")
        host, slash, path = rest.partition("/")
        user, at, host = host.rpartition("@")
        return f"{scheme}://{'***@' if user or at else ''}{host}{slash}{path}{'?***' if question else ''}"
    return value


def _order_keys(_: Any, __: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    first = ("timestamp", "level", "event", "run", "epoch")
    return {key: event[key] for key in first} | {key: event[key] for key in event if key not in first}


def _versions() -> dict[str, str]:
    versions = {}
    for name in _LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def _figures(progress: Progress) -> dict[str, Any]:
    return {
        "units": progress.units,
        "committed": progress.committed,
        "committed_before": progress.before,
        "given_up": len(progress.failed),
        "records": progress.records,
        "sentences": progress.sentences,
        "bytes_text": progress.bytes_text,
        "quarantined": dict(progress.quarantined),
        "failed_attempts": dict(progress.activity.failed_attempts),
        "seconds": _rounded(progress.elapsed_s),
    }


def _rounded(seconds: float) -> float:
    return round(seconds, 3)
