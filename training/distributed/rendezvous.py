"""The rendezvous: ranks meet and check that all of them can start, before there is a process group.

A process group that one rank never joins blocks the others for hours, in C++, where no signal is handled. So all ranks
first report their progress in the rendezvous store.
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
# How long ranks wait for each other, such as while rank 0 evaluates or hashes a large checkpoint.
COLLECTIVE_TIMEOUT = timedelta(hours=2)
# Ranks are started together, so they should meet within minutes, and a host name should resolve within seconds.
MEETING_TIMEOUT = timedelta(minutes=10)
NAME_TIMEOUT = timedelta(seconds=10)
# Seconds until the first message about waiting, and between further ones.
_PATIENCE_S, _LINES_S = 5.0, 30.0
# Timeout of a connection to rank 0, and of its store once it has answered.
_ANSWER_S = 5.0
_STORE_TIMEOUT = timedelta(seconds=60)
# Status of a rank that did not arrive in time.
_ABSENT = -1
# Key set by a rank that was asked to stop.
_STOPPED = "stopped"
# How long rank 0 waits for the others to read a failure; some may not have started yet.
_ACKNOWLEDGE_S = 60.0


@dataclass
class Rendezvous:
    """The meeting point of `size` ranks at MASTER_ADDR and MASTER_PORT."""

    rank: int
    size: int
    _store: Any = field(default=None, repr=False)

    @property
    def store(self) -> Any:
        """The rendezvous store, with a prefix for phf's keys."""
        if self._store is None:
            self._store = PrefixStore("phf", self._open())
        return self._store

    def _open(self) -> Store:
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            # torchrun's agent hosts the store.
            store: Store = next(rendezvous("env://", self.rank, self.size, timeout=COLLECTIVE_TIMEOUT))[0]
            return store
        return self._connect()

    def _connect(self) -> Store:
        """Connect to the store in the process of rank 0, like `env://`, but without waiting for absent ranks.

        Raises:
            RankError: rank 0 does not answer, or its host name does not resolve here.
        """
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        if not any(_is_known(host, port) for _ in _rounds(None, NAME_TIMEOUT)):
            raise self._error(f"the host name of rank 0, {host!r}, does not resolve here. Check MASTER_ADDR")
        place = f"rank 0 at {host}:{port} (MASTER_ADDR and MASTER_PORT)"
        if self.rank and not any(_answers(host, port) for _ in _rounds(place, MEETING_TIMEOUT)):
            raise self._error(f"cannot reach {place}: no answer. Check them, and that rank 0 is started")
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

        # In a thread, because connected to a program that never answers it would block forever.
        threading.Thread(target=start, daemon=True, name="store").start()
        any(found for _ in _rounds(None, _STORE_TIMEOUT))
        if not found or isinstance(found[0], dist.DistError):
            if self.rank:
                raise self._error(f"what answers at {host}:{port} is not rank 0. Choose another MASTER_PORT")
            raise self._error(
                f"cannot listen at {host}:{port}. Another process, perhaps a second rank 0, may be using it: choose "
                "another MASTER_PORT, or give each process its own RANK"
            )
        found[0].set_timeout(COLLECTIVE_TIMEOUT)
        return found[0]

    def _error(self, problem: str) -> RankError:
        # Name the rank: no other rank reports this.
        where = f"rank {self.rank} ({socket.gethostname()})"
        return RankError(f"{where}: {problem}, and run the same command again.", IncompleteError.exit_code)

    def meet(self, check_self: Callable[[], None]) -> None:
        """Wait until all ranks have arrived, and check that each is one process and all run the same software.

        Args:
            check_self: run on each rank to check its machine.

        Raises:
            UserError, RankError, SystemExit: as for `together`.
        """
        mine = {"size": self.size, "versions": dict(library_versions("phf", "torch", "deepspeed"))}
        process = f"process {os.getpid()} of {socket.gethostname()}"

        # Before any stage, in which both processes of a rank would write the same key.
        first = self.store.compare_set(f"process/{self.rank}", "", process).decode()
        if first != process:
            raise self._error(
                f"{first} is rank {self.rank} too. Give each process its own RANK, or end all ranks if it has ended"
            )

        def come() -> None:
            self.store.set(f"facts/{self.rank}", json.dumps(mine))
            check_self()

        def compare() -> None:
            first = json.loads(self._read("facts/0") or "{}")
            if first != mine:
                raise UserError(
                    f"this rank differs from rank 0: {_describe(mine)} here, {_describe(first)} there. Install the "
                    "same versions on all machines, and give all ranks the same WORLD_SIZE."
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
        """Run `work` on every rank, and return its result when it has succeeded on all.

        Args:
            stage: a unique name.
            work: the work of a rank.
            after_main: run it on rank 0 first, and on the others once that succeeded, which may take hours.
            within: how much longer one rank may take than another.

        Raises:
            RankError: on a rank that failed where rank 0 did not, with the reason; and on rank 0.
            IncompleteError: on rank 0 if another rank did not arrive in time.
            SystemExit: on the others, with the status of the rank that reports the failure.
            StopRequest: a signal asked to stop; the other ranks are notified.
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
                # Do not wait for others after an interruption.
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
                f"Rank {rank} of {self.size} did not arrive within {within.total_seconds() / 60:g} minutes. Start as "
                "many ranks as WORLD_SIZE says, each with its own RANK, and run the same command again."
            )
        reason = "was asked to stop" if status == EXIT_STOPPED else "could not start"
        hint = "" if status == EXIT_STOPPED else "; see its own message"
        return RankError(f"rank {rank} {reason}, so no rank starts{hint}.", status)

    def _set(self, key: str, status: int) -> None:
        # If rank 0 and its store are gone, no rank is left to read it.
        with suppress(dist.DistError):
            self.store.set(key, str(status))

    def _first_failed(self, stage: str, within: timedelta) -> tuple[int, int]:
        """The first rank that failed in a stage, and its status; 0 and 0 if none did."""
        for rank in range(self.size):
            if status := self._status(stage, rank, within):
                return rank, status
        return 0, 0

    def _status(self, stage: str, rank: int, within: timedelta) -> int:
        """Wait for the status of a rank in a stage; that of `IncompleteError` if the store is gone."""
        key = f"{stage}/{rank}"
        # Only rank 0 reports that it waits. While others wait for rank 0, its work shows its own progress.
        shown = f"rank {rank} of {self.size}" if self.rank == 0 else None
        try:
            # Poll: no signal handler runs during the store's own blocking wait.
            for _ in _rounds(shown, within):
                if self.store.check([key]):
                    return int(self.store.get(key))
                if self.store.check([_STOPPED]):
                    return EXIT_STOPPED
        except dist.DistError:
            return IncompleteError.exit_code
        return _ABSENT

    def _hold(self, stage: str) -> None:
        """Acknowledge the end of a stage; rank 0, which may host the store, waits until all ranks have."""
        until = time.monotonic() + _ACKNOWLEDGE_S
        with suppress(dist.DistError):
            known = self.store.add(f"{stage}/told", 1)
            while self.rank == 0 and known < self.size and time.monotonic() < until:
                check()
                time.sleep(0.05)
                known = self.store.add(f"{stage}/told", 0)


def _rounds(what: str | None, within: timedelta) -> Iterator[None]:
    """Yield repeatedly with growing pauses until the time is over, printing now and then what is waited for.

    Raises:
        StopRequest: a signal asked to stop.
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


def _describe(facts: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in facts.get("versions", {}).items())
    return f"{versions or 'another phf'}, WORLD_SIZE {facts.get('size', 'unknown')}"


def _exit_status(status: int) -> int:
    return IncompleteError.exit_code if status == _ABSENT else status


def _answers(host: str, port: int) -> bool:
    # Try the connection here: torch's store handles no signals while it tries, and prints every attempt.
    try:
        socket.create_connection((host, port), _ANSWER_S).close()
    except OSError:
        return False
    return True


def exit_code_of(error: BaseException) -> int:
    """The exit status of a process that ends with an error."""
    if is_stop(error):
        return EXIT_STOPPED
    return error.exit_code if isinstance(error, UserError) else 1
