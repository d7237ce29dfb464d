"""Committed checkpoints: a folder is a checkpoint only if its marker lists every file in it, with size and hash.

A checkpoint is written into a staging folder, hashed, marked, and renamed in one step. So every folder named `step-…`
was once complete, and later damage is detected before anything is loaded from it.
"""

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from scorers.errors import UserError
from scorers.paths import RelativePath, place_below
from scorers.settings import describe_first_error
from scorers.stored import read_stored
from training.disk import write_atomically

Item = TypeVar("Item")
Result = TypeVar("Result")

MARKER_NAME = "COMMITTED"
_NAME = re.compile(r"step-(\d{8,})")
STAGING = ".staging-"
_ASIDE = "damaged-"


class CheckpointFile(BaseModel):
    """A file of a checkpoint: path relative to its folder, size in bytes, sha256 of its content."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: RelativePath
    size: int
    sha256: str


class Marker(BaseModel):
    """The content of `COMMITTED`.

    Attributes:
        version: version of the format.
        step: optimiser steps done.
        ranks: number of ranks that wrote it; DeepSpeed partitions optimiser states by rank.
        seconds: time spent in the training loop so far.
        files: all files of the folder except the marker.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: int = 1
    step: int = Field(ge=0)
    ranks: int = Field(ge=1)
    seconds: FiniteFloat
    files: list[CheckpointFile]


@dataclass(frozen=True)
class Checkpoint:
    """A committed and verified checkpoint."""

    path: Path
    marker: Marker


@dataclass(frozen=True)
class Damage:
    """A checkpoint that must not be loaded, and why."""

    path: Path
    reason: str


def stage(folder: Path, step: int) -> Path:
    """Create an empty staging folder for the checkpoint after `step` steps, and remove any left by an interruption."""
    folder.mkdir(parents=True, exist_ok=True)
    clear_staging(folder)
    staging = staging_path(folder, step)
    staging.mkdir()
    return staging


def clear_staging(folder: Path) -> None:
    """Remove the staging folders of interrupted saves."""
    for left in folder.glob(f"{STAGING}*"):
        shutil.rmtree(left)


