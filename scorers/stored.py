"""Read the small files of a dataset, a run or a model, with limits.

They may be hostile: a pipe or a file that never ends, or JSON nested so deeply that the parser gives up.
"""

import errno
import json
import math
import os
import stat
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from scorers.paths import describe_irregular

# Far more than a manifest of a million inputs or the vocabulary of a tokenizer needs.
LARGEST = 256 * 1024 * 1024

Count = Annotated[int, Field(ge=0, lt=2**63)]
"""A count: an integer from 0 that fits 64 bits."""


def check_numbers(value: Any) -> Any:
    """Return the value if no number in its lists and mappings is NaN or infinite.

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
    """Return the content of a file of at most `largest` bytes; a link is followed.

    Raises:
        OSError: it cannot be read, has more bytes, or is not a regular file.
    """
    # O_NONBLOCK: opening a pipe would otherwise wait for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, f"it {describe_irregular(found.st_mode)}", str(path))
        content = file.read(largest + 1)
        if len(content) > largest:
            raise OSError(errno.EFBIG, f"it has more than the {largest:,} bytes that such a file may have", str(path))
        return content


def parse_json(text: str | bytes) -> Any:
    """Parse JSON, without the extensions NaN and Infinity.

    Raises:
        ValueError: it is not JSON, or is nested too deeply.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")
