"""Convert Arrow columns to JSON values, for `meta`."""

import base64
import json
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc


def json_values(array: pa.Array) -> list[Any]:
    """Convert a column to JSON values, identically on every machine (with or without pandas, in any time zone).

    Dates, times and decimals become strings as Arrow writes them (zoned times in UTC), binary values Base64, bytes of
    a string that are not UTF-8 surrogate escapes (PEP 383), structs and maps objects, and values of any other type
    that JSON lacks strings. Numbers are not checked: NaN stays NaN.
    """
    while isinstance(array, pa.ExtensionArray):
        array = array.storage
    kind = array.type
    # pyarrow decodes only some types when they are nested in the following three.
    if pa.types.is_dictionary(kind):
        return _take(json_values(array.dictionary), array.indices)
    if pa.types.is_run_end_encoded(kind):
        places = pa.array(range(len(array.values)), pa.int64())
        whole = pa.RunEndEncodedArray.from_arrays(array.run_ends, places)
        return _take(json_values(array.values), pc.run_end_decode(whole.slice(array.offset, len(array))))
    if _is_list_view(kind):
        values, starts = json_values(array.values), array.offsets.to_pylist()
        views = [values[start : start + size] for start, size in zip(starts, array.sizes.to_pylist(), strict=True)]
        return _where_valid(array, views)
    if pa.types.is_null(kind) or pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return list(array.to_pylist())
    if is_text(kind):
        return [None if each is None else each.decode(errors="surrogateescape") for each in utf8(array)]
    if is_bytes(kind) or pa.types.is_fixed_size_binary(kind):
        return [None if each is None else base64.b64encode(each).decode() for each in array.to_pylist()]
    if pa.types.is_struct(kind):
        names = [kind.field(index).name for index in range(kind.num_fields)]
        columns = [json_values(array.field(index)) for index in range(kind.num_fields)]
        rows = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)] or [{}] * len(array)
        return _where_valid(array, rows)
    if pa.types.is_map(kind):
        pairs = list(zip(map(_key, json_values(array.keys)), json_values(array.items), strict=True))
        return _where_valid(array, [dict(pairs[start:end]) for start, end in _ranges(array)])
    if is_list(kind):
        values = json_values(array.values)
        return _where_valid(array, [values[start:end] for start, end in _ranges(array)])
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        array = array.cast(pa.timestamp(kind.unit, "UTC"))
    try:
        return list(array.cast(pa.string()).to_pylist())
    except pa.ArrowException:
        return [str(each) if each.is_valid else None for each in array]


def plain(array: pa.Array) -> pa.Array:
    """Unwrap an array of text or bytes: remove extension types, dictionaries and run-end encoding."""
    while True:
        if isinstance(array, pa.ExtensionArray):
            array = array.storage
        elif pa.types.is_dictionary(array.type):
            array = pa.DictionaryArray.from_arrays(array.indices, _without_views(array.dictionary)).dictionary_decode()
        elif pa.types.is_run_end_encoded(array.type):
            whole = pa.RunEndEncodedArray.from_arrays(array.run_ends, _without_views(array.values))
            array = pc.run_end_decode(whole.slice(array.offset, len(array)))
        else:
            return array


def _without_views(values: pa.Array) -> pa.Array:
    """Convert string and binary views, which pyarrow cannot decode inside dictionaries and run ends."""
    if pa.types.is_string_view(values.type):
        return values.cast(pa.large_binary()).view(pa.large_string())
    return values.cast(pa.large_binary()) if pa.types.is_binary_view(values.type) else values


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type of the values, without extension types, dictionaries, run-end encoding and list views."""
    while True:
        if isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        elif pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
            kind = kind.value_type
        elif _is_list_view(kind):
            kind = pa.large_list(kind.value_type)
        else:
            return kind


def is_text(kind: pa.DataType) -> bool:
    """Whether the type is a string type; the bytes may still be invalid UTF-8."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def is_bytes(kind: pa.DataType) -> bool:
    """Whether the type is binary of variable length, which may hold text."""
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def is_list(kind: pa.DataType) -> bool:
    """Whether the type is a list type."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_list_view(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind))


def utf8(array: pa.Array) -> list[bytes | None]:
    """The bytes of strings, not checked to be UTF-8."""
    return list(array.cast(pa.large_binary()).to_pylist())


def _take(values: list[Any], places: pa.Array) -> list[Any]:
    return [None if place is None else values[place] for place in places.to_pylist()]


def _where_valid(array: pa.Array, values: list[Any]) -> list[Any]:
    if not array.null_count:
        return values
    return [value if valid else None for value, valid in zip(values, array.is_valid().to_pylist(), strict=True)]


def _ranges(array: pa.Array) -> list[tuple[int, int]]:
    """The range of each list in the child array; a slice shares the child of the whole array."""
    if pa.types.is_fixed_size_list(array.type):
        size = array.type.list_size
        return [(size * (array.offset + row), size * (array.offset + row + 1)) for row in range(len(array))]
    offsets = array.offsets.to_pylist()
    return list(pairwise(offsets))


def _key(key: Any) -> str:
    return key if isinstance(key, str) else json.dumps(key)
