"""Ranks before there is a process group: where they meet, and whether every one of them can start.

A process group that one rank never joins keeps the others for hours, in C++, where no signal is heard. So all of them
say first, in the store by which they find each other, how they have come so far.
"""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from scorers.errors import EXIT_STOPPED, IncompleteError, UserError
from scorers.fingerprint import library_versions
from scorers.stopping import check, is_stop
from training.distributed.errors import RankError

Value = TypeVar("Value")

PREPARATION_TIMEOUT = timedelta(days=1)
# Ranks wait this long for each other: while rank 0 evaluates, or hashes a large checkpoint.
COLLECTIVE_TIMEOUT = timedelta(hours=2)
# Ranks are started together, so that they find each other within minutes, and a name is known within seconds.
MEETING_TIMEOUT = timedelta(minutes=10)
NAME_TIMEOUT = timedelta(seconds=10)
# Seconds until a line says who is waited for, and between such lines.
_PATIENCE_S, _LINES_S = 5.0, 30.0
# Rank 0 is waited for so long to answer, and so long to be a rank of phf once it has.
_ANSWER_S = 5.0
_STORE_TIMEOUT = timedelta(seconds=60)
# What has become of a rank that has not come in time.
_ABSENT = -1
# Set by a rank that was asked to stop.
_STOPPED = "stopped"
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
            RankError: rank 0 does not answer, or its name is not known here.
        """
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        if not any(_is_known(host, port) for _ in _rounds(None, NAME_TIMEOUT)):
            raise self._lonely(f"the name of the machine of rank 0, {host!r}, is not known here. Check MASTER_ADDR")
        place = f"rank 0 at {host}:{port} (MASTER_ADDR and MASTER_PORT)"
        if self.rank and not any(_answers(host, port) for _ in _rounds(place, MEETING_TIMEOUT)):
            raise self._lonely(f"cannot reach {place}: nobody answers. Check them, and that rank 0 is started")
        found: list[Store | dist.DistError] = []

        def start() -> None:
            try:
                found.append(
                    dist.TCPStore(  # type: ignore[attr-defined]
                        host, port, self.size, self.rank == 0, _STORE_TIMEOUT, wait_for_workers=False, multi_tenant=True
                    )
                )
            except dist.DistError as error:
                found.append(error)

        # Connected to a program that says nothing, it waits for ever.
        threading.Thread(target=start, daemon=True, name="store").start()
        any(found for _ in _rounds(None, _STORE_TIMEOUT))
        if not found or isinstance(found[0], dist.DistError):
            if self.rank:
                raise self._lonely(f"what answers at {host}:{port} is not rank 0. Choose another MASTER_PORT")
            raise self._lonely(
                f"cannot listen at {host}:{port}. Another process may, a second rank 0 perhaps: choose another "
                "MASTER_PORT, or give each process a RANK of its own"
            )
        found[0].set_timeout(COLLECTIVE_TIMEOUT)
        return found[0]

    def _lonely(self, problem: str) -> RankError:
        # No other rank can say it.
        where = f"rank {self.rank} ({socket.gethostname()})"
        return RankError(f"{where}: {problem}, and run the same command again.", IncompleteError.exit_code)

    def meet(self, check_self: Callable[[], None]) -> None:
        """Return when all ranks have come, run the same software, and each is one process.

        Args:
            check_self: what each rank can find out about itself.

        Raises:
            UserError, RankError, SystemExit: as `together`.
        """
        mine = {"size": self.size, "versions": dict(library_versions("phf", "torch", "deepspeed"))}
        process = f"process {os.getpid()} of {socket.gethostname()}"

        # Not in a stage, where both processes of a rank would write the same key.
        first = self.store.compare_set(f"process/{self.rank}", "", process).decode()
        if first != process:
            raise self._lonely(
                f"{first} is rank {self.rank} too. Give each process a RANK of its own, or end all if it has ended"
            )

        def come() -> None:
            self.store.set(f"facts/{self.rank}", json.dumps(mine))
            check_self()

        def compare() -> None:
            first = json.loads(self._read("facts/0") or "{}")
            if first != mine:
                raise UserError(
                    f"this rank is not like rank 0: {_shown(mine)} here, {_shown(first)} there. Install the same "
                    "versions on all machines, and give all ranks the same WORLD_SIZE."
                )

        self.together("started", come, within=MEETING_TIMEOUT)
        self.together("alike", compare, within=MEETING_TIMEOUT)

    def _read(self, key: str) -> str:
        return self.store.get(key).decode() if self.store.check([key]) else ""

    def together(
        self,
        stage: str,
        work: Callable[[], Value],
        *,
        after_main: bool = False,
        within: timedelta = COLLECTIVE_TIMEOUT,
    ) -> Value:
        """Run `work` on every rank, and return when it has ended well on all.

        Args:
            stage: a name of its own.
            work: what is done.
            after_main: rank 0 first, and the others when it has ended well there; hours later, it may be.
            within: how long a rank may take longer than another.

        Raises:
            RankError: it has failed on one rank and not on rank 0: raised by both, once with the reason.
            IncompleteError: on rank 0, another has not come in time.
            SystemExit: on the others, with the status of the rank that says why.
            StopRequest: asked to stop; the other ranks learn of it.
        """
        try:
            return self._together(stage, work, after_main=after_main, within=within)
        except BaseException as error:
            if is_stop(error) and self._store is not None:
                self._set(_STOPPED, EXIT_STOPPED)
            raise

    def _together(self, stage: str, work: Callable[[], Value], *, after_main: bool, within: timedelta) -> Value:
        if after_main and self.rank and (status := self._status(stage, 0, PREPARATION_TIMEOUT)):
            self._hold(stage)
            raise SystemExit(_exit_status(status))
        try:
            result = work()
        except BaseException as error:
            self._set(f"{stage}/{self.rank}", exit_code_of(error))
            if is_stop(error) or not isinstance(error, Exception):
                # Who interrupts it does not want to wait.
                raise
            first, status = (0, 0) if self.rank == 0 else self._first_failed(stage, within)
            self._hold(stage)
            if first != self.rank:
                raise SystemExit(_exit_status(status)) from None
            if self.rank == 0 or not isinstance(error, UserError):
                raise
            raise RankError(f"on rank {self.rank} ({socket.gethostname()}): {error}", error.exit_code) from None
        self._set(f"{stage}/{self.rank}", 0)
        first, status = self._first_failed(stage, within)
        if status:
            if status not in (_ABSENT, EXIT_STOPPED):
                self._hold(stage)
            if self.rank:
                raise SystemExit(_exit_status(status))
            raise self._without(first, status, within)
        return result

    def _without(self, rank: int, status: int, within: timedelta) -> UserError:
        if status == _ABSENT:
            return IncompleteError(
                f"Rank {rank} of {self.size} has not come within {within.total_seconds() / 60:g} minutes. Start as "
                "many ranks as WORLD_SIZE says, each with a RANK of its own, and run the same command again."
            )
        reason = "was asked to stop" if status == EXIT_STOPPED else "could not start"
        says = "" if status == EXIT_STOPPED else "; it says why"
        return RankError(f"rank {rank} {reason}, so none does{says}.", status)

    def _set(self, key: str, status: int) -> None:
        # Where rank 0 is gone, and the store with it, nobody is left to read it.
        with suppress(dist.DistError):
            self.store.set(key, str(status))

    def _first_failed(self, stage: str, within: timedelta) -> tuple[int, int]:
        """The first rank that has failed in a stage, and its status; 0 and 0 where none has."""
        for rank in range(self.size):
            if status := self._status(stage, rank, within):
                return rank, status
        return 0, 0

    def _status(self, stage: str, rank: int, within: timedelta) -> int:
        """With what a rank has come through a stage, once it has; incomplete where it, or rank 0, is gone."""
        key = f"{stage}/{rank}"
        # Rank 0 says it for all. Work of its own shows how far it is.
        shown = f"rank {rank} of {self.size}" if self.rank == 0 else None
        try:
            # Looked for, not waited for: in its waits the store runs no handler of a signal.
            for _ in _rounds(shown, within):
                if self.store.check([key]):
                    return int(self.store.get(key))
                if self.store.check([_STOPPED]):
                    return EXIT_STOPPED
        except dist.DistError:
            return IncompleteError.exit_code
        return _ABSENT

    def _hold(self, stage: str) -> None:
        """Say that this rank knows how a stage has ended; rank 0, whose store it may be, stays until all do."""
        until = time.monotonic() + _TELLING_S
        with suppress(dist.DistError):
            known = self.store.add(f"{stage}/told", 1)
            while self.rank == 0 and known < self.size and time.monotonic() < until:
                check()
                time.sleep(0.05)
                known = self.store.add(f"{stage}/told", 0)


def _rounds(what: str | None, within: timedelta) -> Iterator[None]:
    """Look again and again, with pauses, until the time is over; a line says now and then what is waited for.

    Raises:
        StopRequest: asked to stop meanwhile.
    """
    began, pause = time.monotonic(), 0.02
    line = began + _PATIENCE_S
    while (now := time.monotonic()) < began + within.total_seconds():
        check()
        yield
        if what is not None and now > line:
            line = now + _LINES_S
            limit = within.total_seconds() / 60
            sys.stderr.write(f"Waiting for {what}: {now - began:.0f} s so far, {limit:g} minutes at most.\n")
        time.sleep(pause)
        pause = min(2 * pause, 1.0)


def _is_known(host: str, port: int) -> bool:
    try:
        socket.getaddrinfo(host, port)
    except OSError:
        return False
    return True


def _shown(facts: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in facts.get("versions", {}).items())
    return f"{versions or 'another phf'}, WORLD_SIZE {facts.get('size', 'unknown')}"


def _exit_status(status: int) -> int:
    return IncompleteError.exit_code if status == _ABSENT else status


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
