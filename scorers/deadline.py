"""A deadline for work that may hang, such as a pathological regular expression or a quadratic checker.

In the main thread, where commands, tests and the methods of Ray actors run, the deadline is a signal. CPython's
regular expressions check for signals while they match, so even a pattern that backtracks for hours is stopped. In any
other thread an exception is set from outside; it is raised at the next bytecode, after the current call into C.

Neither stops C code that never returns to the interpreter (a tokeniser in Cython or Rust, a matrix product). The owner
of the process has to kill it then; the labelling job does so after `unit_deadline_s`.
"""

import ctypes
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

# Raise repeatedly, because a library's bare `except:` may swallow the first exception.
_REPEAT_S = 0.05


class DeadlineExceededError(BaseException):
    """The block exceeded its deadline. Not an `Exception`, so that no library's `except Exception` swallows it."""


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Run the block for at most `seconds` of wall time. Deadlines nest: the earliest one counts.

    Raises:
        DeadlineExceededError: inside the block, when its time is up.
    """
    if threading.current_thread() is threading.main_thread():
        with _by_signal(seconds):
            yield
    else:
        with _by_thread(seconds):
            yield


@contextmanager
def _by_signal(seconds: float) -> Iterator[None]:
    began = time.monotonic()
    outer_handler = signal.getsignal(signal.SIGALRM)
    outer_left, outer_interval = signal.getitimer(signal.ITIMER_REAL)
    if outer_left and outer_left <= seconds:
        # The outer deadline is earlier, and its timer is already running.
        yield
        return

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise DeadlineExceededError

    def disarm() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, outer_handler if outer_handler is not None else signal.SIG_DFL)
        if outer_left:
            left = max(outer_left - (time.monotonic() - began), 1e-3)
            signal.setitimer(signal.ITIMER_REAL, left, outer_interval)

    with _disarmed_by(disarm):
        signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, seconds, _REPEAT_S)
        yield


@contextmanager
def _by_thread(seconds: float) -> Iterator[None]:
    target = threading.get_ident()
    lock = threading.Lock()
    done = threading.Event()

    def watch() -> None:
        wait = seconds
        while not done.wait(wait):
            with lock:
                if not done.is_set():
                    _raise_in(target, DeadlineExceededError)
            wait = _REPEAT_S

    def disarm() -> None:
        with lock:
            done.set()
            _raise_in(target, None)

    with _disarmed_by(disarm):
        threading.Thread(target=watch, daemon=True, name="deadline").start()
        yield


@contextmanager
def _disarmed_by(disarm: Callable[[], None]) -> Iterator[None]:
    # Arm inside the `try`, so that a very short deadline is disarmed too and does not keep firing afterwards.
    try:
        try:
            yield
        finally:
            disarm()
    except DeadlineExceededError:
        # It may have interrupted `disarm`; the next one would come _REPEAT_S later.
        disarm()
        raise


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    """Set the exception that a thread raises at its next bytecode; None clears it."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread), ctypes.py_object(error) if error is not None else None
    )
