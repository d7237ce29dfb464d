"""Committed checkpoints: a folder counts only when its marker names every file in it, with size and hash.

A checkpoint is written into a staging folder, hashed, marked, and renamed in one step. So whatever is named
`step-…` was once whole, and one that is no longer so is found out before anything is loaded from it.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from scorers.errors import UserError
from training.run.folder import write_atomically

MARKER_NAME = "COMMITTED"
_NAME = re.compile(r"step-(\d{8,})")
STAGING = ".staging-"


class CheckpointFile(BaseModel):
    """A file of a checkpoint: path relative to its folder, size in bytes, sha256 of its content."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    size: int
    sha256: str


class Marker(BaseModel):
    """The content of `COMMITTED`.

    Attributes:
        version: of the format.
        step: optimiser steps done.
        ranks: processes that wrote it; DeepSpeed's optimiser states are cut by ranks.
        seconds: time spent in the training loop so far.
        files: every file of the folder but the marker.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: int = 1
    step: int
    ranks: int
    seconds: float
    files: list[CheckpointFile]


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint whose files were verified."""

    path: Path
    marker: Marker


@dataclass(frozen=True)
class Damage:
    """A checkpoint that must not be loaded, and why."""

    path: Path
    reason: str


def stage(folder: Path, step: int) -> Path:
    """An empty staging folder for the checkpoint after `step` steps; what an interrupted one left is removed."""
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"{STAGING}*"):
        shutil.rmtree(left)
    staging = staging_path(folder, step)
    staging.mkdir()
    return staging


def staging_path(folder: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps is staged."""
    return folder / f"{STAGING}{_name(step)}"


def commit(folder: Path, step: int, *, ranks: int, seconds: float) -> Checkpoint:
    """Hash and flush the staged files, mark them, and move the folder into place. All ranks must have written.

    A folder of the same step is replaced: it is one that did not verify, or the same state.

    Raises:
        OSError: the disk is full or fails; the staging folder does not count, older checkpoints are untouched.
    """
    staging, target = staging_path(folder, step), folder / _name(step)
    names = sorted(path.relative_to(staging).as_posix() for path in staging.rglob("*") if path.is_file())
    files = [_describe(staging, name) for name in names]
    marker = Marker(step=step, ranks=ranks, seconds=seconds, files=files)
    for directory in {(staging / name).parent for name in names}:
        _sync(directory)
    write_atomically(staging / MARKER_NAME, marker.model_dump_json(indent=2) + "\n")
    _sync(staging)
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
    """The newest checkpoint that verifies, and the damaged ones that are newer than it.

    Every file's size and sha256 is compared with the marker.
    """
    damaged: list[Damage] = []
    for path in reversed(_folders(folder)):
        found = verify(path)
        if isinstance(found, Checkpoint):
            return found, damaged
        damaged.append(found)
    return None, damaged


def verify(path: Path) -> Checkpoint | Damage:
    """Compare a checkpoint's files with its marker."""
    try:
        marker = Marker.model_validate_json((path / MARKER_NAME).read_bytes())
    except OSError:
        return Damage(path, f"it has no {MARKER_NAME} marker")
    except ValidationError:
        return Damage(path, f"its {MARKER_NAME} marker is unreadable")
    for file in marker.files:
        try:
            size = (path / file.path).stat().st_size
            if size != file.size:
                return Damage(path, f"{file.path} has {size} bytes, not {file.size}")
            if _sha256(path / file.path) != file.sha256:
                return Damage(path, f"the content of {file.path} has changed")
        except FileNotFoundError:
            return Damage(path, f"{file.path} is missing")
        except OSError as error:
            return Damage(path, f"{file.path} cannot be read: {error.strerror or type(error).__name__}")
    return Checkpoint(path, marker)


def require(folder: Path) -> tuple[Checkpoint | None, list[Damage]]:
    """Like `newest`, but refuses to go on from nothing where there once was something.

    Returns:
        None where no checkpoint was ever committed.

    Raises:
        UserError: there are checkpoints, and none of them verifies.
    """
    found, damaged = newest(folder)
    if found is None and damaged:
        reasons = "\n".join(f"  {each.path}: {each.reason}" for each in damaged)
        raise UserError(
            f"No checkpoint in {folder} is whole, so the run cannot go on:\n{reasons}\n"
            "Restore one of them, or train into another --output."
        )
    return found, damaged


def rotate(folder: Path, keep: int, every: int = 0) -> None:
    """Remove all but the newest `keep` checkpoints and those whose step is a multiple of `every`, if that is not 0."""
    for path in _folders(folder)[:-keep]:
        if every and _step(path) % every == 0:
            continue
        # Renamed first: half a folder must not look like a checkpoint.
        doomed = folder / f"{STAGING}removed-{path.name}"
        path.rename(doomed)
        shutil.rmtree(doomed)


def describe_damage(damaged: Sequence[Damage]) -> str:
    """One line a checkpoint that was skipped."""
    return "\n".join(f"Skipped the damaged checkpoint {each.path}: {each.reason}." for each in damaged)


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if _NAME.fullmatch(path.name)), key=_step)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _describe(root: Path, name: str) -> CheckpointFile:
    path = root / name
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
        return CheckpointFile(path=name, size=os.fstat(file.fileno()).st_size, sha256=digest)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
