"""Training jobs of a few seconds: a labelled dataset of real code, and `phf train` in this process or in others."""

import io
import json
import os
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock
from rich.console import Console

from tests.datasets import make_dataset
from tests.training import forked
from training.config import TrainConfig
from training.loop.callbacks import Callback, Step
from training.loop.continuation import StartOptions
from training.loop.train import train
from training.loop.trainer import Trainer
from training.runs.facts import RunFacts
from training.settings import resolve_config

ROOT = Path(__file__).resolve().parents[2]
MODULES = (
    "textwrap",
    "shutil",
    "tempfile",
    "string",
    "glob",
    "fnmatch",
    "bisect",
    "heapq",
    "queue",
    "sched",
    "cmd",
    "copy",
)
# One thread and no network: the same results on every machine, and no waiting for a hub.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}


def style(line: str) -> float:
    """Score a line cheaply: long lines, comments and trailing blanks are misaligned."""
    stripped = line.rstrip("\n")
    faults = (len(stripped) > 70) + (stripped != stripped.rstrip()) + stripped.lstrip().startswith("#")
    return faults / max(1, len(line))


def make_code_dataset(
    folder: Path, modules: Sequence[str] = MODULES, others: Mapping[str, Callable[[str], float]] | None = None
) -> Path:
    """Label modules of the standard library, one per document, with the column `style`, and others."""
    library = Path(sysconfig.get_paths()["stdlib"])
    documents = [((library / f"{name}.py").read_text(encoding="utf-8"), "python") for name in modules]
    return make_dataset(folder, documents, {"style": style, **(others or {})}, {"style": 0.0})


def settings(**changes: Any) -> list[str]:
    """Return `--set` arguments for 12 steps of 4 blocks of 32 tokens; `a__b` stands for `a.b`."""
    values = {
        "data.vocab_size": 400,
        "data.context_length": 32,
        "data.held_out": 0.2,
        "training.num_tokens": 12 * 4 * 32,
        "training.batch_size": 4,
        "training.learning_rate": 3e-3,
        "training.log_every": 1,
        "training.validate_every": 0,
        "tracking.tensorboard": "false",
        **{key.replace("__", "."): value for key, value in changes.items()},
    }
    return [f"{key}={value}" for key, value in values.items()]


def job_config(dataset: Path, output: Path, objective: str = "mle", **changes: Any) -> TrainConfig:
    """Return the configuration of a small run."""
    flags = {
        "output": str(output),
        "task": "style",
        "data": {"dataset": str(dataset)},
        "model": {"name": "nano"},
        "objective": {"name": objective},
    }
    return resolve_config(None, flags, settings(**changes))


class StopAfter(Callback):
    """Send this process a signal after a step."""

    def __init__(self, step: int, number: int = signal.SIGTERM) -> None:
        self.step = step
        self.number = number

    def after_step(self, trainer: Trainer, step: Step) -> None:
        if step.number == self.step:
            os.kill(os.getpid(), self.number)


def run_job(
    dataset: Path,
    output: Path,
    objective: str = "mle",
    *,
    options: StartOptions | None = None,
    callbacks: Sequence[Callback] = (),
    **changes: Any,
) -> tuple[RunFacts, str]:
    """Train in this process; return the facts and the printed text."""
    printed = io.StringIO()
    facts = train(
        job_config(dataset, output, objective, **changes), Console(file=printed, width=200), options, callbacks
    )
    return facts, printed.getvalue()


def command(dataset: Path, output: Path, objective: str = "mle", **changes: Any) -> list[str]:
    """Return `-m phf train ...` with the same settings, for an interpreter or a launcher."""
    arguments = ["-m", "phf", "train", str(dataset), "--output", str(output), "--task", "style", "--model", "nano"]
    arguments += ["--objective", objective]
    for setting in settings(**changes):
        arguments += ["--set", setting]
    return arguments


def run_phf(
    arguments: Sequence[str],
    *,
    launcher: Sequence[str] = (),
    start_python: bool = False,
    timeout: float = 240,
    **environment: str,
) -> Any:
    """Run phf in another process, or under a launcher such as `torchrun --nproc-per-node 2`.

    `start_python` starts an interpreter as users do, for tests of what it prints and does until it has imported all.
    """
    options: dict[str, Any] = {
        "timeout": timeout,
        "env": {**os.environ, **ENVIRONMENT, **environment},
        "cwd": output_folder(arguments),
    }
    if not (launcher or start_python):
        return forked.run([sys.executable, *arguments], **options)
    command = [*(launcher or [sys.executable]), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


# Adam's epsilon for comparing trained weights. With the usual 1e-8, a gradient of pure rounding error, such as that of
# a key's bias, moves its weight by a whole step in a direction that depends on the processor.
COMPARABLE = 1e-3

# Settings of a run long enough to be interrupted.
LONGER = {"training__batch_size": 8, "training__num_tokens": 60 * 8 * 32, "training__save_every": 10}


def undisturbed_run(basetemp: Path, dataset: Path) -> Path:
    """Train `awr` with `LONGER` on two ranks without interruption; its output goes to `printed` beside the folder.

    Two ranks take long to start, so the first pytest worker that needs the run makes it for all. `basetemp` is pytest's
    temporary folder of this process, `dataset` is from `make_code_dataset`.
    """
    folder = (basetemp.parent if "PYTEST_XDIST_WORKER" in os.environ else basetemp) / "undisturbed"
    with FileLock(f"{folder}.lock"):
        if not (folder / "printed").exists():
            done = run_phf([*command(dataset, folder / "run", "awr", **LONGER), "--ranks", "2"])
            assert done.returncode == 0, done.stderr
            (folder / "printed").write_text(done.stdout)
    return folder / "run"


def output_folder(arguments: Sequence[str]) -> Path:
    """Return the parent of a run's folder, as working directory, so that nothing is written elsewhere."""
    parent = Path(arguments[list(arguments).index("--output") + 1]).parent
    parent.mkdir(parents=True, exist_ok=True)
    return parent


def metrics(output: Path) -> list[dict[str, Any]]:
    """Return the lines of `metrics.jsonl`."""
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def figures(output: Path) -> list[tuple[float, ...]]:
    """Return step, loss, learning rate and gradient norm of every logged step."""
    return [
        (each["step"], each["loss"], each["learning_rate"], each["grad_norm"])
        for each in metrics(output)
        if "loss" in each
    ]
