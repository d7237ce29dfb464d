"""Handle requests to stop (SIGTERM, Ctrl-C, SIGHUP, SIGUSR1), from the signal to the end of the process.

A signal has three effects, since the main thread may be anywhere:

- Python's handler raises `StopRequest` there, or calls the function given to `asking`.
- The request is remembered, because libraries swallow exceptions raised in an import or a destructor: `check` raises
  it again wherever the code waits.
- In the process of a command a thread, which native code cannot block, ends the process if it does not end by itself
  in time, or if it is signalled again.
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
# Seconds in which signals are one request. Ctrl-C: a launcher passes on what the terminal has sent to all. Other
# signals come from programs, and `ray job stop` sends one to each process of a job, also to those that pass it on.
ONCE_S, REPEATED_S = 1.0, 5.0
# Seconds from the request to the forced end of the process: while it works without `asking`; while it exits, when
# trackers may still send data; and after a second signal.
GRACE_S, LEAVING_S, AGAIN_S = 8.0, 30.0, 5.0

# Written to the pipe in place of a signal's number when a command that was asked to stop has nothing left to do.
_LEAVING = b"\0"

Interruption = TypeVar("Interruption", bound=BaseException)


class StopRequest(BaseException):  # not an `Exception`, which libraries catch and drop
    """Raised by a signal wherever the main thread is; its message is the signal's name.

    `stoppable` turns it into a `StoppedError`.
    """


def find_interruption(error: BaseException | None, kind: type[Interruption]) -> Interruption | None:
    """Find the interruption that caused `error`: itself, its cause or its context, to any depth.

    Interrupted code may raise an error of its own. Python does so while it creates a class (a `RuntimeError` around
    whatever `__set_name__` raises); libraries do so when an import fails.

    Returns:
        The first exception in the chain of this kind; None if there is none.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, kind):
            return error
        seen.add(id(error))
        error = error.__cause__ if error.__cause__ is not None else error.__context__
    return None


def is_stop(error: BaseException) -> bool:
    """Return whether `error` ends the work because of a signal, or because a newer run has taken over.

    After a signal any error counts: an interrupted import leaves half a module, which may raise anything later.
    """
    raised = _signals is not None and _signals.raised is not None
    return raised or isinstance(error, StoppedError) or find_interruption(error, StopRequest) is not None


@dataclass
class _Asking:
    on_request: Callable[[int], None]
    notice: str
    once_s: float | None
    requested_at: float | None = None


class _Signals:
    """The signal handlers and their state.

    Attributes:
        requested: name of the first signal.
        raised: when a handler last raised `StopRequest`.
        interrupted: when it last raised `KeyboardInterrupt`.
        asking: the current `asking` block, in which the first signal only calls a function.
        status: the exit status, once there is nothing left to stop.
        begun: whether a command has begun to work.
        reading: whether the command changes nothing, so that Ctrl-C interrupts it.
        decided: whether the command's work has ended.
        text: message printed when the process is ended by force; its `{}` is the signal's name.
        pipe: socket to the thread that ends the process of a command.
    """

    def __init__(self, *, begun: bool) -> None:
        self.requested: str | None = None
        self.raised: float | None = None
        self.interrupted: float | None = None
        self.asking: _Asking | None = None
        self.status: int | None = None
        self.begun = begun
        self.reading = self.decided = False
        self.text = "Stopped: received {}. The same command continues.\n"
        self.pipe: socket.socket | None = None
        self._before: dict[signal.Signals, Any] = {}

    def install(self) -> None:
        for each in SIGNALS:
            before = signal.getsignal(each)
            # Leave SIGHUP ignored under nohup, but not SIGINT, which shells ignore in background jobs: there it is sent
            # on purpose.
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
        if not self.begun or (self.pipe is not None and self.asking is None and not self.reading and _importing(frame)):
            # Nothing needs a clean stop yet. An exception raised while native code is imported may abort in C++ or be
            # lost, and leaves half a module.
            self.end(EXIT_STOPPED)
        now, asking = time.monotonic(), self.asking
        if self.reading:
            if self.interrupted is None or now - self.interrupted > ONCE_S:
                self.interrupted = now
                raise KeyboardInterrupt
            # The first one is on its way.
            return
        if asking is None:
            # Until then the earlier exception is on its way.
            if self.raised is None or now - self.raised > _once_s(number):
                raise self.request()
        elif asking.requested_at is None:
            asking.requested_at = now
            asking.on_request(number)
        elif now - asking.requested_at > _once_s(number, asking):
            raise self.request()

    def end(self, status: int) -> None:
        """End the process at once; only rank 0 prints the message."""
        if self.status is None and not self.reading and os.environ.get("RANK", "0") == "0":
            _write(self.text.format(self.requested))
        os._exit(status)


