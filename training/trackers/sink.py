"""What a tracker is to a run, and what a run does when one fails: it goes on."""

import math
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

_WAITING = 1000  # logged steps that may wait for a slow tracker
CLOSING_S = 60.0


class Sink(Protocol):
    """A tracker that is open.

    Attributes:
        run_id: what it calls the run.
        goes_on: whether it has what it was sent in earlier processes up to the step of its `Opening`, and nothing
            beyond; else it begins with nothing.
    """

    run_id: str
    goes_on: bool

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Numbers of a step, by names such as `train/loss`. It may raise anything."""
        ...

    def close(self) -> None:
        """Send what is left."""
        ...


@dataclass(frozen=True)
class Opening:
    """What a tracker is opened with.

    Attributes:
        folder: of the run, as a string.
        name: of the run, as the tracker shows it, where its settings have none.
        config: the settings and facts of the run; never any text of the corpus.
        run_id: what the tracker called the run in an earlier process; None for the first.
        goes_back: whether it may have more of that run than is to be shown, or less.
        step: of the last line that is to be shown.
    """

    folder: str
    name: str
    config: Mapping[str, Any]
    run_id: str | None = None
    goes_back: bool = False
    step: int = 0


def numbers(line: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a line of `metrics.jsonl` by the names that trackers show them under.

    Of a line that is no logged step's, such as an evaluation's, those alone that it is about: the step has sent the
    others.
    """
    found: dict[str, Any] = {}
    for name, value in line.items():
        if isinstance(value, Mapping):
            found |= {f"{name}/{each}": number for each, number in value.items()}
        elif name != "step" and "loss" in line:
            found[f"train/{name}"] = value
    return {name: value for name, value in found.items() if isinstance(value, int | float) and math.isfinite(value)}


class Guarded:
    """A sink in a thread of its own, whose failures are counted and shown once.

    Nothing that a tracker does, be it to raise or to wait for a network, stops a step: what it has no room for is
    counted as not sent.

    Args:
        name: shown in warnings.
        sink: the tracker.
        warn: called with a line, in the thread that logs.
        backlog: lines of `metrics.jsonl` that are sent first.
        closing_s: seconds that the end of a run waits for it.
    """

    def __init__(
        self,
        name: str,
        sink: Sink,
        warn: Callable[[str], None],
        *,
        backlog: Sequence[Mapping[str, Any]] = (),
        closing_s: float = CLOSING_S,
    ) -> None:
        self.name = name
        self.lost = 0
        self._backlog = backlog
        self._sink = sink
        self._warn = warn
        self._closing_s = closing_s
        self._error: BaseException | None = None
        self._warned = False
        self._queue: queue.Queue[tuple[Mapping[str, float], int] | None] = queue.Queue(_WAITING)
        self._thread = threading.Thread(target=self._send, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Hand over the numbers of a step; never raises, never waits."""
        try:
            self._queue.put_nowait((values, step))
        except queue.Full:
            self.lost += 1
        self._warn_once()

    def close(self) -> bool:
        """Wait for what is left to be sent, but not forever, and warn of what was not; whether all of it was."""
        try:
            self._queue.put(None, timeout=self._closing_s)
        except queue.Full:
            pass
        else:
            self._thread.join(self._closing_s)
        self._warn_once()
        waiting = self._queue.qsize() if self._thread.is_alive() else 0
        if self.lost or waiting:
            self._warn(
                f"{self.name} has not got {self.lost + waiting:,} of the logged steps; metrics.jsonl has them all, and "
                "sends them when the run goes on."
            )
        return not (self.lost or self._error is not None or self._thread.is_alive())

    def _warn_once(self) -> None:
        if self._error is not None and not self._warned:
            self._warned = True
            # Its words may hold an address or a key.
            self._warn(
                f"{self.name} failed ({type(self._error).__name__}); the run goes on without it where it has to, and "
                "metrics.jsonl has every number."
            )

    def _send(self) -> None:
        for line in self._backlog:
            self._send_one(numbers(line), int(line["step"]))
        self._backlog = ()
        while (item := self._queue.get()) is not None:
            self._send_one(*item)
        try:
            self._sink.close()
        except Exception as error:  # noqa: BLE001 - as above
            self._error = error

    def _send_one(self, values: Mapping[str, float], step: int) -> None:
        try:
            self._sink.log(values, step)
        except Exception as error:  # noqa: BLE001 - a tracker must not end a run
            self._error = error
            self.lost += 1
