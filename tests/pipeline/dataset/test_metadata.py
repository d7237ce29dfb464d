"""Fields of the metadata of documents."""

import pytest

from pipeline.dataset.metadata import metadata_value, parse_metadata


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "[1]", "null", "NaN", ""])
def test_text_that_is_no_object_has_no_fields(text: str) -> None:
    assert parse_metadata(text) == {}


META = '{"site": "a", "in.it": "b", "in": {"it": "x"}, "meta": {"in": "c"}, "number": 3, "none": null}'


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("site", "a"),
        ("in.it", "b"),
        ("meta.in", "c"),
        ("meta.out", None),
        ("site.in", None),
        ("number", "3"),
        ("none", None),
        ("meta", '{"in": "c"}'),
    ],
)
def test_dots_lead_into_objects(name: str, value: str | None) -> None:
    assert metadata_value(parse_metadata(META), name) == value
