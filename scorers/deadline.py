"""A deadline for work that may hang: a pathological pattern, a checker that is quadratic in the length of a line.

In the main thread, where Ray runs an actor's methods and where commands and tests run, a deadline is a signal.
CPython's regular expressions look for signals while they match, so even a pattern that backtracks for hours is
stopped. In another thread an exception is set from outside; it arrives with the next bytecode, after whatever single
call into C is running.

Neither stops C code that never returns to the interpreter (a tokeniser in Cython or Rust, a matrix product). Whoever
owns the process has to kill it then; the labelling job does so after `unit_deadline_s`.
"""

import ctypes
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

# Fired again and again, because a library's bare `except:` may swallow the first one.
_REPEAT_S = 0.05


class DeadlineExceededError(BaseException):
    """The block took longer than it may. No `Exception`, so that a library's `except Exception` does not swallow it."""


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Run the block for at most `seconds` of wall time. Deadlines nest: the one that ends first counts.

    Raises:
        DeadlineExceededError: inside the block, when its time is over.
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
        # The deadline around this block ends first, and its own timer is running already.
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
    # Armed inside, so that a deadline too short to be reached disarmed cannot go on firing at whatever comes next.
    try:
        try:
            yield
        finally:
            disarm()
    except DeadlineExceededError:
        # It may have come in the middle of disarming; the next would come a twentieth of a second later.
        disarm()
        raise


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    """Set, or with None take back, the exception that a thread raises at its next bytecode."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread), ctypes.py_object(error) if error is not None else None
    )
