"""Check paths read from a stored file: relative, plain, below the folder that the user named, and through no link.

A dataset or a run may come from somebody else. Each path in its files is checked twice: as text, when the file is
parsed (`RelativePath`), and on disk, when the path is used (`place_below`). The folder that the user names may be a
link or lie below one; nothing below it may be a link.
"""

import contextlib
import errno
import os
import re
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from scorers.errors import UserError

# No path of our own is longer; object stores allow 1,024 bytes.
_LONGEST = 1024
_PART = r"(?!\.{1,2}(?:/|\Z))[^/\\\x00-\x1f\x7f-\x9f\ud800-\udfff]{1,255}"
_RELATIVE = re.compile(rf"(?![A-Za-z]:){_PART}(?:/{_PART})*\Z")


class UnsafePathError(OSError, ValueError):
    """A path that leads out of its folder, or to something that is neither a file nor a folder, such as a link.

    Also a `ValueError`, so that a reader treats a file that is a link as a damaged one.
    """

    def __str__(self) -> str:
        return str(self.strerror)


class UnsafeNameError(ValueError):
    """A path in a stored file is not a plain relative path."""


def check_path(path: str) -> str:
    """Return the path if it is relative and plain.

    Raises:
        UnsafeNameError: names the path: it is absolute or empty, has a part that is empty, `.` or `..`, or holds a
            backslash, a drive or a control character.
    """
    if len(path) > _LONGEST or not _RELATIVE.match(path):
        raise UnsafeNameError(f"'{escape_path(path)}' is not a plain relative path")
    return path


RelativePath = Annotated[str, AfterValidator(check_path)]
"""A field of a stored file that holds a path, checked by `check_path`."""


def require_utf8(name: str, what: str = "name of the input") -> None:
    """Refuse a file name that is not UTF-8, which neither Arrow nor JSON can hold.

    Args:
        name: the name as Python decoded it.
        what: how the message calls it.

    Raises:
        UserError: the name is not UTF-8, or Python decodes file names with another encoding.
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        encoding = sys.getfilesystemencoding()
        with contextlib.suppress(UnicodeError):
            if encoding != "utf-8":
                raise UserError(
                    f"The {what} {os.fsencode(name).decode()!r} cannot be read, because the environment makes Python "
                    f"decode file names as {encoding.upper()}. Set LC_ALL=C.UTF-8, and unset PYTHONUTF8."
                ) from None
        raise UserError(f"The {what} {name!r} is not valid UTF-8; rename the file.") from None


def check_parts(path: str) -> str:
    """Return the path if no part leads out of the folder; it may end in a slash, and "" is the folder itself.

    Raises:
        UnsafePathError: it is absolute, has a part that is empty, `.` or `..`, or holds a NUL.
    """
    parts = path.removesuffix("/").split("/") if path else []
    if any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise UnsafePathError(errno.EINVAL, f"'{escape_path(path)}' is not a relative path")
    return path


def place_below(root: Path, path: str, *, replaced: bool = False) -> Path:
    """Return `root / path`, checked on disk.

    Args:
        root: the folder; may itself be a link.
        path: relative, with `/`; need not exist.
        replaced: whether the caller replaces or removes what is there, which may then be a link; its folders may not.

    Raises:
        UnsafePathError: it leads out of `root`, through a link, or to something that is neither file nor folder.
    """
    place = str(root)
    parts = [part for part in check_parts(path).split("/") if part]
    for part in parts[:-1] if replaced else parts:
        place = f"{place}/{part}"
        try:
            mode = os.lstat(place).st_mode
        except (FileNotFoundError, NotADirectoryError):
            break
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise UnsafePathError(errno.ELOOP, f"{escape_path(place)} {describe_irregular(mode)}")
    return root / path


def irregular_files(root: Path) -> Iterator[tuple[str, str]]:
    """Yield everything below `root` that is neither file nor folder: its relative path, and a clause that says so."""
    folders = [""]
    while folders:
        prefix = folders.pop()
        try:
            with os.scandir(root / prefix) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except (FileNotFoundError, NotADirectoryError):
            continue
        for entry in found:
            if entry.is_dir(follow_symlinks=False):
                folders.append(f"{prefix}{entry.name}/")
            elif not entry.is_file(follow_symlinks=False):
                yield f"{prefix}{entry.name}", describe_irregular(entry.stat(follow_symlinks=False).st_mode)


def describe_irregular(mode: int) -> str:
    """Return a clause that says what is wrong with something that is neither file nor folder, by its mode."""
    if stat.S_ISLNK(mode):
        return "is a link, and phf follows no links in its own folders: replace it by its target, or remove it"
    return "is neither a file nor a folder: remove it"


def escape_path(path: str) -> str:
    """Escape the unprintable characters of a path for a message, and cut a very long one."""
    text = path if len(path) <= _LONGEST else f"{path[:100]}…"
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
