"""Requests to stop (SIGTERM, Ctrl-C, SIGHUP, SIGUSR1), from the signal to the end of the process.

Three things happen to a signal, since the main thread may be anywhere. Python's handler raises `StopRequest` there, or
calls what `asking` names. The request is kept, as libraries swallow what is raised in an import or a destructor:
`check` raises it again wherever something waits. And in the process of a command a thread, which no native code holds
up, ends a process that does not end by itself in time, or is signalled again.
"""

import atexit
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any, NoReturn, TypeVar

from scorers.errors import EXIT_STOPPED, StoppedError

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
# Signals that come within so many seconds are one request: launchers pass on what a terminal has sent to all.
ONCE_S = 1.0
# Seconds from the request to the end of the process: where nothing is being finished; on the way out, where
# trackers may still send what they have; and after a second signal.
GRACE_S, LEAVING_S, AGAIN_S = 8.0, 30.0, 5.0

# Sent, like the number of a signal, when a command that was asked to stop has nothing left to do.
_LEAVING = b"\0"

Interruption = TypeVar("Interruption", bound=BaseException)


class StopRequest(BaseException):  # not an `Exception`: libraries catch those and forget them
    """Raised by a signal wherever the main thread is; its message is the signal's name.

    `stoppable` turns what comes out into a `StoppedError`.
    """


def behind(error: BaseException | None, kind: type[Interruption]) -> Interruption | None:
    """The interruption that made `error`: itself, what it was raised from, or what was being handled then.

    Code that is interrupted may raise an error of its own out of it. Python does where a class is being made (a
    `RuntimeError` around whatever `__set_name__` raises); libraries do where an import does not come to its end.

    Returns:
        The first of the chain that is of this kind; None where there is none.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, kind):
            return error
        seen.add(id(error))
        error = error.__cause__ if error.__cause__ is not None else error.__context__
    return None


def is_stop(error: BaseException) -> bool:
    """Whether `error` ends the work because of a signal, or because a newer run has taken over.

    An import that a signal has cut off leaves half a module behind, and any error may come of that later.
    """
    raised = _signals is not None and _signals.raised is not None
    return raised or isinstance(error, StoppedError) or behind(error, StopRequest) is not None


@dataclass
class _Asking:
    on_request: Callable[[int], None]
    notice: str
    once_s: float
    asked: float | None = None


class _Signals:
    """The handlers, and what they have received.

    Attributes:
        requested: name of the first signal.
        raised: when a handler last raised `StopRequest`.
        asking: where a first signal only asks.
        status: with which the process leaves, once there is nothing left to stop.
        begun: whether a command has begun to work.
        reading: whether it changes nothing: Ctrl-C interrupts it then.
        decided: whether its work has ended, one way or the other.
        text: what is printed for a process that is ended; its `{}` is the signal's name.
        pipe: to the thread that ends the process of a command.
    """

    def __init__(self, *, begun: bool) -> None:
        self.requested: str | None = None
        self.raised: float | None = None
        self.asking: _Asking | None = None
        self.status: int | None = None
        self.begun = begun
        self.reading = self.decided = False
        self.text = "Stopped: received {}. The same command goes on.\n"
        self.pipe: socket.socket | None = None
        self._before: dict[signal.Signals, Any] = {}

    def install(self) -> None:
        for each in SIGNALS:
            before = signal.getsignal(each)
            # nohup ignores it. Shells ignore SIGINT for what runs in the background, where it is sent on purpose.
            if each != signal.SIGHUP or before != signal.SIG_IGN:
                self._before.setdefault(each, before)
                signal.signal(each, self._handle)

    def restore(self) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)

    def default(self, *numbers: signal.Signals) -> None:
        for each in numbers:
            if each in self._before:
                signal.signal(each, signal.default_int_handler if each == signal.SIGINT else signal.SIG_DFL)

    def request(self) -> StopRequest:
        self.raised = time.monotonic()
        return StopRequest(self.requested)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = self.requested or signal.Signals(number).name
        if self.status is not None:
            return
        if not self.begun or (self.pipe is not None and self.asking is None and not self.reading and _imports(frame)):
            # There is nothing to stop in good order. What is raised in the import of native code may end the process
            # in C++, or be lost, and leaves half a module behind.
            self.end(EXIT_STOPPED)
        if self.reading:
            raise KeyboardInterrupt
        now, asking = time.monotonic(), self.asking
        if asking is None:
            # What has been raised is on its way.
            if self.raised is None or now - self.raised > ONCE_S:
                raise self.request()
        elif asking.asked is None:
            asking.asked = now
            asking.on_request(number)
        elif now - asking.asked > asking.once_s:
            raise self.request()

    def end(self, status: int) -> None:
        """End the process at once; of ranks, only the first says so."""
        if self.status is None and not self.reading and os.environ.get("RANK", "0") == "0":
            _write(self.text.format(self.requested))
        os._exit(status)


_signals: _Signals | None = None


def _imports(frame: FrameType | None) -> bool:
    """Whether a module is being imported."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib."):
            return True
        frame = frame.f_back
    return False


