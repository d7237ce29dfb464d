import random
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scorers.contract import Execution, ScoringError
from scorers.errors import UserError
from scorers.linters.lines import LONGEST
from scorers.registry import ScorerSpec, build
from scorers.sentences import document
from tests.scorers.helpers import CODE, check_scores, scores_of
from tests.scorers.linters.test_pycodestyle import SOURCE

DEEP = "x = " + "-" * 200_000 + "1\n"


@pytest.fixture(scope="module")
def scorer():
    return build("fast", ScorerSpec(kind="ruff"))


def _one(scorer, text):
    return scorer.violations([text])[0]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", []),
        ("x = 1\n", []),
        ("x=1\n", [(1, "missing-whitespace-around-operator")]),
        ("x = 1\r\ny=1\r\n", [(2, "missing-whitespace-around-operator")]),
        ("x = 1\ry=1\r", [(2, "missing-whitespace-around-operator")]),
        ("\ufeffx=1\n", [(1, "missing-whitespace-around-operator")]),
        ("x = '\x1c\x85\u2028é😀'\ny=1\n", [(2, "missing-whitespace-around-operator")]),
        ("x = '\ud800'\ny=1\n", [(2, "missing-whitespace-around-operator")]),
        ("x = '\x00'\n", [(1, "invalid-character-nul")]),
        # Only the first syntax error counts.
        ("x = 1\ny = = 1\nz = = 3\n", [(2, "invalid-syntax")]),
        ("This is prose. It parses?\nNo, and nothing in it does.\n", [(1, "invalid-syntax")]),
        ("print 'a'\n", [(1, "invalid-syntax")]),
        ("type X = int\n", []),
        # Comments hide nothing.
        ("# ruff: noqa\n# flake8: noqa\nx=1  # noqa\n", [(3, "missing-whitespace-around-operator")]),
        ("# ruff: disable[E225]\nx=1\n", [(2, "missing-whitespace-around-operator")]),
    ],
)
def test_violations_are_on_their_physical_lines(scorer, text, found):
    assert _one(scorer, text) == found


def test_a_score_is_the_violations_on_the_line_divided_by_its_characters(scorer):
    first, second = scores_of(scorer, *(document(text, "python") for text in ("x = 1\ny=1\n", "import os,sys\n")))
    assert first.tolist() == pytest.approx([0, 1 / 4])
    # Two imports on one line, and no space after the comma.
    assert second.tolist() == pytest.approx([2 / 14])


def test_no_file_in_the_working_directory_and_no_variable_matters(scorer, tmp_path, monkeypatch):
    (tmp_path / "ruff.toml").write_text("line-length = 10\n[lint]\nignore = ['E', 'W', 'PL']\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("RUFF_OUTPUT_FORMAT", "json")
    monkeypatch.setenv("RUFF_CONFIG", str(tmp_path / "ruff.toml"))
    other = build("fast", ScorerSpec(kind="ruff"))
    assert _one(other, "x=1\n") == [(1, "missing-whitespace-around-operator")]
    assert other.fingerprint == scorer.fingerprint
    assert sorted(each.name for each in tmp_path.iterdir()) == ["ruff.toml"]


def test_options_change_what_counts(scorer):
    text = "import os,sys\nx = '" + "a" * 80 + "'\n"

    def names(**options):
        other = build("fast", ScorerSpec(kind="ruff", **options))
        assert other.fingerprint != scorer.fingerprint
        return [name for _, name in _one(other, text)]

    assert names(select=["E401"]) == ["multiple-imports-on-one-line"]
    assert "line-too-long" not in names(max_line_length=100)
    assert "missing-whitespace" not in names(ignore=["E231"])
    assert len(names(preview=False)) == 2


def test_unknown_rules_are_refused():
    with pytest.raises(UserError, match="no_such"):
        build("fast", ScorerSpec(kind="ruff", select=["E", "no_such"]))


@pytest.mark.parametrize("bad", [DEEP, "x = a" + ".b" * 100_000 + "\n"])
def test_code_that_ends_the_process_fails_only_its_document(scorer, bad):
    texts = ["x=1\n", bad, *CODE, "y = 1\n"]
    found = scorer.violations(texts)
    assert isinstance(found[1], ScoringError)
    assert found[1].reason == "too-deep"
    for index in {*range(len(texts))} - {1}:
        assert found[index] == _one(scorer, texts[index])


def test_a_text_that_is_too_long_has_its_own_reason(scorer):
    long, fine = scorer.score([document("#" * (LONGEST + 1), "python"), document("x=1\n", "python")])
    assert long.reason == "too-long"
    assert fine.tolist() == [0.25]


def test_a_process_that_hangs_ends_at_the_deadline(scorer, monkeypatch):
    run = subprocess.run

    def hang_on_the_slow_one(command, **options):
        slow = any(b"slow" in path.read_bytes() for path in Path(options["cwd"]).glob("*.py"))
        return run(["sleep", "60"] if slow else command, **options)

    hurried = build("fast", ScorerSpec(kind="ruff"), Execution(deadline_s=0.5))
    monkeypatch.setattr(subprocess, "run", hang_on_the_slow_one)
    late, fine = hurried.score([document("slow=1\n", "python"), document("x=1\n", "python")])
    assert late.reason == "deadline"
    assert fine.tolist() == [0.25]


def test_a_document_has_the_same_scores_in_any_batch(scorer):
    texts = [*CODE, "x = 1\n", "def f(:\n", "x=1\n" * 500]
    alone = [_one(scorer, text) for text in texts]
    for seed in range(3):
        order = random.Random(seed).sample(range(len(texts)), len(texts))
        assert scorer.violations([texts[index] for index in order]) == [alone[index] for index in order]


def test_texts_are_checked_in_bounded_groups(scorer, monkeypatch):
    monkeypatch.setattr("scorers.linters.ruff._FILES", 2)
    monkeypatch.setattr("scorers.linters.ruff._CHARACTERS", 12)
    groups = []
    run = scorer._run
    monkeypatch.setattr(scorer, "_run", lambda texts, columns: groups.append(len(texts)) or run(texts, columns))
    texts = ["x=1\n", "y = 1\n", "z=1\n", "a = 12345678\n", "b=1\n"]
    assert [len(each) for each in scorer.violations(texts)] == [1, 0, 1, 0, 1]
    assert groups == [2, 1, 1, 1]


@settings(max_examples=25)
@given(texts=st.lists(SOURCE, min_size=1, max_size=12))
def test_any_text_is_scored(scorer, texts):
    documents = [document(text, "python") for text in texts]
    for each, result in zip(documents, scorer.score(documents), strict=True):
        check_scores(result, each)
