"""Notice that a Ray cluster has lost its head, in time to say so: Ray ends the process in mid-air a minute later."""

import contextlib
import os
import queue
import socket
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from scorers.errors import IncompleteError

# Ray's own setting, and its default: seconds without the head's control service (GCS) after which its native code
# prints a line and leaves with status 1. Until then the head may come back, where the cluster keeps its state.
_RAY_VARIABLE, _RAY_S = "RAY_gcs_rpc_server_reconnect_timeout_s", 60.0
_SHARE = 2 / 3
_EVERY_S = 2.0
_ANSWER_S = 2.0


Answer = TypeVar("Answer")


def ask_with_timeout(ask: Callable[[], Answer], seconds: float = _ANSWER_S) -> Answer | None:
    """What a question to the cluster's head comes to, or None where it does not come in time.

    Without a head, Ray blocks whoever asks until it ends the process. So a thread asks, and nobody waits for its end.
    """
    answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()

    def wait() -> None:
        with contextlib.suppress(Exception):  # no answer is an answer too
            answers.put(ask())

    threading.Thread(target=wait, daemon=True, name="question").start()
    try:
        return answers.get(timeout=seconds)
    except queue.Empty:
        return None


class HeadLostError(IncompleteError):
    """The head of the cluster is gone: whatever asks Ray for anything from now on may block."""


class LostHeads:
    """Heads of this process's own Rays that are known to have died; `cause` says how, or is None."""

    cause: Callable[[], str] | None = None


class HeadWatch:
    """Looks every other second whether the head of the cluster still listens.

    Only a head that has answered here before can be missed: a driver on a client's connection (`ray://`) may have no
    way to that port although its cluster is well, and is told of a lost one by Ray alone.

    Args:
        address: `host:port` of its control service.
        clock: monotonic seconds.
    """

    def __init__(self, address: str, clock: Callable[[], float] = time.monotonic) -> None:
        host, _, port = address.rpartition(":")
        self._place = (host.strip("[]"), int(port))
        self._clock = clock
        self._patience_s = _SHARE * float(os.environ.get(_RAY_VARIABLE, _RAY_S))
        self._due = clock()
        self._answered: float | None = None

    def check(self) -> None:
        """Do nothing as long as the head listens, or may come back.

        Raises:
            HeadLostError: it has not listened for two thirds of the time that Ray gives it, or is known to have died.
        """
        if LostHeads.cause is not None:
            raise HeadLostError(LostHeads.cause())
        now = self._clock()
        if now < self._due:
            return
        try:
            socket.create_connection(self._place, timeout=_ANSWER_S).close()
        except OSError:
            now = self._clock()
            if self._answered is not None and now - self._answered >= self._patience_s:
                raise HeadLostError(
                    f"The head of the Ray cluster ({self._place[0]}:{self._place[1]}) has not answered for "
                    f"{now - self._answered:.0f} s: it is down, or this machine is cut off from it. What is committed "
                    "stays; the same command goes on once there is a cluster again."
                ) from None
        else:
            self._answered = now
        self._due = now + _EVERY_S
