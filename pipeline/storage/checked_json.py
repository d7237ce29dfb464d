"""JSON files with a checksum: the last key of the object is the CRC-32 of everything before it.

A flipped bit in a commit record or another JSON file of a job would otherwise read as other data; Parquet pages have
checksums of their own.
"""

import re
import zlib
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from scorers.paths import UnsafeNameError
from scorers.settings import describe_first_error

Model = TypeVar("Model", bound=BaseModel)

_CHECKSUM = re.compile(rb',\s*"crc32":\s*"([0-9a-f]{8})"\s*\}\s*\Z')
_LONGEST = 64


def to_checked(value: BaseModel, *, indent: int | None = None) -> bytes:
    """Encode a model as JSON with its checksum."""
    body = value.model_dump_json(indent=indent).encode().removesuffix(b"}").rstrip()
    start, end = (b"\n" + b" " * indent, b"\n}\n") if indent else (b"", b"}")
    return body + b"," + start + b'"crc32":' + b" " * bool(indent) + b'"%08x"' % zlib.crc32(body) + end


def from_checked(model: type[Model], data: bytes) -> Model:
    """Decode a model that `to_checked` wrote. JSON without a checksum is accepted, since it may be written by hand.

    Raises:
        ValueError: the checksum is wrong, or the data is not a valid model; names the key.
        UnsafeNameError: a path in it leaves the root; a `ValueError` too.
    """
    found = _CHECKSUM.search(data, max(0, len(data) - _LONGEST))
    if found is None:
        return _validated(model, data)
    body = data[: found.start()]
    if zlib.crc32(body) != int(found[1], 16):
        raise ValueError("its checksum is wrong")
    return _validated(model, body + b"}")


def _validated(model: type[Model], data: bytes) -> Model:
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        causes = [each.get("ctx", {}).get("error") for each in error.errors(include_url=False)]
        kind = UnsafeNameError if any(isinstance(cause, UnsafeNameError) for cause in causes) else ValueError
        raise kind(describe_first_error(error)) from None
