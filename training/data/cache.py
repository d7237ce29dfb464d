"""The cache of what is derived from a dataset: one process builds it, whole or not at all."""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.dataset.derived import CACHE_VARIABLE, TOKENIZER_PREFIX, derived_place
from scorers.errors import UserError
from training.config import DataConfig
from training.disk import os_errors


def relocate_data(data: DataConfig, dataset: str | None) -> DataConfig:
    """Return the settings with the dataset's new path, if one is given.

    A tokenizer that phf trained lies beside the main dataset and moves with it. If it is missing and was trained on
    that dataset alone, the setting is cleared, so that it is trained again: the same texts give the same tokenizer.
    """
    place, tokenizer = dataset or data.dataset, data.tokenizer
    if tokenizer and Path(tokenizer).is_absolute() and not Path(tokenizer).exists():
        moved = derived_place(place, Path(tokenizer).name)
        if moved.exists():
            tokenizer = str(moved)
        elif trained_on_dataset(data):
            tokenizer = None
    return data.model_copy(update={"dataset": place, "tokenizer": tokenizer})


def trained_on_dataset(data: DataConfig) -> bool:
    """Whether phf trained the tokenizer, on this dataset alone."""
    if data.tokenizer is None:
        return not data.mixture
    place = Path(data.tokenizer)
    return not data.mixture and place.is_absolute() and place.name.startswith(f"{TOKENIZER_PREFIX}{data.vocab_size}-")


def build_once(target: Path, build: Callable[[Path], None]) -> None:
    """Build the folder `target` if it is missing. Concurrent processes wait for the one that builds it.

    Args:
        target: a folder.
        build: fills an empty temporary folder, which is synced to disk and then renamed to `target`.

    Raises:
        UserError: the folder cannot be written.
    """
    if target.exists():
        return
    temporary = target.with_name(f".{target.name}.building")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.with_name(f".{target.name}.lock")):
            if target.exists():
                return
            # The lock is held, so anything here was left by a process that was killed.
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            try:
                with os_errors():
                    build(temporary)
                for path in [*temporary.rglob("*"), temporary]:
                    _sync(path)
                temporary.rename(target)
                _sync(target.parent)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"Cannot write {target}: {error.strerror or error}. "
            f"Choose another place (--store, --output, or the environment variable {CACHE_VARIABLE} for a default one)."
        ) from None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    while True:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666), "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # The previous holder deleted the file that we waited for; another process may hold a lock on a new one.
            if not os.fstat(file.fileno()).st_nlink:
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
