"""Task files of the lm-evaluation-harness: what they read, and whether they could run code.

A task file is a program: it can name Python functions, metrics that are downloaded with their code, and Jinja templates
that reach into the interpreter. Without leave, only files that cannot do so are loaded; templates are then rendered in
Jinja's sandbox (`training.capability.harness`).
"""

import hashlib
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from scorers.errors import UserError
from scorers.fingerprint import file_sha256
from scorers.paths import escape_path
from scorers.stored import read_stored

ALLOW = "--allow-task-code"
_LARGEST = 1024 * 1024
_MOST_FILES = 1000
_DEEPEST = 32
# Ways to read data that hold only data. Others unpickle, or take a folder that could hold anything.
_READERS = {"json", "csv", "text", "parquet", "arrow"}
_READER_OPTIONS = {"data_files", "data_dir", "name", "revision", "split", "field", "delimiter", "sep", "column_names",
                   "encoding"}  # fmt: skip


@dataclass(frozen=True)
class TaskFile:
    """A task file, or a folder of them, that was checked.

    Attributes:
        path: the file or folder.
        names: the tasks and groups that it defines.
        has_group: whether one is a group, which may name tasks of the harness.
        fingerprint: hash of its files and of the local data files that they name.
    """

    path: Path
    names: list[str]
    has_group: bool
    fingerprint: str


def check_task_path(path: Path, metrics: Collection[str], *, allow_code: bool) -> TaskFile:
    """Check a task file, or every task file in a folder and below.

    Args:
        path: exists.
        metrics: names of the metrics that the harness itself has.
        allow_code: whether files may run code.

    Raises:
        UserError: a file is no task file, or could run code.
    """
    files = [path]
    if path.is_dir():
        files = sorted(each for each in path.glob("**/*.yaml") if "__pycache__" not in each.parts)
        if not files or len(files) > _MOST_FILES:
            problem = "has no task files (*.yaml)" if not files else f"has more than {_MOST_FILES:,} files *.yaml"
            raise UserError(f"--tasks {_shown(path)}: the folder {problem}. Give the folder of the tasks.")
    digest, names, has_group = hashlib.sha256(), list[str](), False
    seen: set[Path] = set()
    for file in files:
        for each, content, config in _with_includes(file, seen):
            digest.update(content)
            if not allow_code:
                _check(each, config, metrics)
            for data in _local_data(config):
                digest.update(file_sha256(data).encode())
            for function in _functions(config) if allow_code else ():
                module = each.parent / f"{function.rpartition('.')[0].replace('.', '/')}.py"
                digest.update(file_sha256(module).encode() if module.is_file() else b"")
            name = config.get("group", config.get("task"))
            if each == file.resolve() and isinstance(name, str):
                names.append(name)
                has_group |= "group" in config
    if not names:
        raise UserError(f"--tasks {_shown(path)} defines no task: it needs the key task, or group.")
    return TaskFile(path, names, has_group, digest.hexdigest())


def _with_includes(file: Path, seen: set[Path]) -> Iterator[tuple[Path, bytes, dict[str, Any]]]:
    try:
        file = file.expanduser().resolve()
    except (OSError, ValueError, RuntimeError) as error:
        # Such as a zero byte in its name, or the home of a user who does not exist.
        raise UserError(f"Cannot read the task file {_shown(file)}: {type(error).__name__}.") from None
    if file in seen:
        return
    seen.add(file)
    if len(seen) > _MOST_FILES:
        raise UserError(f"{_shown(file)}: the task includes more than {_MOST_FILES:,} files.")
    try:
        content = read_stored(file, _LARGEST)
        _refuse_bombs(file, content)
        config = yaml.load(content, _Loader)  # noqa: S506 - a safe loader with one more tag
    except OSError as error:
        raise UserError(f"Cannot read the task file {_shown(file)}: {error.strerror or error}.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise UserError(f"{_shown(file)}{where} is not a task file: it is not plain YAML.") from None
    if not isinstance(config, dict):
        raise UserError(f"{_shown(file)} is not a task file: it holds no mapping.")
    yield file, content, config
    includes = config.get("include") or []
    for each in includes if isinstance(includes, list) else [includes]:
        yield from _with_includes(file.parent / str(each), seen)


class _Function(str):
    """What `!function` names."""


class _Loader(yaml.SafeLoader):
    """Plain YAML with `!function`, which is not resolved."""


def _function(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> _Function:
    return _Function(loader.construct_scalar(node))


_Loader.add_constructor("!function", _function)


def _refuse_bombs(file: Path, content: bytes) -> None:
    depth = 0
    for event in yaml.parse(content, yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent) or depth > _DEEPEST:
            raise UserError(f"{_shown(file)}: a task file may have no aliases, and at most {_DEEPEST} levels.")


def _check(file: Path, config: dict[str, Any], metrics: Collection[str]) -> None:
    """Refuse what could run code, read a pickle or write a file."""
    for key, value in _pairs(config):
        problem = None
        if isinstance(value, _Function):
            problem = f"runs Python of its own (`!function {value}`)"
        elif key == "class" or (key == "use_prompt" and value is not None):
            problem = f"runs other code (`{key}`)"
        elif (key == "metric" and _not_in(value, metrics)) or (key == "hf_evaluate" and value):
            problem = "has a metric that is not the harness's own, and would be loaded with its code"
        elif key == "unsafe_code" and value:
            problem = "runs what the model writes (`unsafe_code`)"
        elif key == "dataset_path" and _not_in(value, _READERS) and not _is_hub_name(value):
            problem = f"reads data by `dataset_path: {value}`, which is none of {', '.join(sorted(_READERS))}"
        elif key in ("dataset_kwargs", "generation_kwargs") and value and not isinstance(value, dict):
            problem = f"has {key} that are no mapping"
        elif key == "dataset_kwargs" and value and not set(value) <= _READER_OPTIONS:
            problem = f"has dataset_kwargs other than {', '.join(sorted(_READER_OPTIONS))}"
        elif key == "generation_kwargs" and value and {"custom_generate", "trust_remote_code"} & set(value):
            problem = "generates by code of its own (`custom_generate`)"
        if problem is not None:
            raise UserError(
                f"The task file {_shown(file)} {escape_path(problem)}. If you trust whoever wrote it, add {ALLOW}."
            )


def _not_in(value: Any, names: Collection[str]) -> bool:
    return not isinstance(value, str) or value not in names


def _is_hub_name(name: Any) -> bool:
    # One of a single part could be another reader of `datasets`, such as that of pickles.
    return (
        isinstance(name, str)
        and name.count("/") == 1
        and not name.startswith((".", "/"))
        # Path.exists would raise for a name that is too long.
        and not os.path.exists(name)  # noqa: PTH110
    )


def _pairs(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, dict):
        for key, each in value.items():
            yield key, each
            yield from _pairs(each)
    elif isinstance(value, list):
        for each in value:
            yield None, each
            yield from _pairs(each)


def _functions(config: dict[str, Any]) -> list[str]:
    return sorted(value for _, value in _pairs(config) if isinstance(value, _Function))


def _local_data(config: dict[str, Any]) -> list[Path]:
    """The data files that a task names and that are here, in the order of their names."""
    found: set[Path] = set()
    for key, value in _pairs(config):
        if key == "data_files":
            leaves = [each for _, each in _pairs({"": value})]
            found |= {Path(each) for each in leaves if isinstance(each, str) and "://" not in each}
    return sorted(each for each in found if os.path.isfile(each))  # noqa: PTH113 - false for a name that is too long


def _shown(path: Path) -> str:
    return escape_path(str(path))
