"""Hostile sentences, which take the libraries minutes, end at the deadline at the latest, and crash nothing."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scorers.contract import Document, Execution, ScoringError
from scorers.registry import ScorerSpec, build
from scorers.sentences import document
from tests.scorers.helpers import check_scores
from tests.scorers.pii.fragments import FRAGMENTS

PATTERNS = ScorerSpec(kind="scrubadub", entities="none")


def one_sentence(text):
    return Document(text, np.array([len(text)], np.int32), "python")


@pytest.fixture(scope="module")
def patterns():
    return build("pii", PATTERNS)


@pytest.mark.parametrize(
    "text",
    [
        # scrubadub's credentials: cubic in white space, 2 s at a thousand blanks.
        "login" + " " * 100_000 + "x password",
        # pyap's normalisation: quadratic in white space, 5 s at ten thousand.
        "1 Main St" + "\r" * 100_000 + "NY",
        "1 Main St" + " " * 100_000 + "NY",
        # scrubadub's Skype names: generates every string two edits away from a token, however long.
        "skype " + "qwertyuiop" * 5_000,
        "skype zqxwvkj_1 abcdefgh9 " * 2_000,
        # Each occurrence once, not as often as there are occurrences.
        "born " + "10-Nov-1988 " * 60,
        "a@" * 20_000 + "b.c",
        "http://www." * 20_000,
        "(650) 253 0000 " * 1_000,
        "12 Main St, Albany, NY 12207, " * 1_000,
        "x" * 1_000_000,
        "born skype St NY @.\r\n" * 100,
        "\x00" * 100_000,
        "🙂 " * 20_000,
    ],
    ids=lambda text: f"{len(text)} of {text[:12]!r}",
)
def test_a_hostile_sentence_is_scored_in_seconds(patterns, text):
    began = time.process_time()
    (result,) = patterns.score([one_sentence(text)])
    check_scores(result, one_sentence(text))
    assert time.process_time() - began < 10


def test_equal_dates_and_addresses_are_found_once_each(patterns):
    (found,) = patterns.findings([one_sentence("I was born on 10-Nov-1988. " * 3)])
    assert [each.type for each in found[0]] == ["date_of_birth"] * 3
    (found,) = patterns.findings([one_sentence("12 Main St, Albany, NY 12207. " * 3)])
    assert [each.type for each in found[0]] == ["address"] * 3


def test_a_sentence_that_takes_longer_ends_at_the_deadline():
    scorer = build("pii", PATTERNS, Execution(deadline_s=0.5))
    words = " ".join(f"nm{number:x}zqvk skype" for number in range(400))
    began = time.monotonic()
    slow, fine = scorer.score([document(f"skype {words}"), document("Mail jo@example.com.")])
    assert time.monotonic() - began < 20
    assert isinstance(slow, ScoringError)
    assert slow.reason == "deadline"
    assert fine[0] > 0


@pytest.fixture(scope="module")
def reference():
    from datetime import date

    # Not at the top: pyap installs an importer with which pytest cannot import any more modules.
    from tests.benchmarks.references.pii import Reference

    return Reference(date(2026, 1, 1), None)


@settings(max_examples=80)
@given(
    st.lists(
        # Words near "skype" take the reference half a second each.
        st.one_of(
            st.sampled_from([each for each in FRAGMENTS if "kype" not in each.lower()]),
            st.characters(exclude_categories=["Cs"]),
            st.sampled_from([" ", "born ", "5 May 1980 "]),
        ),
        min_size=1,
        max_size=12,
    ).map("".join)
)
def test_strange_text_has_the_findings_of_the_reference(patterns, reference, text):
    (found,) = patterns.findings([one_sentence(text)])
    assert sorted((each.type, each.start, each.end) for each in found[0]) == reference.spans(text)


def test_equal_sentences_are_searched_once(patterns, monkeypatch):
    searched = []
    monkeypatch.setattr(
        patterns, "_finders", [("email", lambda clues: True, lambda text: searched.append(text) or [(0, 1)])]
    )
    same = document("So it is. So it is. So it was.")
    first, second = patterns.findings([same, same])
    assert first == second
    assert len(searched) == len(set(searched)) == 3 - (same.sentences()[0] == same.sentences()[1])
