"""Read fields of the metadata of documents, the column `meta`: JSON objects that came with the corpus."""

import json
from typing import Any

from scorers.stored import parse_json


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
