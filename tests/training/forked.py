"""Start `phf` in processes forked from one that has imported torch, transformers and DeepSpeed.

That import takes eight seconds of CPU in each process.
They are real processes: a `Popen` of each can be signalled, killed and waited for, and the ranks that it launches are
its children. Only the start of the interpreter is not shown; tests of that start `phf` as users do.
"""

import atexit
import ctypes
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NoReturn

import psutil

ROOT = Path(__file__).resolve().parents[2]
_MODULES = ("phf", "training.loop.train", "training.engine.engine", "transformers.models.gpt2.modeling_gpt2")
_SUBREAPER, _NAME = 36, 15  # PR_SET_CHILD_SUBREAPER and PR_SET_NAME of prctl(2)


class Popen(subprocess.Popen[Any]):
    """`subprocess.Popen` for `[sys.executable, "-m", "phf", …]` with `env`."""

    def _execute_child(self, args: Sequence[str], *more: Any) -> None:  # of Python 3.11 and 3.12
        cwd, env = more[4], more[5]
        standard = more[9:15]
        ends = [mine if mine != -1 else number for number, mine in enumerate((standard[0], standard[3], standard[5]))]
        assert list(args[1:3]) == ["-m", "phf"], args
        request = json.dumps({"arguments": list(args[3:]), "folder": str(cwd or Path.cwd()), "env": dict(env)}).encode()
        # The new process becomes a child of this one, as its nearest ancestor that adopts orphans.
        _prctl(_SUBREAPER, 1)
        try:
            server, _ = _server()
            socket.send_fds(server, [len(request).to_bytes(8)], ends)
            server.sendall(request)
            self.pid = int.from_bytes(_receive(server, 8))
        finally:
            _prctl(_SUBREAPER, 0)
        self._child_created = True
        self._close_pipe_fds(*standard)


def run(arguments: Sequence[str], *, timeout: float, **options: Any) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end, as `subprocess.run` does with `capture_output` and `text`."""
    with Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options) as process:
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(arguments, process.returncode, stdout, stderr)


def ranks_of(process: "subprocess.Popen[Any]") -> dict[int, psutil.Process]:
    """The ranks that a command has launched, by number."""
    found = {}
    for child in psutil.Process(process.pid).children():
        kind, _, number = child.name().partition("-")
        number = number if kind == "rank" else child.environ().get("RANK", "")
        if number:
            found[int(number)] = child
    return found


def _prctl(what: int, value: Any) -> None:
    ctypes.CDLL(None).prctl(what, value)


@cache
def _server() -> "tuple[socket.socket, subprocess.Popen[bytes]]":
    """The connection to the server, which ends when this process closes it, and the server."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", f"from tests.training.forked import serve; serve({theirs.fileno()})"],
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
        )
    return ours, process


def _receive(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise EOFError
        data += part
    return data


def serve(descriptor: int) -> None:
    """Fork processes on request until the connection is closed."""
    from training.distributed.world import import_deepspeed

    import_deepspeed()
    for module in _MODULES:
        __import__(module)
    with socket.socket(fileno=descriptor) as connection:
        while True:
            head, ends, _, _ = socket.recv_fds(connection, 8, 3)
            if not head:
                return
            request = json.loads(_receive(connection, int.from_bytes(head)))
            reading, writing = os.pipe()
            if (between := os.fork()) == 0:
                if (pid := os.fork()) == 0:
                    connection.close()
                    os.close(reading)
                    os.close(writing)
                    _run(lambda: _start(request, ends))  # noqa: B023
                os.write(writing, pid.to_bytes(8))
                os._exit(0)
            # Only now is the new process an orphan, and adopted.
            os.waitpid(between, 0)
            connection.sendall(os.read(reading, 8))
            os.close(reading)
            os.close(writing)
            for each in ends:
                os.close(each)


def _run(action: Callable[[], None]) -> NoReturn:
    """Run an action as Python runs a program, and end this process."""
    status: Any = 0
    try:
        action()
    except SystemExit as left:
        status = left.code
    except BaseException:  # noqa: BLE001 - as the interpreter does
        traceback.print_exc()
        status = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status if isinstance(status, int) else int(status is not None))


def _start(request: dict[str, Any], ends: Sequence[int]) -> None:
    for number, end in enumerate(ends):
        os.dup2(end, number)
        os.close(end)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["env"])
    for folder in request["env"].get("PYTHONPATH", "").split(os.pathsep):
        if (site := Path(folder, "sitecustomize.py")).is_file() and Path(folder) != ROOT:
            runpy.run_path(str(site))
    from training.distributed import launch

    launch.start_rank = _start_rank  # type: ignore[assignment]
    _phf(request["arguments"])


def _phf(arguments: Sequence[str]) -> None:
    from phf import main
    from scorers import stopping

    stopping._signals = None
    stopping.take_signals()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, stopping.SIGNALS)
    sys.argv = [str(ROOT / "phf.py"), *arguments]
    main()


class _Rank(subprocess.Popen[bytes]):
    """A rank, forked from the process that launches it."""

    def _execute_child(self, args: Sequence[str], _executable: Any, prepare: Callable[[], None], *more: Any) -> None:
        self.pid = os.fork()
        self._child_created = True
        if self.pid == 0:
            os.setsid()
            prepare()
            os.environ.clear()
            os.environ.update(more[3])
            ctypes.CDLL(None).prctl(_NAME, f"rank-{os.environ['RANK']}".encode())
            _run(lambda: _phf(args[3:]))


def _start_rank(command: Sequence[str], environment: dict[str, str], *, orphaned: signal.Signals) -> _Rank:
    from training.distributed.launch import _prepare

    return _Rank(command, env=environment, preexec_fn=partial(_prepare, int(orphaned)))
