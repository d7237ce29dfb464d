"""The interface of trackers, and the thread that keeps their failures and delays away from a run."""

import math
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

_WAITING = 1000  # logged steps that may wait for a slow tracker
CLOSING_S = 60.0


class Sink(Protocol):
    """An open tracker.

    Attributes:
        run_id: its id of the run.
        continues: whether it has the lines of earlier processes up to the step of its `Opening` and no others; else it
            starts empty.
    """

    run_id: str
    continues: bool

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log the numbers of a step, by names such as `train/loss`. May raise anything."""
        ...

    def close(self) -> None:
        """Send remaining values and close."""
        ...


@dataclass(frozen=True)
class Opening:
    """What a tracker needs to open a run.

    Attributes:
        folder: folder of the run.
        name: display name of the run, if the settings have none.
        config: settings and facts of the run; never text of the corpus.
        run_id: the tracker's id of the run in an earlier process; None for the first.
        goes_back: whether the tracker may have more or fewer lines than it shall show.
        step: step of the last line that it shall show.
    """

    folder: str
    name: str
    config: Mapping[str, Any]
    run_id: str | None = None
    goes_back: bool = False
    step: int = 0


def numbers(line: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a line of `metrics.jsonl`, by the names that trackers show.

    For a line about something else than a logged step, such as an evaluation, only its own numbers: the others were
    sent with the step.
    """
    found: dict[str, Any] = {}
    for name, value in line.items():
        if isinstance(value, Mapping):
            found |= {f"{name}/{each}": number for each, number in value.items()}
        elif name != "step" and "loss" in line:
            found[f"train/{name}"] = value
    return {name: value for name, value in found.items() if isinstance(value, int | float) and math.isfinite(value)}


class Guarded:
    """Runs a sink in its own thread, counts the steps that it failed to send, and warns once.

    A tracker that raises or waits for a network never delays a step: steps that do not fit into its queue are counted
    as lost.

    Args:
        name: name in warnings.
        sink: the tracker.
        warn: called with each warning, in the thread that logs.
        backlog: lines of `metrics.jsonl` to send first.
        closing_s: seconds to wait for it at the end of a run.
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
        """Queue the numbers of a step; never raises or blocks."""
        try:
            self._queue.put_nowait((values, step))
        except queue.Full:
            self.lost += 1
        self._warn_once()

    def close(self) -> bool:
        """Wait a limited time for the queue, warn if steps were lost, and return whether everything was sent."""
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
                f"{self.name} did not receive {self.lost + waiting:,} of the logged steps; metrics.jsonl has them all, "
                "and they are sent when the run is resumed."
            )
        return not (self.lost or self._error is not None or self._thread.is_alive())

    def _warn_once(self) -> None:
        if self._error is not None and not self._warned:
            self._warned = True
            # Show only the type: the message may hold an address or a key.
            self._warn(
                f"{self.name} failed ({type(self._error).__name__}); the run continues, without it if need be, and "
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
