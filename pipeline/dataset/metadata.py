"""Group documents by their input or a field of their metadata: the column `meta`, JSON objects of the corpus."""

import json
from typing import Any

import pyarrow as pa

from scorers.stored import parse_json

INPUTS = "inputs"
"""Groups documents by the input that they come from, instead of a field of their metadata."""


def group_column(by: str) -> str:
    """Return the column of a dataset that `group_values` reads."""
    return "source" if by == INPUTS else "meta"


def group_values(batch: pa.RecordBatch, by: str) -> list[str | None]:
    """Return the group of each document; None if it has none.

    Args:
        batch: rows of a dataset with the column `group_column(by)`.
        by: `INPUTS`, or the name of a field of their metadata (`metadata_value`).
    """
    texts = batch.column(group_column(by)).to_pylist()
    return texts if by == INPUTS else [metadata_value(parse_metadata(text), by) for text in texts]


def parse_metadata(text: str) -> dict[str, Any]:
    """Return the metadata of a document; empty for a text that is no JSON object, which no job of ours writes."""
    try:
        meta = parse_json(text)
    except ValueError:
        return {}
    return meta if isinstance(meta, dict) else {}


def metadata_value(meta: dict[str, Any], name: str) -> str | None:
    """Return the value of a field as text, which is JSON for other values; None if it is missing or null.

    Dots in `name` lead into objects, as in `meta.source`, unless a field has that very name.
    """
    value: Any = meta
    for part in [name] if name in meta else name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value if value is None or isinstance(value, str) else json.dumps(value, sort_keys=True)
