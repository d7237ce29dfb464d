"""Start a local Ray and watch its head; if the head died unnoticed, Ray would hang for minutes and then kill us."""

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

# The programs of the head, without which Ray cannot run.
_HEAD = {"gcs_server", "raylet"}
_IDLE = ("start_api_server", "start_log_monitor", "start_monitor")
_INTERVAL_S = 0.1
# Seconds for the main thread to exit by itself after the head has died; Ray's native code kills the process after 60.
_GRACE_S = 20.0
_ATTEMPT_S = 60.0  # for a start whose head has died to give up; Ray waits 30 s for its node
_LINES = 100  # enough for a stack trace and the line before it that gives the reason


@contextlib.contextmanager
def local_ray(start: Callable[[], object], logs: Path) -> Iterator[None]:
    """Start Ray, at the second attempt if need be, and watch its head until the context is left.

    Args:
        start: calls `ray.init`.
        logs: folder for Ray's logs.

    Raises:
        UserError: Ray refuses the settings.
        HeadLostError: the head died twice while it started; the message names a file with the end of its logs.
        IncompleteError: Ray did not start for another reason, such as an overloaded machine.
    """
    ray = _LocalRay(start, logs)
    try:
        try:
            ray.wait()
        except IncompleteError:
            # The raylet gives its agent, a Python process, 15 s to start. On a busy machine the first start may take
            # longer, while the second finds the files in memory.
            if not ray.give_up():
                raise
            ray = _LocalRay(start, logs)
            ray.wait()
        yield
    finally:
        ray.leave()


@contextlib.contextmanager
def _without_idle_processes() -> Iterator[None]:
    """Let Ray start no process for its dashboard, its autoscaler or a driver that prints what workers print.

    A local Ray has none of these, and they take half of the CPU time of its start. Ray has no option for it.
    """
    from ray._private.node import Node

    starts = {name: getattr(Node, name) for name in _IDLE if hasattr(Node, name)}
    for name in starts:
        setattr(Node, name, lambda *_, **__: None)
    try:
        yield
    finally:
        for name, start in starts.items():
            setattr(Node, name, start)


class _LocalRay:
    def __init__(self, start: Callable[[], object], logs: Path) -> None:
        self._start = start
        self._logs = logs
        self._started: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._left = threading.Event()
        self._seen: dict[int, str] = {}
        # Ray's processes die with the thread that started them, so this thread must live as long as they do.
        self._thread = threading.Thread(target=self._run, daemon=True, name="local-ray")

    def wait(self) -> None:
        """Start Ray; for errors see `local_ray`."""
        self._thread.start()
        try:
            error = self._outcome()
        except HeadLostError:
            raise
        except BaseException:  # a request to stop
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
                f"Ray did not start on this machine ({_first_line(error)}). It may be overloaded or short of memory. "
                f"The same command continues.{self._kept_logs()}"
            )
        threading.Thread(target=self._watch, daemon=True, name="local-ray-watch").start()

    def _outcome(self) -> BaseException | None:
        while True:
            try:
                return self._started.get(timeout=_INTERVAL_S)
            except queue.Empty:
                if (died := self._died()) is not None:
                    raise HeadLostError(self._message(died)) from None

    def leave(self) -> None:
        """Stop watching, and let the thread end that keeps Ray's processes alive."""
        self._left.set()
        LostHeads.cause = None

    def give_up(self) -> bool:
        """End a failed start; return whether another may begin, as neither processes nor a connection are left."""
        import ray

        self.leave()
        self._thread.join(_ATTEMPT_S)
        # A head that died just after the start leaves a connection whose shutdown would wait for it.
        return not self._thread.is_alive() and not ray.is_initialized()

    def _run(self) -> None:
        try:
            with _without_idle_processes():
                self._start()
        except BaseException as error:  # noqa: BLE001 - raised in the main thread
            self._started.put(error)
        else:
            self._started.put(None)
        self._left.wait()

    def _watch(self) -> None:
        """If the head dies, exit before Ray's native code does, even if the main thread is blocked in a call to it."""
        while not self._left.wait(_INTERVAL_S * 5):
            if (died := self._died()) is not None:
                LostHeads.cause = partial(self._message, died)
                if not self._left.wait(_GRACE_S):
                    sys.stderr.write(f"Stopped: {self._message(died)}\n")
                    sys.stdout.flush()
                    sys.stderr.flush()
                    os._exit(HeadLostError.exit_code)
                return

    def _died(self) -> str | None:
        """The name of a head program that has ended; None while all are running."""
        for task in Path("/proc/self/task").glob("*/children"):
            with contextlib.suppress(OSError):
                for pid in map(int, task.read_text().split()):
                    if pid not in self._seen and (name := _program(pid)) in _HEAD:
                        self._seen[pid] = name
        return next((name for pid, name in self._seen.items() if not _runs(pid)), None)

    def _message(self, program: str) -> str:
        return (
            f"The Ray that was started on this machine died: its {program} was killed or exited, perhaps for lack of "
            f"memory. What is committed stays; the same command continues.{self._kept_logs()}"
        )

    def _kept_logs(self) -> str:
        """Copy the end of the head's logs to a file, because Ray's folder is deleted; return a sentence naming it."""
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
