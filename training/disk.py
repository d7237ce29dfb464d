"""Write files whole, report full and failing disks uniformly, and refuse links in our folders."""

import errno
import os
import re
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scorers.errors import IncompleteError, UserError
from scorers.paths import describe_irregular, escape_path, irregular_files

_NUMBER = re.compile(r"\(os error (\d+)\)")


def is_full(error: OSError) -> bool:
    """Whether the disk or the user's quota is full, so that a later attempt may succeed."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def output_error(folder: Path, error: OSError) -> UserError:
    """Return the error for a run's folder that cannot be written; if the disk is full, the command can be repeated."""
    problem = f"Cannot write to --output {folder}: {error.strerror or error}."
    if is_full(error):
        return IncompleteError(f"{problem} Make room and run the same command again.")
    return UserError(problem)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Report an `OSError` in the block as a failure to write `path`, a file or a folder.

    Raises:
        IncompleteError: it cannot be written; says where, why, and what to do.
    """
    try:
        yield
    except OSError as error:
        remedy = "Make room" if is_full(error) or error.errno == errno.EFBIG else "Fix that"
        raise IncompleteError(
            f"{path} cannot be written: {error.strerror or error}. {remedy} and run the same command again."
        ) from error


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file atomically (text in UTF-8): readers, and a crash, see the old or the new content, never a part.

    The old file itself is not modified: it may be a hard link with another name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Do not use `tempfile`, whose files are private whatever the umask.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def check_writable(folder: Path, remedy: str) -> None:
    """Refuse a folder, existing or not, that cannot be written, before there is anything to write.

    It writes a temporary file, because permissions do not show, for example, that a file system is read-only.

    Args:
        folder: the folder.
        remedy: what to do, as a sentence.

    Raises:
        UserError: says why.
    """
    try:
        existing = next(each for each in (folder, *folder.absolute().parents) if each.exists())
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise UserError(f"Cannot write {folder}: {error.strerror or error}. {remedy}") from None


def refuse_link(path: Path) -> None:
    """Refuse a path, existing or not, that is itself a link.

    Raises:
        UserError: it is.
    """
    if path.is_symlink():
        raise UserError(f"{escape_path(str(path))} {describe_irregular(path.lstat().st_mode)}.")


def refuse_links(folder: Path, allowed: re.Pattern[str] | None = None) -> None:
    """Refuse a folder, existing or not, that contains a link or a device; the folder itself may be a link.

    Args:
        folder: of a run, a token store or a comparison.
        allowed: relative paths, with slashes, that may be links.

    Raises:
        UserError: names the first.
    """
    for path, what in irregular_files(folder):
        if allowed is None or not allowed.fullmatch(path):
            raise UserError(f"{escape_path(f'{folder}/{path}')} {what}.")


@contextmanager
def os_errors() -> Iterator[None]:
    """Convert the errors that safetensors and tokenizers, written in Rust, raise for unwritable files to `OSError`.

    The former raises `SafetensorError` and the latter a bare `Exception`; both messages end with the error number.
    """
    try:
        yield
    except Exception as error:
        found = None if isinstance(error, OSError) else _NUMBER.search(str(error))
        if found is None:
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number)) from error
