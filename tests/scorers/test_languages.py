"""Language tags: normalised, and matched by whole subtags."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scorers.errors import UserError
from scorers.languages import normalised, speaks
from scorers.registry import ScorerSpec, parse_scorer, resolve

subtags = st.text("abcdefghijklmnopqrstuvwxyz", min_size=2, max_size=8)
tags = st.lists(subtags, min_size=1, max_size=4).map("-".join)


@given(tags, st.lists(subtags, max_size=3))
def test_a_language_covers_itself_and_its_variants_however_they_are_written(tag, more):
    variant = "-".join([tag, *more])
    for written in (variant, variant.upper(), variant.replace("-", "_"), f" {variant}.UTF-8 "):
        assert speaks({tag}, written)


@given(tags, subtags)
def test_a_variant_does_not_cover_its_language(tag, more):
    assert not speaks({f"{tag}-{more}"}, tag)


@given(st.text())
def test_any_text_is_a_tag_or_refused(text):
    try:
        found = normalised(text)
    except ValueError:
        return
    assert normalised(found) == found
    assert speaks({found}, text)


def test_a_part_of_a_subtag_is_not_a_language():
    assert not speaks({"en"}, "enm")
    assert not speaks({"pt-br"}, "pt-PT")
    assert speaks({"pt-br", "de"}, "pt_BR")


def test_the_command_line_and_yaml_give_the_same_languages():
    _, text = parse_scorer("toxicity=linear,languages=fr+EN,language_field=lang")
    mapping = ScorerSpec(kind="linear", languages=["en", "fr", "en"], language_field="lang")
    assert resolve("toxicity", text) == resolve("toxicity", mapping)
    assert mapping.languages == ("en", "fr")


def test_what_names_no_language_is_not_recorded():
    assert resolve("toxicity", ScorerSpec(kind="linear")).model_dump().keys() == {"kind", "documents"}


@pytest.mark.parametrize("languages", ["English (US)", "en++fr", "e", [1], {"en": 1}, 7])
def test_what_is_no_language_is_refused(languages):
    with pytest.raises(ValueError, match="languages"):
        ScorerSpec(kind="linear", languages=languages)


def test_a_field_without_languages_is_refused():
    with pytest.raises(UserError, match=r"scorers\.toxicity\.language_field .* no languages"):
        resolve("toxicity", ScorerSpec(kind="linear", language_field="lang"))
