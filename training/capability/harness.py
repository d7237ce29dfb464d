"""Load and run tasks of the lm-evaluation-harness through its Python API, quietly and offline where possible."""

import importlib.util
import logging
import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.dataset.derived import digest
from scorers.errors import UserError
from scorers.fingerprint import library_versions
from scorers.paths import escape_path
from training.capability.task_files import TaskFile, check_task_path

PACKAGES = ("lm_eval", "datasets", "transformers", "torch")


@dataclass(frozen=True)
class TaskRequest:
    """A requested task.

    Attributes:
        name: as requested: a name that the harness knows, or the path of a file or a folder.
        label: name for its report.
        file: None for a name.
        fingerprint: hash of all that decides what the task is.
    """

    name: str
    label: str
    file: TaskFile | None
    fingerprint: str


def require_harness() -> None:
    """Refuse to go on without the harness.

    Raises:
        UserError: says how to install it.
    """
    if any(importlib.util.find_spec(each) is None for each in ("lm_eval", "accelerate")):
        raise UserError("--tasks needs the lm-evaluation-harness, which is not installed: pip install 'phf[lm-eval]'.")


def check_requests(names: Sequence[str], *, allow_code: bool) -> list[TaskRequest]:
    """Check the requested tasks, without loading their data.

    Args:
        names: each one or several names or paths, separated by commas.
        allow_code: whether local task files may run code.

    Raises:
        UserError: a task file could run code, is damaged, or its name is taken twice.
    """
    from lm_eval.api import metrics as _  # noqa: F401 - fills the registry
    from lm_eval.api.registry import METRIC_REGISTRY

    version = library_versions("lm_eval")["lm_eval"]
    found: dict[str, TaskRequest] = {}
    for name in (part.strip() for each in names for part in each.split(",")):
        path = Path(name)
        is_path = name.endswith((".yaml", ".yml")) or "/" in name or os.path.isdir(name)  # noqa: PTH112
        file = None
        if is_path:
            # Path.exists would raise for a name that is too long.
            if not os.path.exists(name):  # noqa: PTH110
                raise UserError(f"--tasks {escape_path(name)}: there is no such file or folder.")
            file = check_task_path(path, set(METRIC_REGISTRY.keys()), allow_code=allow_code)
        label = path.stem if is_path else name
        if not label:
            raise UserError("--tasks: a name is empty. Give names, files or folders, separated by commas.")
        if label in found:
            raise UserError(f"--tasks: two tasks are named {escape_path(label)!r}. Give one of them, or rename a file.")
        found[label] = TaskRequest(name, label, file, digest([version, name if file is None else file.fingerprint]))
    return list(found.values())


def load_tasks(requests: Sequence[TaskRequest], *, allow_code: bool) -> dict[str, list[Any]]:
    """Load the tasks with their data, which may be downloaded; tasks of files may come from anybody.

    Returns:
        The harness's tasks and groups by label.

    Raises:
        UserError: a task is unknown, or its data cannot be loaded.
    """
    from lm_eval.tasks import TaskManager

    with _quiet(allow_code):
        folders = [request.file.path for request in requests if request.file and request.file.path.is_dir()]
        # Reading the harness's own ten thousand task files takes seconds: only where one may be named.
        own = any(request.file is None or request.file.has_group for request in requests)
        manager = TaskManager(include_path=[str(each) for each in folders] or None, include_defaults=own)
        return {request.label: _load(manager, request) for request in requests}


def _load(manager: Any, request: TaskRequest) -> list[Any]:
    names = [request.name] if request.file is None else [str(request.file.path)]
    if request.file is not None and request.file.path.is_dir():
        names = request.file.names
    elif request.file is None and request.name not in manager.task_index:
        raise UserError(f"--tasks {escape_path(request.name)}: the lm-evaluation-harness has no task of this name.")
    loaded: list[Any] = []
    try:
        for name in names:
            found = manager._load_spec(name)
            loaded += found if isinstance(found, list) else [found]
        manager._check_duplicates(loaded)
    except Exception as error:  # noqa: BLE001 - whatever the harness, its data library or a task raises
        raise UserError(
            f"Cannot load the task {escape_path(request.name)}: {_first_line(error)}. If its data is on the hub, this "
            "machine must reach it or have it in its cache."
        ) from None
    return loaded


