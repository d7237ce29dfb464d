"""The small files that a dataset, a run or a model keeps: read whole, and no further than any that phf writes.

Whoever made one may have made it to harm: a pipe that never ends, a file that has no end, JSON that is nested so deeply
that a parser gives up.
"""

import errno
import json
import math
import os
import stat
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from scorers.paths import no_file

# Far more than any of them has: a manifest of a million inputs, or the vocabulary of a tokenizer.
LARGEST = 256 * 1024 * 1024

Count = Annotated[int, Field(ge=0, lt=2**63)]
"""A field that counts something."""


def check_numbers(value: Any) -> Any:
    """The value, if no number in its lists and mappings is NaN or infinite.

    Raises:
        ValueError: one is.
    """
    found = [value]
    while found:
        each = found.pop()
        if isinstance(each, dict):
            found += each.values()
        elif isinstance(each, list):
            found += each
        elif isinstance(each, float) and not math.isfinite(each):
            raise ValueError("it holds NaN or an infinite number")
    return value


JsonObject = Annotated[dict[str, Any], AfterValidator(check_numbers)]
"""A field with what somebody else gives its keys and values; phf writes neither NaN nor infinity, which JSON lacks."""


def read_stored(path: str | Path, largest: int = LARGEST) -> bytes:
    """The content of a file.

    Args:
        path: of the file; a link is followed.
        largest: bytes that it may have.

    Raises:
        OSError: it cannot be read, has more bytes, or is no file.
    """
    # A pipe is opened without waiting for who writes into it.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, f"it {no_file(found.st_mode)}", str(path))
        content = file.read(largest + 1)
        if len(content) > largest:
            raise OSError(errno.EFBIG, f"it has more than the {largest:,} bytes that such a file may have", str(path))
        return content


def parse_json(text: str | bytes) -> Any:
    """Parse JSON, without the extensions NaN and Infinity.

    Raises:
        ValueError: it is none, or nested too deeply.
    """
    try:
        return json.loads(text, parse_constant=_no_number)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number")
