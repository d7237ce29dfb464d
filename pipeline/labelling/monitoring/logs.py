"""The structured log of a run: a JSON object a line, for machines and for people who look for what happened when.

A line has `timestamp` (UTC), `level`, `event`, `run` (new for each process) and `epoch` (the run's number in its
output, null until it has one); then what the event is about. No line holds text of the corpus.
"""

import contextlib
import importlib.metadata
import logging
import os
import platform
import re
import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import structlog

from pipeline.config import LabelConfig, RunConfig
from pipeline.corpus.plan import Unit
from pipeline.dataset.manifest import Manifest
from pipeline.job.unit_records import UnitRecord
from pipeline.labelling.monitoring.log_file import LogFile, open_log
from pipeline.labelling.monitoring.progress import Progress, RunObserver
from pipeline.labelling.workers.worker import PartResult
from scorers.errors import EXIT_DEFECT, EXIT_INCOMPLETE, EXIT_QUARANTINE, EXIT_STOPPED, EXIT_USAGE, UserError
from scorers.isolation import describe
from scorers.stopping import is_stop

_LIBRARIES = ("phf", "ray", "pyarrow", "numpy", "spacy", "torch")
_SECRET = re.compile(r"token|secret|password|passwd|credential|api_?key|access_?key", re.IGNORECASE)
_MILD = {EXIT_QUARANTINE, EXIT_STOPPED}
# Seconds between lines that say how far the run has come.
_PROGRESS_EVERY_S = 60.0
_STATES = {
    EXIT_USAGE: "refused",
    EXIT_QUARANTINE: "done",
    EXIT_INCOMPLETE: "incomplete",
    EXIT_STOPPED: "stopped",
}


class RunLog(RunObserver):
    """Writes down what a run does.

    Args:
        file: where; None for nowhere.
    """

    def __init__(self, file: LogFile | None) -> None:
        self.run = secrets.token_hex(4)
        self.progress: Progress | None = None
        self._file = file
        self._progress_due = 0.0
        # Everything is given here, since structlog's global configuration belongs to whoever uses this as a library.
        self._log: Any = file and structlog.wrap_logger(
            structlog.WriteLogger(file),  # type: ignore[arg-type]
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True, key="timestamp"),
                _in_order,
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
        """The run has its number in its output."""
        if self._log is not None:
            self._log = self._log.bind(epoch=epoch)
        self.event("epoch-claimed")

    def started(self, config: RunConfig) -> None:
        """The run begins with these settings."""
        self.event(
            "run-started",
            config=without_secrets(config.model_dump(mode="json")),
            versions={"python": platform.python_version(), **_versions()},
            host=platform.node(),
            pid=os.getpid(),
        )

    def resolved(self, config: LabelConfig, fingerprints: Mapping[str, str]) -> None:
        """Every option has its value, and the scorers are built."""
        values = config.model_dump(mode="json", include={"scorers", "thresholds"})
        self.event("config-resolved", **without_secrets(values), fingerprints=dict(fingerprints))

    def planned(self, units: int, committed: int, sources: int) -> None:
        """So many units are to be done, of which some are."""
        self.event("plan", units=units, committed=committed, sources=sources)

    def ray_started(self, address: str | None, resources: Mapping[str, float], seconds: float) -> None:
        """Ray runs, or is joined."""
        kinds = {name: value for name, value in resources.items() if not name.startswith("node:")}
        self.event("ray-started", address=address, resources=kinds, seconds=_rounded(seconds))

    def hired(self, worker: int, group: str) -> None:  # noqa: D102 - see Observer, here and below
        self.event("worker-hired", worker=worker, group=group)

    def ready(self, worker: int, group: str, node: str) -> None:  # noqa: D102
        self.event("worker-ready", worker=worker, group=group, node=node)

    def lost(self, worker: int, group: str, error: str, *, unit: Unit | None, counted: bool) -> None:  # noqa: D102
        name = None if unit is None else unit.name
        self.event("worker-lost", level="warning", worker=worker, group=group, unit=name, counted=counted, error=error)

    def dismissed(self, worker: int, group: str) -> None:  # noqa: D102
        self.event("worker-dismissed", level="debug", worker=worker, group=group)

    def resized(self, group: str, workers: int) -> None:  # noqa: D102
        self.event("pool-resized", group=group, workers=workers)

    def sent(self, unit: Unit, group: str, worker: int, attempt: int, *, isolated: bool) -> None:  # noqa: D102
        values = {"unit": unit.name, "group": group, "worker": worker, "attempt": attempt}
        if isolated:
            self.event("unit-isolated", level="warning", **values)
        self.event("unit-sent", level="debug", **values, isolated=isolated)

    def done(  # noqa: D102
        self, unit: Unit, group: str, worker: int, attempt: int, part: PartResult, seconds: float
    ) -> None:
        self.event(
            "unit-staged",
            level="debug",
            unit=unit.name,
            group=group,
            worker=worker,
            attempt=attempt,
            seconds=_rounded(seconds),
            records=part.records,
            sentences=part.sentences,
            quarantined=dict(Counter(each.reason for each in part.quarantined)),
            scorer_seconds={column: _rounded(each) for column, each in part.seconds.items()},
        )

    def failed(self, unit: Unit, group: str, worker: int, attempt: int, error: str) -> None:  # noqa: D102
        self.event(
            "unit-failed", level="warning", unit=unit.name, group=group, worker=worker, attempt=attempt, error=error
        )

    def given_up(self, unit: Unit, group: str, attempts: int, error: str) -> None:  # noqa: D102
        self.event("unit-given-up", level="error", unit=unit.name, group=group, attempts=attempts, error=error)

    def unit_committed(self, unit: Unit, record: UnitRecord, parts: Sequence[PartResult]) -> None:  # noqa: D102
        self.event(
            "unit-committed",
            unit=unit.name,
            records=record.records,
            empty=record.empty,
            sentences=record.sentences,
            bytes_text=record.bytes_text,
            quarantined=dict(Counter(each.reason for each in record.quarantined)),
            seconds=_rounded(sum(sum(part.seconds.values()) for part in parts)),
        )

    def ticked(self, progress: Progress) -> None:  # noqa: D102
        if progress.clock() < self._progress_due:
            return
        self._progress_due = progress.clock() + _PROGRESS_EVERY_S
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
        """A signal asked the run to stop."""
        self.event("stopping", level="warning", grace_s=grace_s)

    def sealed(self, manifest: Manifest) -> None:
        """The dataset is finished."""
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
        """The run is over: the line that says how, and what it did."""
        # Only our own errors are known to hold no text of the corpus.
        message = None if error is None else str(error) if isinstance(error, UserError) else describe(error)
        self.event(
            "run-ended",
            level="info" if not exit_code else "warning" if exit_code in _MILD else "error",
            state=_STATES.get(exit_code, "failed") if exit_code else "done",
            exit_code=exit_code,
            error=message,
            **({} if self.progress is None else _figures(self.progress)),
            lost_lines=0 if self._file is None else self._file.lost,
        )


@contextlib.contextmanager
def run_log(config: RunConfig, notify: Callable[[str], None] = lambda _: None) -> Iterator[RunLog]:
    """The log that `execution.log` asks for, from `run-started` to `run-ended`.

    Args:
        config: of the run.
        notify: told when lines begin to be lost.

    Raises:
        UserError: the file cannot be opened, or lies below the output.
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
    """Plain JSON values with what may be secret in them replaced by `***`.

    That are the values of keys such as `token` or `secret_key`, and in URIs the user's part and the query.
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


def _in_order(_: Any, __: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
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
