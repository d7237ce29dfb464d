"""Where linters find a violation: in its line and sentence, whatever the characters and the ends of lines."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scorers.contract import Document
from scorers.linters.lines import Violation, locate, per_character
from scorers.registry import ScorerSpec, build
from scorers.sentences import document
from scorers.spans import LocatesFindings, why_invalid
from tests.scorers.linters.test_pycodestyle import SOURCE

CODE = (
    "\ufeffimport os,sys\r\n"
    "x=1\r\n"
    'y = "é🙂"+ undefined  \n'
    f"z = 1{' ' * 100}+ 2\n"
    '\n\ndef f():\n    """Two\n    é🙂 \\d"""\n    return 1 == None\n'
    "\n"
)
PLACES = {
    "pycodestyle": [
        ("E231", ","),
        ("E401", ","),
        ("E225", "="),
        ("W291", "  "),
        ("E221", " " * 100),
        ("E501", " " * 26 + "+ 2"),
        ("W605", "\\"),
        ("E711", "=="),
        ("W391", "\n"),
    ],
    "ruff": [
        ("E401", "import os,sys"),
        ("E231", ","),
        ("E225", "="),
        ("W291", "  "),
        ("E221", " " * 100),
        ("E501", " " * 26 + "+ 2"),
        ("W605", "\\d"),
        ("PLR0133", "1"),
        ("W391", "\n"),
    ],
    "pylint": [
        ("unused-import", "import os,sys"),
        ("invalid-name", "x"),
        ("undefined-variable", "undefined"),
        ("trailing-whitespace", "  "),
        ("line-too-long", f"z = 1{' ' * 100}+ 2"),
        ("singleton-comparison", "1 == None"),
        ("trailing-newlines", "\n"),
    ],
}


@pytest.fixture(scope="module", params=PLACES)
def scorer(request):
    return build("style", ScorerSpec(kind=request.param))


def test_violations_are_found_where_they_are(scorer):
    each = document(CODE, "python")
    (located,) = scorer.locate([each])
    assert isinstance(scorer, LocatesFindings)
    assert np.array_equal(located.scores, scorer.score([each])[0])
    assert why_invalid(located.findings, each.ends.tolist(), located.scores) is None
    places = [(found.type, CODE[found.start : found.end]) for found in located.findings]
    missing = [place for place in PLACES[scorer.fingerprint.partition("-")[0]] if place not in places]
    assert missing == []


@pytest.mark.parametrize(
    "code", ["def broken(:\n    pass\n", "x = (\n", "\ufeff", "x = 1", "\n\n", "\\", "'''a\nb", "\0\n"]
)
def test_broken_code_has_places_too(scorer, code):
    each = document(code, "python")
    (located,) = scorer.locate([each])
    assert np.array_equal(located.scores, scorer.score([each])[0])
    assert why_invalid(located.findings, each.ends.tolist(), located.scores) is None


@given(SOURCE, st.data())
def test_any_place_is_inside_a_sentence_that_counts_it(text, data):
    numbers = st.integers(0, 40)
    violations = data.draw(
        st.lists(st.builds(Violation, st.integers(1, 9), st.just("E1"), numbers, st.none() | numbers), max_size=9)
    )
    each = document(text, "python")
    if len(each.ends):
        # Sentences of the corpus may divide lines.
        cuts = data.draw(st.sets(st.integers(1, len(text)), max_size=5)) | {len(text)}
        each = Document(text, np.array(sorted(cuts), np.int32), "python")
    located = locate(each, violations)
    assert np.array_equal(located.scores, per_character(each, [violation.line for violation in violations]))
    assert len(located.findings) == (len(violations) if text else 0)
    assert why_invalid(located.findings, each.ends.tolist(), located.scores) is None
