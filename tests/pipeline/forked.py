"""Run `phf` in processes that start in a tenth of a second, forked from one that has imported all modules.

They are real processes that tests can kill; forking saves the import of spaCy, which takes two seconds. `label` runs
without Ray: one process labels unit after unit.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        *("spacy", "pyarrow.parquet", "obstore", "phf", "rich.progress", "tests.pipeline.forked"),
        *("pipeline.labelling.label", "pipeline.commands.summary", "pipeline.storage.objects", "scorers.sentences"),
    ]
)


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit status, negative for the signal that killed it, and what it printed."""

    code: int
    printed: str

    @property
    def died(self) -> bool:
        """Whether SIGKILL ended it."""
        return self.code == -9


@dataclass(frozen=True)
class Forked:
    """A process, running or not; `log` is its stdout, and its stderr unless that has a file of its own."""

    process: ForkServerProcess
    log: Path

    @property
    def pid(self) -> int:
        """The process id."""
        assert self.process.pid is not None
        return self.process.pid

    @property
    def printed(self) -> str:
        """What it has printed so far."""
        return self.log.read_text() if self.log.exists() else ""

    def wait(self, seconds: float = 120.0) -> Ended:
        """Wait for its end; kill it after `seconds`."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            raise TimeoutError(f"not done after {seconds} s: {self.printed}")
        return Ended(self.process.exitcode, self.printed)


def run(arguments: Sequence[str], *, folder: Path, env: Mapping[str, str]) -> "subprocess.CompletedProcess[str]":
    """Run `phf` to its end, as `subprocess.run` would."""
    with tempfile.TemporaryDirectory(prefix="phf-forked-") as place:
        out, errors = Path(place, "stdout"), Path(place, "stderr")
        ended = start(arguments, folder=folder, env=env, log=out, errors=errors).wait()
        return subprocess.CompletedProcess(["phf", *arguments], ended.code, ended.printed, errors.read_text())


def start(
    arguments: Sequence[str],
    *,
    folder: Path,
    env: Mapping[str, str],
    log: Path,
    errors: Path | None = None,
    file_size: int = 0,
) -> Forked:
    """Start `phf` with `arguments` in the working directory `folder`.

    Args:
        arguments: command line without `phf`.
        folder: working directory.
        env: the whole environment; folders on its PYTHONPATH come first.
        log: file for its output; replaced.
        errors: file for its stderr; None for `log`.
        file_size: most bytes of a file that it writes (RLIMIT_FSIZE); 0 for no limit.
    """
    log.unlink(missing_ok=True)
    process = _CONTEXT.Process(
        target=_run, args=(list(arguments), str(folder), dict(env), str(log), str(errors or log), file_size)
    )
    process.start()
    return Forked(process, log)


def _run(arguments: list[str], folder: str, env: dict[str, str], log: str, errors: str, file_size: int) -> None:
    from scorers.stopping import take_signals

    take_signals()  # as `phf` does, before anything else
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor if errors == log else os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    os.environ.clear()
    os.environ.update(env)
    sys.path[:0] = env.get("PYTHONPATH", "").split(os.pathsep)
    sys.argv[1:] = arguments
    os.chdir(folder)
    if file_size:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    runpy.run_module("tests.pipeline.without_ray", run_name="__main__")
