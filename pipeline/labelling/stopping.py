"""SIGTERM, SIGHUP and Ctrl-C as a request to stop in good order, with the exit status that says "resumable"."""

import signal
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from scorers.errors import StoppedError

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class StopRequest(BaseException):  # not an `Exception`: libraries catch those and forget them
    """Raised by a signal wherever the main thread is; leaves `StopSignals` as a `StoppedError`."""


class StopSignals:
    """While it is entered, a signal calls `on_request` if that is set; a second one, or without it, stops at once.

    Enter it in the main thread. Until `reinstall`, Ray has SIGTERM raise `SystemExit`, which counts as well.
    """

    def __init__(self) -> None:
        self.on_request: Callable[[], None] | None = None
        self._requested = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        self._before = {each: signal.signal(each, self._handle) for each in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)
        if isinstance(error, StopRequest | SystemExit):
            name = str(error) if isinstance(error, StopRequest) else signal.SIGTERM.name
            raise StoppedError(f"received {name}. Nothing is lost: the same command goes on.") from None

    def reinstall(self) -> None:
        """Take the signals back from a library that has claimed them."""
        for each in _SIGNALS:
            signal.signal(each, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        first, self._requested = not self._requested, True
        if first and self.on_request is not None:
            self.on_request()
        else:
            raise StopRequest(signal.Signals(number).name)
