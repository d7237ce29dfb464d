import argparse
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scorers.contract import Document, Execution
from scorers.linters.lines import LONGEST
from scorers.registry import ScorerSpec, build
from scorers.sentences import document
from tests.scorers.helpers import check_scores, scores_of

LIBRARY = Path(argparse.__file__).parent


@pytest.fixture(scope="module")
def scorer():
    return build("pep8", ScorerSpec(kind="pycodestyle"))


def _lines(scorer, text):
    return sorted(line for line, _ in scorer.violations(text))


@pytest.mark.parametrize("name", ["cmd.py", "colorsys.py", "this.py", "chunk.py", "_strptime.py"])
def test_the_counts_are_those_of_the_command(scorer, name, tmp_path):
    path = LIBRARY / name
    command = [sys.executable, "-m", "pycodestyle", "--format=%(row)d", str(path)]
    printed = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={"HOME": str(tmp_path)})
    expected = Counter(int(row) for row in printed.stdout.split())
    text = path.read_text()
    assert Counter(_lines(scorer, text)) == expected
    each = document(text, "python")
    counts = np.asarray([expected[row + 1] for row in range(len(each.ends))])
    lengths = np.asarray([len(line) for line in each.sentences()])
    np.testing.assert_array_equal(scores_of(scorer, each)[0], (counts / lengths).astype(np.float32))


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("x = 1\n", []),
        ("x=1\n", [1]),
        ("x = 1\ny=2\n", [2]),
        ("x = 1\r\ny=2\r\n", [2]),
        ("x = 1\ry=2\r", [2]),
        ("x = 1", [1]),
        ("\n\n\n", [3]),
        ("\ufeffx = 1\n", []),
        # Characters at which str.splitlines would split do not end a line.
        ("x = '\x0c\x1c\u2028\x85'\ny=2\n", [2]),
        ("def f():\n    pass\n\x0c\n\ndef g():\n    pass\ny=2\n", [7, 7]),
        ('"""a\x0bb\u2029\n"""\ny=2\n', [3]),
    ],
)
def test_violations_are_on_their_physical_lines(scorer, text, lines):
    assert _lines(scorer, text) == lines


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("x = 1\ny = = 2\nz = 3\n", 2),
        ("x = 'abc\n", 1),
        ("x = 1\nx = (\n    2,\n", 2),
        ('x = 1\n\ny = """abc\nd\n', 3),
        ("print 'a'\n", 1),
        ("x = 1\n  y = 2\n", 2),
        ("x = '\x00'\n", 1),
        ("x = 1\n\\\n", 2),
        ("x = 1 \\", 1),
    ],
)
def test_a_syntax_error_is_one_violation_on_its_line(scorer, text, line):
    assert line in _lines(scorer, text)
    other = build("pep8", ScorerSpec(kind="pycodestyle", ignore=["E1", "E2", "E3", "E4", "E5", "E7", "W"]))
    assert _lines(other, text) == [line]


def test_no_configuration_file_is_read(scorer, tmp_path, monkeypatch):
    import pycodestyle

    ignoring = "[pycodestyle]\nignore = E,W\nmax-line-length = 10\n[pep8]\nignore = E,W\n"
    for name in ("setup.cfg", "tox.ini", "user"):
        (tmp_path / name).write_text(ignoring)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pycodestyle, "USER_CONFIG", str(tmp_path / "user"))
    # The trap does change what the library itself reports.
    assert pycodestyle.StyleGuide().options.max_line_length == 10
    other = build("pep8", ScorerSpec(kind="pycodestyle"))
    assert _lines(other, "x=1\nvalue = 'not too long'\n") == [1]
    assert other.fingerprint == scorer.fingerprint


def test_a_text_that_is_too_long_has_its_own_reason(scorer):
    long, fine = scorer.score([document("#" * (LONGEST + 1), "python"), document("x=1\n", "python")])
    assert long.reason == "too-long"
    assert fine.tolist() == [0.25]


def test_options_change_what_counts():
    line = "x = '" + "a" * 80 + "'\n"
    assert _lines(build("pep8", ScorerSpec(kind="pycodestyle")), line) == [1]
    assert _lines(build("pep8", ScorerSpec(kind="pycodestyle", max_line_length=100)), line) == []
    assert _lines(build("pep8", ScorerSpec(kind="pycodestyle", ignore=["E501"])), line) == []
    # An explicit list replaces pycodestyle's own.
    assert _lines(build("pep8", ScorerSpec(kind="pycodestyle", ignore=["E501"])), "x = 1*2 + 3\n") == [1]


def test_sentences_that_are_not_lines_get_the_violations_of_the_lines_that_start_in_them(scorer):
    text = "x=1\ny=2\nz = 3\nw=4\n"
    each = Document(text, np.asarray([6, len(text)], dtype=np.int32), "python")
    np.testing.assert_allclose(scores_of(scorer, each)[0], [2 / 6, 1 / (len(text) - 6)], rtol=1e-6)


SOURCE = st.lists(
    st.sampled_from(
        ["x", "=", " ", "1", "\n", "\r\n", "\r", "(", ")", "[", "]", "'", '"""', "\\", "#", ":", "def f", "    ", "\t",
         ",", "\x0c", "\x1c", "\u2028", "f'{", "}", "if ", "lambda", "é", "\x00", "\ufeff", "`", "$", "0777", "async "]
    ),
    max_size=30,
).map("".join)  # fmt: skip


@settings(max_examples=300)
@given(text=SOURCE)
def test_any_text_is_scored(scorer, text):
    each = document(text, "python")
    result = scorer.score([each])[0]
    check_scores(result, each)
    counts = result * np.diff(each.ends, prepend=0)
    np.testing.assert_allclose(counts, np.round(counts), atol=1e-3)
    if len(each.ends) and counts.sum() == 0:
        compile(text.removeprefix("\ufeff"), "<text>", "exec")


def test_the_checker_keeps_no_lines(scorer):
    text = "x=1\n"
    assert _lines(scorer, text) == _lines(scorer, text) == [1]


def test_a_file_that_takes_too_long_ends_at_the_deadline():
    scorer = build("pep8", ScorerSpec(kind="pycodestyle"), Execution(deadline_s=0.01))
    slow, fine = scorer.score([document("x = [" + "a, " * 40_000 + "]\n", "python"), document("x=1\n", "python")])
    assert slow.reason == "deadline"
    assert fine.tolist() == [0.25]


def test_code_nested_too_deeply_is_an_error_of_its_document(scorer):
    deep, fine = scorer.score([document("x = " + "-" * 20_000 + "1\n", "python"), document("x=1\n", "python")])
    assert deep.reason == "too-deep"
    assert fine.tolist() == [0.25]
