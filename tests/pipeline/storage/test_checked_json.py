"""Checked JSON files reveal every flipped bit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from pipeline.storage.checked_json import from_checked, to_checked


class Value(BaseModel):
    model_config = ConfigDict(extra="forbid")

    text: str
    numbers: dict[str, int]


VALUES = st.builds(Value, text=st.text(), numbers=st.dictionaries(st.text(), st.integers(), max_size=3))
INDENTS = st.sampled_from([None, 2])


@given(value=VALUES, indent=INDENTS)
def test_written_values_are_read_back(value, indent):
    assert from_checked(Value, to_checked(value, indent=indent)) == value
    assert from_checked(Value, value.model_dump_json(indent=indent).encode()) == value


@given(value=VALUES, indent=INDENTS, bit=st.integers(min_value=0))
def test_a_flipped_bit_is_noticed_or_changes_nothing(value, indent, bit):
    data = bytearray(to_checked(value, indent=indent))
    bit %= 8 * len(data)
    data[bit // 8] ^= 1 << bit % 8
    try:
        assert from_checked(Value, bytes(data)) == value
    except ValueError:
        return


@given(value=VALUES, keep=st.integers(min_value=0))
def test_a_truncated_file_is_noticed(value, keep):
    data = to_checked(value)
    with pytest.raises(ValueError):
        from_checked(Value, data[: keep % len(data)])