def run_tasks(
    model: Any,
    tasks: Sequence[Any],
    *,
    num_fewshot: int | None,
    limit: int | None,
    seed: int,
    allow_code: bool,
) -> dict[str, Any]:
    """Run loaded tasks, as `lm_eval.simple_evaluate` does.

    Args:
        model: the harness's model.
        tasks: from `load_tasks`.
        num_fewshot: solved examples before each document; None for the task's own number. A task that fixes 0 keeps it.
        limit: maximum number of documents of each task; None for all.
        seed: of the choice of examples, and of sampling.
        allow_code: whether tasks may run code, also what the model writes.

    Returns:
        The harness's results, without documents and answers.

    Raises:
        UserError: a task cannot be run.
    """
    from lm_eval.evaluator import evaluate
    from lm_eval.tasks import TaskManager

    with _quiet(allow_code):
        loaded = TaskManager(include_defaults=False).load(list(tasks))
        for task in loaded["tasks"].values():
            own = task.get_config("num_fewshot")
            if own is None or (num_fewshot is not None and own != 0):
                task.set_config(key="num_fewshot", value=num_fewshot or 0)
            task.set_fewshot_seed(seed=seed)
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        try:
            return dict(
                evaluate(
                    lm=model,
                    task_dict=loaded,
                    limit=limit,
                    log_samples=False,
                    bootstrap_iters=1000,
                    confirm_run_unsafe_code=allow_code,
                )
                or {}
            )
        except (UserError, torch.cuda.OutOfMemoryError):
            raise
        except Exception as error:  # noqa: BLE001 - whatever the harness or a task raises
            # Its message may quote a document or an answer.
            raise UserError(f"The harness cannot run {', '.join(loaded['tasks'])}: {type(error).__name__}.") from None


def _bootstrapped_error(statistic: Callable[[Sequence[Any]], float], values: Sequence[Any], iters: int) -> float:
    """The standard deviation of a statistic over resamples."""
    generator = random.Random(0)
    found = [statistic(generator.choices(values, k=len(values))) for _ in range(iters)]
    return float(np.std(found, ddof=1))


def _first_line(error: Exception) -> str:
    # Other messages may quote a document.
    kind = type(error).__name__
    if kind in ("KeyError", "ValueError", "FileNotFoundError", "DatasetNotFoundError", "ConnectionError"):
        return escape_path(f"{kind}: {' '.join(str(error).split())}"[:300])
    return kind


@contextmanager
def _quiet(allow_code: bool) -> Iterator[None]:
    """Silence the harness, whose logs hold text of documents; and render templates in a sandbox."""
    import datasets
    import lm_eval.api.metrics
    import lm_eval.api.task
    import lm_eval.utils
    from jinja2 import BaseLoader, StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    logger, bars, environment = logging.getLogger("lm_eval"), lm_eval.api.task.tqdm, lm_eval.utils.env
    before, level = logger.level, datasets.logging.get_verbosity()
    logger.setLevel(logging.CRITICAL + 1)
    datasets.logging.set_verbosity_error()
    shown = datasets.utils.logging.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    lm_eval.api.task.tqdm = partial(bars, disable=True)
    # The harness's own forks a process per core, which may hang after torch has started threads, and prints.
    bootstrap, lm_eval.api.metrics.bootstrap_stderr = lm_eval.api.metrics.bootstrap_stderr, _bootstrapped_error
    if not allow_code:
        sandbox = ImmutableSandboxedEnvironment(
            loader=BaseLoader(), undefined=StrictUndefined, keep_trailing_newline=True
        )
        sandbox.filters.update(environment.filters)
        lm_eval.utils.env = sandbox
    try:
        yield
    finally:
        lm_eval.utils.env, lm_eval.api.task.tqdm = environment, bars
        lm_eval.api.metrics.bootstrap_stderr = bootstrap
        datasets.logging.set_verbosity(level)
        if shown:
            datasets.enable_progress_bars()
        logger.setLevel(before)
