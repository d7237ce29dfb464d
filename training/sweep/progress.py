"""The progress of a sweep: a line per running run on a terminal, otherwise a line now and then."""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from scorers.amounts import format_count, format_duration
from scorers.printing import message
from scorers.stored import parse_json
from training.sweep.check import horizon
from training.sweep.config import SweepRun
from training.sweep.jobs import TRAINING, Job

_READ_EVERY_S, _PLAIN_EVERY_S = 0.5, 30.0
# More than the longest line of `metrics.jsonl`.
_END_BYTES = 65_536


@dataclass(frozen=True)
class Logged:
    """The last logged step of a run.

    Attributes:
        step: steps done.
        loss: of that step; None if it is not finite.
        seconds_left: for the remaining steps at the current speed; None if it is not known.
    """

    step: int
    loss: float | None
    seconds_left: float | None


def last_logged(metrics: Path, steps: int, tokens_per_step: int) -> Logged | None:
    """Read the last logged step of a run; None if there is none yet.

    Args:
        metrics: `metrics.jsonl` of the run, which may be growing.
        steps: steps of the whole run.
        tokens_per_step: tokens of a step.
    """
    try:
        with metrics.open("rb") as file:
            file.seek(max(0, metrics.stat().st_size - _END_BYTES))
            lines = file.read().split(b"\n")[:-1]
    except OSError:
        return None
    for line in reversed(lines):
        try:
            values = parse_json(line)
            step, speed = values["step"], values["tokens_per_second"]
        except (ValueError, KeyError, TypeError):
            # A measurement between steps, or the end of a line.
            continue
        loss = values.get("loss")
        if type(step) is int and 0 <= step <= steps:
            known = isinstance(speed, float) and speed > 0
            return Logged(
                step,
                loss if isinstance(loss, float) else None,
                (steps - step) * tokens_per_step / speed if known else None,
            )
    return None


class SweepProgress:
    """Shows the jobs of a sweep on stderr; a context manager.

    Args:
        runs: the runs by the names of their jobs.
    """

    def __init__(self, runs: Mapping[str, SweepRun]) -> None:
        self._runs = runs
        self._bars: Any = None
        self._tasks: dict[str, Any] = {}
        self._shown: dict[str, tuple[str, int]] = {}
        self._read_at = self._printed_at = time.monotonic()

    def __enter__(self) -> "SweepProgress":
        if sys.stderr.isatty():
            from rich.progress import BarColumn, Progress, TextColumn

            from scorers.terminal import Terminal

            self._bars = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[text]}", markup=False),
                console=Terminal(stderr=True),
                transient=True,
            )
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def update(self, jobs: Sequence[Job]) -> None:
        """Show what has changed."""
        changed = [job for job in jobs if self._shown.get(job.name) != (job.state, job.stage)]
        for job in changed:
            self._shown[job.name] = (job.state, job.stage)
            if job.state != "waiting":
                self._event(job, jobs)
        now = time.monotonic()
        if now - self._read_at < _READ_EVERY_S and not changed:
            return
        self._read_at = now
        if self._bars is not None:
            self._show_bars(jobs)
        elif now - self._printed_at >= _PLAIN_EVERY_S:
            self._printed_at = now
            for job in jobs:
                if job.state == "running":
                    self._line(f"{job.name}: {self._describe(job)}")

    def _event(self, job: Job, jobs: Sequence[Job]) -> None:
        if job.state == "running":
            if self._bars is None:
                self._line(f"{job.name}: {job.title}")
            return
        ended = sum(each.state not in ("waiting", "running") for each in jobs)
        how = {
            "finished": f"finished in {format_duration(job.seconds)}" if job.seconds else "was finished before",
            "failed": f"failed: {job.reason}. Log: {job.log}",
            "stopped": "stopped; it can continue",
        }
        self._line(f"{job.name}: {how[job.state]} ({ended:,} of {format_count(len(jobs), 'run')})")

    def _show_bars(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            task = self._tasks.get(job.name)
            if job.state == "running":
                if task is None:
                    task = self._tasks[job.name] = self._bars.add_task(job.name, text="", total=None)
                logged = self._logged(job)
                run = self._runs.get(job.name)
                steps = None if run is None or logged is None else horizon(run).steps
                self._bars.update(
                    task, text=self._describe(job), total=steps, completed=0 if logged is None else logged.step
                )
            elif task is not None:
                self._bars.remove_task(self._tasks.pop(job.name))

    def _logged(self, job: Job) -> Logged | None:
        run = self._runs.get(job.name)
        if run is None or job.title != TRAINING:
            return None
        planned = horizon(run)
        return last_logged(run.folder.metrics, planned.steps, planned.tokens_per_step)

    def _describe(self, job: Job) -> str:
        logged = self._logged(job)
        if logged is None:
            return job.title
        parts = [f"step {logged.step:,} of {horizon(self._runs[job.name]).steps:,}"]
        if logged.loss is not None:
            parts.append(f"loss {logged.loss:.3f}")
        if logged.seconds_left is not None:
            parts.append(f"{format_duration(logged.seconds_left)} left")
        return ", ".join(parts)

    def _line(self, text: str) -> None:
        if self._bars is not None:
            self._bars.console.print(text, soft_wrap=True)
        else:
            sys.stderr.write(message(f"{text}\n"))
            sys.stderr.flush()
