"""A signal to stop that comes outside of the training loop: while a run is prepared, and on its way out."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from scorers.errors import StoppedError
from scorers.stopping import StopRequest, behind

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


@contextmanager
def stoppable() -> Iterator[None]:
    """Let the signals that stop a run end the block with status 75; the training loop takes them in between.

    Raises:
        StoppedError: one came; from then on they are ignored.
    """
    before = {number: signal.signal(number, _stop) for number in SIGNALS}
    try:
        yield
    except BaseException as error:
        request = behind(error, StopRequest)
        if request is None:
            raise
        raise StoppedError(f"received {request} outside of training. The same command goes on.") from None
    finally:
        for number, handler in before.items():
            # Not of a process that is leaving.
            if signal.getsignal(number) is _stop:
                signal.signal(number, handler)


def leave() -> None:
    """Within `stoppable`, a run that has stopped is not asked again, to the end of its process.

    Ranks stop together when any of them is asked, so that for some the signal comes when they are about to leave.
    """
    for number in SIGNALS:
        if signal.getsignal(number) is _stop:
            signal.signal(number, signal.SIG_IGN)


def _stop(number: int, _: FrameType | None) -> None:
    leave()
    raise StopRequest(signal.Signals(number).name)
