"""A gate skips only text in which its detector finds nothing; our faster detectors find the same as the originals."""

import re
from functools import cache

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scorers.pii import gates
from scorers.pii.addresses import AddressFinder, normalise
from scorers.pii.gates import Clues
from scorers.pii.patterns import CREDENTIAL, GATES
from scorers.pii.skype import SkypeFinder
from scorers.pii.spelling import Spelling
from tests.scorers.pii.fragments import FRAGMENTS

TEXTS = st.lists(
    st.one_of(st.sampled_from(FRAGMENTS), st.sampled_from([" ", "."]), st.characters(exclude_categories=["Cs"])),
    max_size=14,
).map("".join)


@cache
def detector(name):
    import scrubadub.detectors.skype

    return scrubadub.detectors.catalogue.detector_catalogue.get(name)(locale="en_US")


def found(name, text):
    return [(filth.beg, filth.end) for filth in detector(name).iter_filth(text)]


@settings(max_examples=250)
@given(TEXTS)
def test_the_detector_finds_nothing_in_what_its_gate_skips(text):
    clues = Clues.of(text)
    for name, gate in GATES.items():
        assert gate(clues) or not found(name, text), name
    assert gates.may_hold_skype(clues) or not found("skype", text)


@settings(max_examples=300)
@given(
    st.lists(
        st.sampled_from(
            [*"0123456789+-x( .４＋", "+683", "+49", "310", "011", "ext", "int", "ınt", "anexo", "extension", ";ext="]
        ),
        max_size=10,
    ).map("".join)
)
@example("+6836int\u00a03")
@example("Call 310-1234")
@example("2extension 5")
def test_text_that_the_phone_gate_skips_holds_no_number(text):
    assert gates.may_hold_phone(Clues.of(text)) or not found("phone", text)


@settings(max_examples=300)
@given(
    st.lists(
        st.sampled_from(
            [each for each in FRAGMENTS if re.search(r"(?i)[A-Z]{2}|st|road|ohio|new|york|^\W+$|\d|one|and", each)]
        ),
        max_size=14,
    ).map("".join)
)
def test_text_that_the_address_gate_skips_holds_no_address(text):
    finder, gate = _addresses()
    assert gate(Clues.of(text)) or not finder.spans(text)


@cache
def _addresses():
    return AddressFinder(), gates.AddressGate()


def test_the_address_gate_passes_every_state_and_street_type():
    from pyap.source_US import data

    gate = gates.AddressGate()
    places = re.compile(data.region1, re.VERBOSE)
    for state in ["NY", "DC", "Ohio", "TEXAS", "new\thampshire", "District of Columbia", "Northern Mariana  Islands"]:
        assert places.fullmatch(" ".join(state.split()))
        assert gate(Clues.of(f"12 Main St, X {state}"))
    assert all(gate(Clues.of(f"12 Main {street.upper()}, Albany, NY")) for street in data.street_type_list)
    assert not gate(Clues.of("12 Main St, Albany"))
    assert not gate(Clues.of("12 Main, Albany, NY"))


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), st.sampled_from(["skype", "login", "pw", "Dot"]))
def test_folding_keeps_whatever_ignorecase_matches(text, word):
    for match in re.finditer(word, text + word.swapcase() + text, re.IGNORECASE):
        assert Clues.of(match.string).folded[match.start() : match.end()] == word.lower()


def test_every_letter_that_ignorecase_equates_with_ascii_is_folded():
    for character in map(chr, [*range(0xD800), *range(0xE000, 0x110000)]):
        folded = Clues.of(character).folded
        assert len(folded) == 1
        if not character.isascii() and re.fullmatch("[a-z]", character, re.IGNORECASE):
            assert re.fullmatch(folded, character, re.IGNORECASE)
            assert folded.isascii()


@pytest.mark.slow
def test_no_valid_phone_number_is_shorter_than_the_gate_allows():
    import phonenumbers
    from phonenumbers.phonemetadata import PhoneMetadata

    def shortest(region):
        metadata = PhoneMetadata.metadata_for_region_or_calling_code(
            phonenumbers.country_code_for_region(region) if isinstance(region, str) else region,
            region if isinstance(region, str) else phonenumbers.REGION_CODE_FOR_NON_GEO_ENTITY,
        )
        kinds = [getattr(metadata, kind) for kind in ("general_desc", "fixed_line", "mobile", "toll_free", "uan")]
        lengths = [length for kind in kinds if kind for length in kind.possible_length if length > 0]
        return min(lengths) + len(str(metadata.country_code))

    regions = [*phonenumbers.SUPPORTED_REGIONS, *phonenumbers.COUNTRY_CODES_FOR_NON_GEO_REGIONS]
    assert min(map(shortest, regions)) == gates.FEWEST_WITH_PLUS
    american = [each for each in regions if isinstance(each, str) and phonenumbers.country_code_for_region(each) == 1]
    assert len(american) > 20
    # Without the country code, or with the prefix that Americans dial before one.
    assert min(map(shortest, american)) - 1 == gates.FEWEST_WITHOUT_PLUS
    assert len("011") + gates.FEWEST_WITH_PLUS >= gates.FEWEST_WITHOUT_PLUS


def test_the_words_near_a_date_of_birth_are_scrubadubs():
    from scrubadub.detectors.date_of_birth import DateOfBirthDetector

    words = DateOfBirthDetector.context_words_language_map["en"]
    assert all(gates.may_hold_birth_date(Clues.of(f"x{word.upper()}y")) for word in words)
    assert not gates.may_hold_birth_date(Clues.of("May 5, 1980"))


@settings(max_examples=300)
@given(
    st.lists(
        st.sampled_from(
            [
                "login",
                "u:",
                "username",
                "uſername",
                "logİn",
                "password",
                "paſſword",
                "pw",
                "p:",
                "é",
                *":a.+@_ \t\n\r\u2003",
            ]
        ),
        max_size=12,
    ).map("".join)
)
def test_the_linear_pattern_for_credentials_matches_the_same(text):
    from scrubadub.detectors.credential import CredentialDetector

    theirs = [match.span() for match in CredentialDetector.regex.finditer(text)]
    assert [match.span() for match in CREDENTIAL.finditer(text)] == theirs


@given(TEXTS)
def test_a_text_is_normalised_as_pyap_does(text):
    from pyap.parser import AddressParser

    assert normalise(text) == AddressParser(country="US")._normalize_string(text)


@settings(max_examples=40)
@given(st.text("abdehorst-.9Z", min_size=1, max_size=4), st.sampled_from(["a", "wor", "hous", "the", "k"]))
def test_words_are_misspelt_when_textblob_says_so(end, begin):
    from textblob import Word

    word = f"{begin}{end}"[:6]
    assert _spelling().is_misspelt(word) == (Word(word).spellcheck()[0][1] < 0.5)


@cache
def _spelling():
    return Spelling()


@pytest.mark.parametrize(
    "text",
    [
        "skype teh_xx houses a.bcde SKYPE: wrod.s",
        "axbcde a.bcde skype, skypes sKype",
        "ABCDEFX on Skype abcdefx ABCDEFX\r\n",
        "xqzwv_k far away " + "and so on " * 4 + "skype",
    ],
)
def test_names_on_skype_are_those_of_scrubadub(text):
    assert sorted(set(_skype().spans(text))) == sorted(set(found("skype", text)))


@cache
def _skype():
    return SkypeFinder()
