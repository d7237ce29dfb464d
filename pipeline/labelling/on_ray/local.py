"""A Ray of our own, watched from its first process on: where its head dies, Ray waits for minutes, then ends us."""

import contextlib
import os
import queue
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from pipeline.labelling.on_ray.head import HeadLostError, LostHeads
from scorers.errors import IncompleteError, UserError

# The processes without which there is no Ray, by the names of their programs.
_HEAD = {"gcs_server", "raylet"}
_EVERY_S = 0.1
# Seconds for the main thread to leave by itself after the head has died; Ray's native code ends the process after 60.
_GRACE_S = 20.0
_LINES = 100  # a stack trace, and the line before it that says why


@contextlib.contextmanager
def local_ray(start: Callable[[], object], logs: Path) -> Iterator[None]:
    """Start Ray, and keep watch over its head until the block is left.

    Args:
        start: calls `ray.init`.
        logs: folder in which Ray will keep its logs.

    Raises:
        UserError: Ray takes no such settings.
        HeadLostError: the head died while it started; what its logs said last is in a file that the message names.
        IncompleteError: Ray did not start for another reason, such as a machine that is too loaded.
    """
    ray = _LocalRay(start, logs)
    try:
        ray.wait()
        yield
    finally:
        ray.leave()


class _LocalRay:
    def __init__(self, start: Callable[[], object], logs: Path) -> None:
        self._start = start
        self._logs = logs
        self._started: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._left = threading.Event()
        self._seen: dict[int, str] = {}
        # Ray's processes are killed with the thread that started them: it must last as long as they.
        self._thread = threading.Thread(target=self._run, daemon=True, name="local-ray")

    def wait(self) -> None:
        """Start Ray; raises as `local_ray`."""
        self._thread.start()
        try:
            error = self._outcome()
        except HeadLostError:
            raise
        except BaseException:  # asked to stop
            with contextlib.suppress(queue.Empty):
                self._started.get(timeout=_GRACE_S)
            import ray

            ray.shutdown()
            raise
        if (died := self._died()) is not None:
            raise HeadLostError(self._message(died))
        if isinstance(error, ValueError):
            raise UserError(f"Ray does not start on this machine: {_first_line(error)}.")
        if error is not None:
            raise IncompleteError(
                f"Ray did not start on this machine ({_first_line(error)}). It may be too loaded, or short of memory. "
                f"The same command goes on.{self._kept_logs()}"
            )
        threading.Thread(target=self._watch, daemon=True, name="local-ray-watch").start()

    def _outcome(self) -> BaseException | None:
        while True:
            try:
                return self._started.get(timeout=_EVERY_S)
            except queue.Empty:
                if (died := self._died()) is not None:
                    raise HeadLostError(self._message(died)) from None

    def leave(self) -> None:
        """Stop watching, and end what is left of Ray."""
        self._left.set()
        LostHeads.cause = None

    def _run(self) -> None:
        try:
            self._start()
        except BaseException as error:  # noqa: BLE001 - raised in the main thread
            self._started.put(error)
        else:
            self._started.put(None)
        self._left.wait()

    def _watch(self) -> None:
        """End this process in place of Ray's native code, where the main thread waits for an answer of the dead."""
        while not self._left.wait(_EVERY_S * 5):
            if (died := self._died()) is not None:
                LostHeads.cause = partial(self._message, died)
                if not self._left.wait(_GRACE_S):
                    sys.stderr.write(f"Stopped: {self._message(died)}\n")
                    sys.stdout.flush()
                    sys.stderr.flush()
                    os._exit(HeadLostError.exit_code)
                return

    def _died(self) -> str | None:
        """The name of a program of the head that has ended; None as long as all run."""
        for task in Path("/proc/self/task").glob("*/children"):
            with contextlib.suppress(OSError):
                for pid in map(int, task.read_text().split()):
                    if pid not in self._seen and (name := _program(pid)) in _HEAD:
                        self._seen[pid] = name
        return next((name for pid, name in self._seen.items() if not _runs(pid)), None)

    def _message(self, program: str) -> str:
        return (
            f"The Ray that was started on this machine died: its {program} was killed or ended, perhaps for want of "
            f"memory. What is committed stays; the same command goes on.{self._kept_logs()}"
        )

    def _kept_logs(self) -> str:
        """The last lines of the head's logs, copied to a file, since Ray's folder is deleted."""
        tails = []
        for path in sorted(self._logs.glob("session_*/logs/*")):
            if path.parent.parent.name != "session_latest" and path.name.partition(".")[0] in _HEAD:
                with contextlib.suppress(OSError):
                    lines = path.read_text(errors="replace").splitlines()[-_LINES:]
                    tails.append(f"== {path.name}\n" + "\n".join(lines) + "\n")
        if not any(len(tail.splitlines()) > 1 for tail in tails):
            return ""
        with tempfile.NamedTemporaryFile("w", prefix="phf-head-", suffix=".log", delete=False) as kept:
            kept.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}\n" + "".join(tails))
        return f" The last lines of its logs are in {kept.name}."


def _program(pid: int) -> str:
    try:
        return Path(os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes().partition(b"\0")[0])).name
    except OSError:
        return ""


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (OSError, IndexError):
        return False


def _first_line(error: BaseException) -> str:
    return ((str(error).strip() or type(error).__name__).splitlines()[0]).rstrip(".")
