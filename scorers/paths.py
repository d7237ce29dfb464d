"""Paths that a file names: relative, plain, and below the folder that the user named, with no link on the way.

A dataset or a run may come from somebody else. What its files name is checked twice: as text, when the file is parsed
(`RelativePath`), and on the disk, when the path is used (`place_below`). The folder that the user names may be a link,
or lie below one; nothing below it may.
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

# Of our own files no path is longer; object stores end at 1024 bytes.
_LONGEST = 1024
_PART = r"(?!\.{1,2}(?:/|\Z))[^/\\\x00-\x1f\x7f-\x9f\ud800-\udfff]{1,255}"
_RELATIVE = re.compile(rf"(?![A-Za-z]:){_PART}(?:/{_PART})*\Z")


class UnsafePathError(OSError, ValueError):
    """A path that leads out of its folder, or to something that is neither a file nor a folder, such as a link.

    It is a `ValueError` too: a file that is a link is as good as damaged to whoever reads it.
    """

    def __str__(self) -> str:
        return str(self.strerror)


class UnsafeNameError(ValueError):
    """A stored file names a path that is none in its folder."""


def check_path(path: str) -> str:
    """The path, if it is relative and plain.

    Raises:
        UnsafeNameError: it is absolute or empty, has a part that is empty, `.` or `..`, or holds a backslash, a drive
            or a control character; names it.
    """
    if len(path) > _LONGEST or not _RELATIVE.match(path):
        raise UnsafeNameError(f"'{shown(path)}' is no plain relative path")
    return path


RelativePath = Annotated[str, AfterValidator(check_path)]
"""A field of a stored file that is used as a path: see `check_path`."""


def require_utf8(name: str, what: str = "name of the input") -> None:
    """Refuse a name of a file that is not UTF-8, which neither Arrow nor JSON can hold.

    Args:
        name: as Python has decoded it.
        what: it is the name of.

    Raises:
        UserError: it is not, or Python takes names of files for another encoding.
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        encoding = sys.getfilesystemencoding()
        with contextlib.suppress(UnicodeError):
            if encoding != "utf-8":
                raise UserError(
                    f"The {what} {os.fsencode(name).decode()!r} cannot be read, as the environment makes Python take "
                    f"names of files for {encoding.upper()}. Set LC_ALL=C.UTF-8, and unset PYTHONUTF8."
                ) from None
        raise UserError(f"The {what} {name!r} is not valid UTF-8; rename the file.") from None


def check_parts(path: str) -> str:
    """The path, if no part of it leads out of a folder; a slash may end it, and an empty one is the folder itself.

    Raises:
        UnsafePathError: it is absolute, has a part that is empty, `.` or `..`, or holds a NUL.
    """
    parts = path.removesuffix("/").split("/") if path else []
    if any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise UnsafePathError(errno.EINVAL, f"'{shown(path)}' is no relative path")
    return path


def place_below(root: Path, path: str, *, replaced: bool = False) -> Path:
    """Where a path lies below `root`.

    Args:
        root: may be a link itself.
        path: relative, with `/`; need not exist.
        replaced: what lies there is replaced or removed itself, so that it may be a link; its folders may not.

    Raises:
        UnsafePathError: it leads out of `root` or over a link, or to something that is neither file nor folder.
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
            raise UnsafePathError(errno.ELOOP, f"{shown(place)} {no_file(mode)}")
    return root / path


def irregular_files(root: Path) -> Iterator[tuple[str, str]]:
    """All below a folder that is neither file nor folder: its path relative to `root`, and a clause that says so."""
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
                yield f"{prefix}{entry.name}", no_file(entry.stat(follow_symlinks=False).st_mode)


def no_file(mode: int) -> str:
    """The clause that says what is wrong with something that is neither file nor folder, by its mode."""
    if stat.S_ISLNK(mode):
        return "is a link, and phf follows none in a folder of its own: put what it leads to in its place, or remove it"
    return "is neither a file nor a folder: remove it"


def shown(path: str) -> str:
    """A path for a message: control characters and what cannot be printed escaped, and not longer than a line."""
    text = path if len(path) <= _LONGEST else f"{path[:100]}…"
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
