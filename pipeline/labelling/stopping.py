"""SIGTERM, SIGHUP and Ctrl-C as a request to stop in good order, with the exit status that says "resumable"."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from scorers.errors import StoppedError
from scorers.stopping import StopRequest, behind

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class StopSignals:
    """While it is entered, a signal stops at once; within `asking`, only a second one does.

    Enter it in the main thread. Until `reinstall`, Ray has SIGTERM raise `SystemExit`, which counts as well.
    What leaves it is a `StoppedError` then, whatever the code that was interrupted has made of it.
    """

    def __init__(self) -> None:
        self._on_request: Callable[[], None] | None = None
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
        request = behind(error, StopRequest)
        if request is not None or isinstance(error, SystemExit):
            name = str(request) if request is not None else signal.SIGTERM.name
            raise StoppedError(f"received {name}. Nothing is lost: the same command goes on.") from None

    @contextmanager
    def asking(self, on_request: Callable[[], None]) -> Iterator[None]:
        """Have the first signal call `on_request`, which must not mind being called twice, and stop nothing."""
        self._on_request = on_request
        try:
            if self._requested:
                # It came before, and nothing of it was left: what a destructor raises is lost.
                on_request()
            yield
        finally:
            self._on_request = None

    def reinstall(self) -> None:
        """Take the signals back from a library that has claimed them."""
        for each in _SIGNALS:
            signal.signal(each, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        first, self._requested = not self._requested, True
        if first and self._on_request is not None:
            self._on_request()
        else:
            raise StopRequest(signal.Signals(number).name)
