"""Detect that a Ray cluster has lost its head, before Ray kills this process a minute later."""

import contextlib
import os
import queue
import socket
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from scorers.errors import IncompleteError

# Ray's own setting and its default: seconds without the head's control service (GCS) after which its native code exits
# with status 1. Until then the head may come back, if the cluster persists its state.
_RAY_VARIABLE, _RAY_S = "RAY_gcs_rpc_server_reconnect_timeout_s", 60.0
_SHARE = 2 / 3
_INTERVAL_S = 2.0
_ANSWER_S = 2.0


Answer = TypeVar("Answer")


def ask_with_timeout(ask: Callable[[], Answer], seconds: float = _ANSWER_S) -> Answer | None:
    """Call `ask`, which queries the cluster's head; return None if it does not return within `seconds`.

    Without a head, Ray blocks the caller until it kills the process. So the call runs in a thread that is not joined.
    """
    answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()

    def wait() -> None:
        with contextlib.suppress(Exception):  # a failure counts as no answer
            answers.put(ask())

    threading.Thread(target=wait, daemon=True, name="head-query").start()
    try:
        return answers.get(timeout=seconds)
    except queue.Empty:
        return None


class HeadLostError(IncompleteError):
    """The head of the cluster is gone: every further call to Ray may block."""


class LostHeads:
    """Records that the head of the local Ray has died; `cause` returns the message, or is None while it runs."""

    cause: Callable[[], str] | None = None


class HeadWatch:
    """Checks every two seconds whether the head of the cluster still listens.

    Only a head that has answered before counts as lost: a driver that is connected through a Ray client (`ray://`) may
    be unable to reach this port although the cluster is healthy; Ray itself reports a lost head there.

    Args:
        address: `host:port` of the control service.
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
        """Raise if the head is lost.

        Raises:
            HeadLostError: the head has not answered for two thirds of Ray's own timeout, or is known to have died.
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
                    "stays; the same command continues once there is a cluster again."
                ) from None
        else:
            self._answered = now
        self._due = now + _INTERVAL_S