def staging_path(folder: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps is staged."""
    return folder / f"{STAGING}{_name(step)}"


def describe(root: Path, paths: Iterable[Path]) -> list[CheckpointFile]:
    """Hash and flush files under `root` in parallel; the result is in the order of their paths.

    Raises:
        OSError: the disk is full or fails.
    """
    return _in_parallel(lambda path: _describe(root, path), sorted(paths))


def commit(
    folder: Path, step: int, *, ranks: int, seconds: float, described: Iterable[CheckpointFile] = ()
) -> Checkpoint:
    """Write the marker of the staged files and move their folder into place. All ranks must have written their files.

    A valid checkpoint of the same step is replaced, as it holds the same state. A damaged one is renamed, as by
    `set_aside`.

    Args:
        folder: the folder of the checkpoints.
        step: as in `stage`.
        ranks: as in `Marker`.
        seconds: as in `Marker`.
        described: files that their writers already hashed and flushed; the remaining ones are hashed here.

    Raises:
        OSError: the disk is full or fails; nothing is committed, and older checkpoints are untouched.
    """
    staging, target = staging_path(folder, step), folder / _name(step)
    known = {file.path: file for file in described}
    found = {path.relative_to(staging).as_posix(): path for path in staging.rglob("*") if path.is_file()}
    for file in known.values():
        size = found[file.path].stat().st_size if file.path in found else None
        if size != file.size:
            raise OSError(errno.EIO, f"{file.path} has {size} bytes, but {file.size} were written")
    others = describe(staging, [path for name, path in found.items() if name not in known])
    files = sorted([*known.values(), *others], key=lambda file: file.path)
    names = [file.path for file in files]
    marker = Marker(step=step, ranks=ranks, seconds=seconds, files=files)
    for directory in {(staging / name).parent for name in names}:
        _sync(directory)
    write_atomically(staging / MARKER_NAME, marker.model_dump_json(indent=2) + "\n")
    _sync(staging)
    if target.exists() and isinstance(verify(target), Damage):
        _put_aside(target)
    if target.exists():
        replaced = folder / f"{STAGING}replaced-{_name(step)}"
        target.rename(replaced)
        staging.rename(target)
        shutil.rmtree(replaced)
    else:
        staging.rename(target)
    _sync(folder)
    return Checkpoint(target, marker)


def newest(folder: Path) -> tuple[Checkpoint | None, list[Damage]]:
    """The newest valid checkpoint, and the damaged ones that are newer.

    The size and sha256 of every file are compared with the marker.
    """
    damaged: list[Damage] = []
    for path in reversed(_folders(folder)):
        found = verify(path)
        if isinstance(found, Checkpoint):
            return found, damaged
        damaged.append(found)
    return None, damaged


def verify(path: Path) -> Checkpoint | Damage:
    """Compare the files of a checkpoint with its marker, in parallel."""
    try:
        marker = Marker.model_validate_json(read_stored(path / MARKER_NAME))
    except OSError:
        return Damage(path, f"it has no {MARKER_NAME} marker")
    except ValidationError as error:
        where = f" at {describe_first_error(error)}" if error.errors(include_url=False)[0]["loc"] else ""
        return Damage(path, f"its {MARKER_NAME} marker is unreadable{where}")
    if _NAME.fullmatch(path.name) and marker.step != _step(path):
        return Damage(path, f"its {MARKER_NAME} marker is of step {marker.step:,}")
    reasons = [reason for reason in _in_parallel(lambda file: _find_damage(path, file), marker.files) if reason]
    return Damage(path, reasons[0]) if reasons else Checkpoint(path, marker)


def require(folder: Path) -> tuple[Checkpoint | None, list[Damage]]:
    """Like `newest`, but raises if there are checkpoints and none is valid, so that no run silently starts again.

    Returns:
        None in place of the checkpoint if none was ever committed.

    Raises:
        UserError: there are checkpoints, and none is valid.
    """
    found, damaged = newest(folder)
    if found is None and damaged:
        reasons = "\n".join(f"  {each.path}: {each.reason}" for each in damaged)
        raise UserError(
            f"No checkpoint in {folder} is intact, so the run cannot be resumed:\n{reasons}\n"
            "Restore one of them, or train into another --output."
        )
    return found, damaged


def steps(folder: Path) -> list[int]:
    """The steps of the checkpoints in a folder, unverified, in ascending order."""
    return [_step(path) for path in _folders(folder)]


def describe_steps(there: Sequence[int]) -> str:
    """The available steps, for an error about a missing one."""
    return f"it has: {', '.join(f'{each:,}' for each in there)}" if there else "it has none"


def checkpoint_path(folder: Path, step: int) -> Path:
    """The path of the committed checkpoint after `step` steps."""
    return folder / _name(step)


def rotate(folder: Path, keep: int, every: int = 0, pinned: Collection[int] = ()) -> None:
    """Remove all checkpoints but the newest `keep`, the steps in `pinned`, and multiples of `every` if it is not 0."""
    for path in _folders(folder)[:-keep]:
        if _step(path) in pinned or (every and _step(path) % every == 0):
            continue
        # Rename first: a half-removed folder must not look like a checkpoint.
        removed = folder / f"{STAGING}removed-{path.name}"
        path.rename(removed)
        shutil.rmtree(removed)


def set_aside(folder: Path, behind: int, committed: int) -> None:
    """Rename the checkpoints beyond `behind`, which could not be loaded when the run resumed.

    As `damaged-step-…` they no longer count as checkpoints, so they cannot hide the new ones. They are not removed,
    because a file that could not be read may still be intact.

    Args:
        folder: the folder of the checkpoints.
        behind: the step that was committed, or resumed from, before `committed`.
        committed: the step that was just committed.
    """
    for path in _folders(folder):
        if _step(path) > behind and _step(path) != committed:
            _put_aside(path)


def _put_aside(path: Path) -> None:
    target, number = path.with_name(f"{_ASIDE}{path.name}"), 1
    while target.exists():
        number += 1
        target = path.with_name(f"{_ASIDE}{path.name}-{number}")
    path.rename(target)


def describe_damage(damaged: Sequence[Damage]) -> str:
    """One line for each damaged checkpoint that was skipped."""
    return "\n".join(
        f"Skipped the damaged checkpoint {each.path}: {each.reason}. "
        f"It will be renamed to {_ASIDE}{each.path.name} when the run has saved again."
        for each in damaged
    )


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if _NAME.fullmatch(path.name)), key=_step)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _describe(root: Path, path: Path) -> CheckpointFile:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
        size = os.fstat(file.fileno()).st_size
    return CheckpointFile(path=path.relative_to(root).as_posix(), size=size, sha256=digest)


def _find_damage(folder: Path, file: CheckpointFile) -> str | None:
    try:
        place = place_below(folder, file.path)
        size = place.stat().st_size
        if size != file.size:
            return f"{file.path} has {size} bytes, not {file.size}"
        with place.open("rb") as content:
            same = hashlib.file_digest(content, "sha256").hexdigest() == file.sha256
        return None if same else f"the content of {file.path} has changed"
    except FileNotFoundError:
        return f"{file.path} is missing"
    except OSError as error:
        return f"{file.path} cannot be read: {error.strerror or type(error).__name__}"


def _in_parallel(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    # Hashing and reading release the GIL.
    with ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(work, items))


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
