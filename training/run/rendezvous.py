"""Ranks before there is a process group: where they meet, and whether every one of them can start.

A process group that one rank never joins keeps the others for hours, in C++, where no signal is heard. So all of them
say first, in the store by which they find each other, how they have come so far.
"""

import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from scorers.errors import EXIT_STOPPED, IncompleteError, UserError
from scorers.stopping import is_stop
from training.run.errors import RankError

Value = TypeVar("Value")

PREPARATION_TIMEOUT = timedelta(days=1)
# Ranks wait this long for each other: while rank 0 evaluates, or hashes a large checkpoint.
COLLECTIVE_TIMEOUT = timedelta(hours=2)
# Rank 0 is looked for so often, and an answer is waited for so long.
_AGAIN_S = 0.2
_ANSWER_S = 5.0
# Rank 0 waits so long for the others to hear that one has failed; some may not have come up yet.
_TELLING_S = 60.0


@dataclass
class Rendezvous:
    """Where ranks meet, by MASTER_ADDR and MASTER_PORT.

    Attributes:
        rank: of this process.
        size: of all.
    """

    rank: int
    size: int
    _store: Any = field(default=None, repr=False)

    @property
    def store(self) -> Any:
        """The rendezvous store, in which this project's keys have a prefix of their own."""
        if self._store is None:
            self._store = PrefixStore("phf", self._open())
        return self._store

    def _open(self) -> Store:
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            # torchrun's own process has it.
            store: Store = next(rendezvous("env://", self.rank, self.size, timeout=COLLECTIVE_TIMEOUT))[0]
            return store
        return self._connect()

    def _connect(self) -> Store:
        """The store, in the process of rank 0: as by `env://`, but nobody waits for a rank that does not come.

        Raises:
            IncompleteError: rank 0 does not answer.
        """
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        problem = f"Rank {self.rank} cannot {'reach rank 0' if self.rank else 'listen'} at {host}:{port}"
        advice = "Check MASTER_ADDR and MASTER_PORT, or choose another port, and run the same command again."
        until = time.monotonic() + COLLECTIVE_TIMEOUT.total_seconds()
        while self.rank and not _answers(host, port):
            if time.monotonic() > until:
                raise IncompleteError(f"{problem}: nobody answers. {advice}")
            time.sleep(_AGAIN_S)
        try:
            store: Store = dist.TCPStore(  # type: ignore[attr-defined]
                host, port, self.size, self.rank == 0, COLLECTIVE_TIMEOUT, wait_for_workers=False, multi_tenant=True
            )
        except dist.DistError as error:
            raise IncompleteError(f"{problem}. {advice}") from error
        return store

    def together(self, stage: str, work: Callable[[], Value], *, after_main: bool = False) -> Value:
        """Run `work` on every rank, and return when it has ended well on all.

        Args:
            stage: a name of its own.
            work: what is done.
            after_main: rank 0 first, and the others when it has ended well there; hours later, it may be.

        Raises:
            RankError: it has failed on one rank and not on rank 0: raised by both, once with the reason.
            SystemExit: on the others, with the status of the rank that says why.
        """
        if after_main and self.rank and (status := self._status(stage, 0, PREPARATION_TIMEOUT)):
            self._hold(stage)
            raise SystemExit(status)
        try:
            result = work()
        except BaseException as error:
            self._tell(stage, exit_code_of(error))
            if is_stop(error) or not isinstance(error, Exception):
                # Who interrupts it does not want to wait.
                raise
            first, status = (0, 0) if self.rank == 0 else self._first_failed(stage)
            self._hold(stage)
            if first != self.rank:
                raise SystemExit(status) from None
            if self.rank == 0 or not isinstance(error, UserError):
                raise
            raise RankError(f"on rank {self.rank} ({socket.gethostname()}): {error}", error.exit_code) from None
        self._tell(stage, 0)
        first, status = self._first_failed(stage)
        if status:
            self._hold(stage)
            if self.rank == 0:
                raise RankError(f"rank {first} could not start, so none does; it says why.", status)
            raise SystemExit(status)
        return result

    def _tell(self, stage: str, status: int) -> None:
        # Where rank 0 is gone, and the store with it, nobody is left to be told.
        with suppress(dist.DistError):
            self.store.set(f"{stage}/{self.rank}", str(status))

    def _first_failed(self, stage: str) -> tuple[int, int]:
        """The first rank that has failed in a stage, and its status; 0 and 0 where none has."""
        for rank in range(self.size):
            if status := self._status(stage, rank, COLLECTIVE_TIMEOUT):
                return rank, status
        return 0, 0

    def _status(self, stage: str, rank: int, timeout: timedelta) -> int:
        """With what a rank has come through a stage, once it has; incomplete where it, or rank 0, is gone."""
        key, until, pause = f"{stage}/{rank}", time.monotonic() + timeout.total_seconds(), 0.02
        try:
            # Looked for, not waited for: in its waits the store hears no signal.
            while not self.store.check([key]):
                if time.monotonic() > until:
                    return IncompleteError.exit_code
                time.sleep(pause)
                pause = min(2 * pause, 1.0)
            return int(self.store.get(key))
        except dist.DistError:
            return IncompleteError.exit_code

    def _hold(self, stage: str) -> None:
        """Say that this rank knows how a stage has ended; rank 0, whose store it may be, stays until all do."""
        until = time.monotonic() + _TELLING_S
        with suppress(dist.DistError):
            known = self.store.add(f"{stage}/told", 1)
            while self.rank == 0 and known < self.size and time.monotonic() < until:
                time.sleep(0.05)
                known = self.store.add(f"{stage}/told", 0)


def _answers(host: str, port: int) -> bool:
    # Asked by ourselves, since torch's store, while it tries, hears no signal, and tells every try.
    try:
        socket.create_connection((host, port), _ANSWER_S).close()
    except OSError:
        return False
    return True


def exit_code_of(error: BaseException) -> int:
    """The status with which a process leaves for an error."""
    if is_stop(error):
        return EXIT_STOPPED
    return error.exit_code if isinstance(error, UserError) else 1
