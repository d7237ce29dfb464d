"""A disk that is full, or fails: libraries say so each in its own way, and a person is told in one."""

import errno
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scorers.errors import IncompleteError, UserError
from scorers.paths import irregular_files, shown

_NUMBER = re.compile(r"\(os error (\d+)\)")


def is_full(error: OSError) -> bool:
    """Whether there was no room, on the disk or in what a user may take of it, so that a later attempt may succeed."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def output_error(folder: Path, error: OSError) -> UserError:
    """What to tell of a run's folder that cannot be written: the same command may do once there is room."""
    problem = f"Cannot write to --output {folder}: {error.strerror or error}."
    if is_full(error):
        return IncompleteError(f"{problem} Make room and run the same command again.")
    return UserError(problem)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the block writes is `path`, a file or a folder.

    Raises:
        IncompleteError: it cannot be written; says where, why, and what to do.
    """
    try:
        yield
    except OSError as error:
        # Room for so large a file, too.
        remedy = "Make room" if is_full(error) or error.errno == errno.EFBIG else "See to that"
        raise IncompleteError(
            f"{path} cannot be written: {error.strerror or error}. {remedy} and run the same command again."
        ) from error


def check_writable(folder: Path, remedy: str) -> None:
    """Refuse a folder, there or not yet, that cannot be written, before there is anything to write.

    Permissions do not tell all, such as that a file system is mounted to be read only: something is written.

    Args:
        folder: the folder.
        remedy: what to do, as a sentence.

    Raises:
        UserError: says why.
    """
    try:
        there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise UserError(f"Cannot write {folder}: {error.strerror or error}. {remedy}") from None


def refuse_links(folder: Path, besides: re.Pattern[str] | None = None) -> None:
    """Refuse a folder of ours, there or not yet, with a link or a device below it; the folder itself may be a link.

    Args:
        folder: of a run, a token store, a comparison.
        besides: paths in it, with slashes, that may be links.

    Raises:
        UserError: names the first.
    """
    for path, what in irregular_files(folder):
        if besides is None or not besides.fullmatch(path):
            raise UserError(f"{shown(f'{folder}/{path}')} {what}.")


@contextmanager
def os_errors() -> Iterator[None]:
    """Make an `OSError` of what safetensors and tokenizers, which are in Rust, raise where a file cannot be written.

    It is a `SafetensorError` of the one and a bare `Exception` of the other; both end with the number of the error.
    """
    try:
        yield
    except Exception as error:
        found = None if isinstance(error, OSError) else _NUMBER.search(str(error))
        if found is None:
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number)) from error
