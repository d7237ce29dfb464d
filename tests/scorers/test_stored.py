"""Small foreign files are read with limits, whatever they are."""

import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from scorers.stored import Count, JsonObject, parse_json, read_stored


def test_a_file_is_read_whole_and_a_larger_one_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"12345")
    assert read_stored(file) == b"12345"
    assert read_stored(file, largest=5) == b"12345"
    with pytest.raises(OSError, match="more than the 4 bytes"):
        read_stored(file, largest=4)
    os.truncate(file, 1 << 40)
    with pytest.raises(OSError, match="such a file may have"):
        read_stored(file, largest=1000)


def test_reading_something_that_is_not_a_file_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="neither a file nor a folder"):
        read_stored(tmp_path / "pipe")
    with pytest.raises(IsADirectoryError):
        read_stored(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_stored(tmp_path / "none")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "NaN", "[-Infinity]", "9" * 5000, "", b"\xff"])
def test_json_that_cannot_be_parsed_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError):
        parse_json(text)


def test_fields_hold_numbers() -> None:
    class Stored(BaseModel):
        count: Count
        rest: JsonObject

    good = Stored.model_validate_json('{"count": 3, "rest": {"a": [1.5, {"b": null}]}}')
    assert (good.count, good.rest) == (3, {"a": [1.5, {"b": None}]})
    bad: list[Any] = [("-1", "0"), (str(2**63), "0"), ("9" * 400, "0"), ("1", "NaN"), ("1", "[1e400]")]
    for count, value in bad:
        with pytest.raises(ValueError):
            Stored.model_validate_json(f'{{"count": {count}, "rest": {{"a": {value}}}}}')