@contextmanager
def _taken() -> Iterator[_Signals]:
    """The signals, given back after the block unless they were taken before."""
    global _signals
    if _signals is not None:
        yield _signals
        return
    _signals = signals = _Signals(begun=True)
    signals.install()
    try:
        yield signals
    finally:
        signals.restore()
        _signals = None


@contextmanager
def stoppable(advice: str = "The same command goes on.", *, when: str = "") -> Iterator[None]:
    """Let a signal end the block, the whole work of a command, with status 75; call it in the main thread.

    After the block, signals no longer change the status of the process of a command. Of two nested blocks the inner one
    decides.

    Args:
        advice: what the user can do then.
        when: added to the signal's name.

    Raises:
        StoppedError: by a signal, whatever the interrupted code has made of what was raised in it.
    """
    with _taken() as signals:
        signals.begun = True
        signals.text = f"Stopped: received {{}}{when}. {advice}\n"
        try:
            yield
        except BaseException as error:
            if signals.decided or isinstance(error, StoppedError) or not is_stop(error):
                raise
            name = behind(error, StopRequest) or signals.requested
            raise StoppedError(f"received {name}{when}. {advice}") from None
        finally:
            signals.decided = True
            leave(EXIT_STOPPED)


@contextmanager
def asking(on_request: Callable[[int], None], *, notice: str = "", once_s: float = ONCE_S) -> Iterator[None]:
    """In the block a first signal calls `on_request` with its number, and only a second one is raised.

    Args:
        on_request: called in the main thread.
        notice: a line that is printed on stderr at the first signal, also while native code runs.
        once_s: signals within so many seconds are one.

    Raises:
        StopRequest: by a second signal, or by one before the block that was swallowed.
    """
    with _taken() as signals:
        check()
        signals.asking = _Asking(on_request, notice, once_s)
        try:
            yield
        finally:
            signals.asking = None


def check() -> None:
    """Do nothing unless a signal has come that should have ended the work.

    Raises:
        StopRequest: one has.
    """
    if _signals is not None and _signals.requested is not None and not _signals.reading and _signals.status is None:
        raise _signals.request()


def reinstall() -> None:
    """Take the signals back from a library that has claimed them."""
    if _signals is not None:
        _signals.install()


def leave(status: int) -> None:
    """There is nothing left to stop: from now on signals only hasten the end of the process of a command.

    Args:
        status: with which it leaves.
    """
    if _signals is not None:
        _signals.status = status
        if _signals.requested is not None and _signals.pipe is not None:
            with suppress(OSError):
                _signals.pipe.send(_LEAVING)


def end_process(status: int) -> NoReturn:
    """Leave with a status, as `sys.exit`; after a signal without waiting until Python has cleared all memory."""
    leave(status)
    if _signals is None or _signals.requested is None:
        sys.exit(status)
    # Until here the thread that ends processes is at work: while Python closes modules it is not, for seconds.
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def only_read() -> None:
    """The command changes nothing: Ctrl-C interrupts it with a `KeyboardInterrupt`, other signals end it."""
    if _signals is not None:
        _signals.begun = _signals.reading = True
        _signals.default(signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def take_signals() -> None:
    """Take the signals for the whole process of a command. Until a command begins, one ends it at once, with 75."""
    global _signals
    if _signals is not None:
        return
    _signals = _Signals(begun=False)
    _signals.install()
    receiving, sending = socket.socketpair()
    sending.setblocking(False)
    _signals.pipe = sending
    signal.set_wakeup_fd(sending.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_enforce, args=(_signals, receiving), daemon=True, name="stopping").start()
    os.register_at_fork(after_in_child=_forget)
    # The first to be registered is the last to run. After it Python gives the signals back, while it closes modules.
    atexit.register(_ignore)


def _enforce(signals: _Signals, receiving: socket.socket) -> None:
    """End the process where the main thread does not. Python's handler in C writes the number of each signal here."""
    first: float | None = None
    deadline = float("inf")
    while True:
        wait = None if deadline == float("inf") else max(0.0, deadline - time.monotonic())
        if not select.select([receiving], [], [], wait)[0]:
            signals.end(130 if signals.reading else EXIT_STOPPED if signals.status is None else signals.status)
        for number in receiving.recv(1):
            now, asking = time.monotonic(), signals.asking
            if number == _LEAVING[0]:
                deadline = min(deadline, now + LEAVING_S)
            elif number not in SIGNALS:
                continue
            elif first is None:
                first = now
                signals.requested = signals.requested or signal.Signals(number).name
                if asking is not None:
                    _write(asking.notice)
                else:
                    deadline = now + (GRACE_S if signals.status is None else LEAVING_S)
            elif now - first > (ONCE_S if asking is None else asking.once_s):
                deadline = min(deadline, now + AGAIN_S)


def _write(text: str) -> None:
    # Not through `sys.stderr`, which the main thread may be using.
    with suppress(OSError):
        os.write(2, text.encode())


def _ignore() -> None:
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)


def _forget() -> None:
    """A forked process is another one; the pipe of its parent is not for its signals."""
    if _signals is not None:
        signal.set_wakeup_fd(-1)
        _signals.default(*SIGNALS)