_signals: _Signals | None = None


def _once_s(number: int, asking: _Asking | None = None) -> float:
    """Return the seconds within which a signal belongs to the request before it."""
    if asking is not None and asking.once_s is not None:
        return asking.once_s
    return ONCE_S if number == signal.SIGINT else REPEATED_S


def _importing(frame: FrameType | None) -> bool:
    """Return whether a module is being imported."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib."):
            return True
        frame = frame.f_back
    return False


@contextmanager
def _installed() -> Iterator[_Signals]:
    """Install the handlers for the block, unless they are already installed."""
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
def stoppable(advice: str = "The same command continues.", *, when: str = "") -> Iterator[None]:
    """Let a signal end the block, the whole work of a command, with status 75; call it in the main thread.

    After the block, signals no longer change the exit status of a command. The inner of two nested blocks decides.

    Args:
        advice: what the user can do next.
        when: appended to the signal's name in the message.

    Raises:
        StoppedError: a signal came, whatever exception the interrupted code raised in turn.
    """
    with _installed() as signals:
        signals.begun = True
        signals.text = f"Stopped: received {{}}{when}. {advice}\n"
        try:
            yield
        except BaseException as error:
            if signals.decided or isinstance(error, StoppedError) or not is_stop(error):
                raise
            name = find_interruption(error, StopRequest) or signals.requested
            raise StoppedError(f"received {name}{when}. {advice}") from None
        finally:
            signals.decided = True
            leave(EXIT_STOPPED)


@contextmanager
def asking(on_request: Callable[[int], None], *, notice: str = "", once_s: float | None = None) -> Iterator[None]:
    """In the block, let the first signal call `on_request` with its number, and raise only at the second.

    Args:
        on_request: called in the main thread.
        notice: a line printed on stderr at the first signal, even while native code runs.
        once_s: signals within so many seconds count as one; by default ONCE_S for Ctrl-C and REPEATED_S for others.

    Raises:
        StopRequest: a second signal came, or one that was swallowed before the block.
    """
    with _installed() as signals:
        check()
        signals.asking = _Asking(on_request, notice, once_s)
        try:
            yield
        finally:
            signals.asking = None


def check() -> None:
    """Raise again the request of a signal that should have ended the work.

    Raises:
        StopRequest: such a signal has come.
    """
    if _signals is not None and _signals.requested is not None and not _signals.reading and _signals.status is None:
        raise _signals.request()


def forget() -> None:
    """End a forked process at a signal as if nothing had been installed."""
    global _signals
    _signals = None
    signal.set_wakeup_fd(-1)
    for each in SIGNALS:
        signal.signal(each, signal.SIG_DFL)


def reinstall() -> None:
    """Install the handlers again after a library has replaced them."""
    if _signals is not None:
        _signals.install()


def leave(status: int) -> None:
    """Declare that nothing is left to stop: from now on a signal only hastens the exit with `status`."""
    if _signals is not None:
        _signals.status = status
        if _signals.requested is not None and _signals.pipe is not None:
            with suppress(OSError):
                _signals.pipe.send(_LEAVING)


def end_process(status: int) -> NoReturn:
    """Exit like `sys.exit`, but after a signal do not wait for Python to free all memory."""
    leave(status)
    if _signals is None or _signals.requested is None:
        sys.exit(status)
    # Daemon threads, such as the one that ends the process, do not run while Python tears down modules, for seconds.
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def declare_read_only() -> None:
    """Declare that the command changes nothing: Ctrl-C raises `KeyboardInterrupt`, other signals end the process."""
    if _signals is not None:
        _signals.begun = _signals.reading = True
        _signals.default(signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def take_signals() -> None:
    """Install the handlers for the whole process of a command. Until it begins to work, a signal ends it with 75."""
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
    os.register_at_fork(after_in_child=_reset_in_child)
    # Registered first, so that it runs last. After it Python restores the default handlers while it closes modules.
    atexit.register(_ignore)


def _enforce(signals: _Signals, receiving: socket.socket) -> None:
    """End the process if the main thread does not. Python's C handler writes the number of each signal to the pipe."""
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
            elif now - first > _once_s(number, asking):
                deadline = min(deadline, now + AGAIN_S)


def _write(text: str) -> None:
    # Not through `sys.stderr`, whose lock the main thread may hold.
    with suppress(OSError):
        os.write(2, text.encode())


def _ignore() -> None:
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)


def _reset_in_child() -> None:
    """Restore the default handlers in a forked process, whose signals must not go to its parent's pipe."""
    if _signals is not None:
        signal.set_wakeup_fd(-1)
        _signals.default(*SIGNALS)
