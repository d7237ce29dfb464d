import importlib
import json
import random
import string
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings

from scorers.contract import Execution, ScoringError
from scorers.deadline import DeadlineExceededError
from scorers.errors import UserError
from scorers.linters import pylint as scorer_module
from scorers.linters import pylint_world
from scorers.linters.pylint import DISABLED
from scorers.registry import ScorerSpec, build
from scorers.sentences import document
from tests.scorers.helpers import check_scores, scores_of
from tests.scorers.linters.test_pycodestyle import SOURCE

LIBRARY = Path(string.__file__).parent
FILES = ["colorsys.py", "chunk.py", "sched.py", "bisect.py", "json/encoder.py", "enum.py", "codeop.py"]

MUTATING = """
import logging
import argparse

logging.custom = 1
logging.Logger.extra = None
error = Exception()
error.note = "x"
parser = argparse.ArgumentParser()
parser.colour = "red"
"""

USING = '''
"""Uses what another file may have changed."""
import argparse
import logging
import random
import no_such_package
from no_such_package import *


class Handler(logging.Handler):
    def emit(self, record):
        self.colour = logging.custom
        random.unheard_of(record)
        undefined_name()


class Parser(no_such_package.Base, argparse.ArgumentParser):
    pass
'''


@pytest.fixture(scope="module")
def scorer():
    return build("pylint", ScorerSpec(kind="pylint"))


def _messages(scorer, text):
    with pylint_world.isolated():
        return scorer.messages(text)


def _fresh(text):
    pylint_world.clear_caches(everything=True)
    return _messages(build("pylint", ScorerSpec(kind="pylint")), text)


@pytest.mark.parametrize("name", FILES[:3])
def test_the_messages_are_those_of_the_command(scorer, name, tmp_path):
    text = (LIBRARY / name).read_text()
    (tmp_path / "phf_document.py").write_text(text)
    command = [sys.executable, "-m", "pylint", "--rcfile=/dev/null", "--output-format=json", "phf_document.py"]
    command.append("--disable=" + ",".join(DISABLED))
    printed = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    expected = sorted((each["line"], each["symbol"]) for each in json.loads(printed.stdout))
    assert len(expected) > 3
    assert _messages(scorer, text) == expected


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('"""Module."""\n', []),
        ("", []),
        ('"""Module."""\n\nimport os\n', [(3, "unused-import")]),
        ('"""Module."""\r\n\r\nimport os\r\n', [(3, "unused-import")]),
        ('"""Module."""\r\rimport os\r', [(3, "unused-import")]),
        ('\ufeff"""Module."""\n\nimport os\n', [(3, "unused-import")]),
        ('"""Module\x0c\x1c\u2028\x85."""\n\nimport os\n', [(3, "unused-import")]),
        ('# -*- coding: latin-1 -*-\n"""Mödule."""\n\nimport os\n', [(4, "unused-import")]),
        ('#!x\n# coding=no-such-codec\n"""Module."""\n\nimport os\n', [(5, "unused-import")]),
        ("x = = 1\nimport os\n", [(1, "syntax-error")]),
        ("import os\nx = (\n", [(2, "syntax-error")]),
        ("import os\nx = '\x00'\n", [(2, "syntax-error")]),
    ],
)
def test_messages_are_on_their_physical_lines(scorer, text, found):
    assert _messages(scorer, text) == found


def test_a_score_is_the_messages_on_the_line_divided_by_its_characters(scorer):
    each = document('"""Module."""\n\nimport os, sys\n', "python")
    # multiple-imports, and two unused imports.
    assert scores_of(scorer, each)[0].tolist() == pytest.approx([0, 0, 3 / 15])


def test_no_file_in_the_working_directory_and_no_package_matters(scorer, tmp_path, monkeypatch):
    before = _messages(scorer, USING)
    # `undefined_name` may come from the package that is not visible.
    assert {symbol for _, symbol in before} == {
        "attribute-defined-outside-init",
        "missing-class-docstring",
        "wildcard-import",
    }
    for name in ("pylintrc", ".pylintrc"):
        (tmp_path / name).write_text("[MASTER]\ndisable=all\n")
    (tmp_path / "pyproject.toml").write_text("[tool.pylint.main]\ndisable = ['all']\n[tool.isort]\nprofile = 'black'\n")
    (tmp_path / "no_such_package.py").write_text("class Base:\n    def error(self): pass\ndef undefined_name(): pass\n")
    (tmp_path / "random.py").write_text("def unheard_of(a, b): pass\n")
    (tmp_path / "phf_document.py").write_text("custom = 1\n")
    (tmp_path / "phf_document").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYLINTRC", str(tmp_path / "pylintrc"))
    assert _fresh(USING) == before


NAMES = """
import sys
__all__ = ["spam", "COUNT"]

print(early)
{}
COUNT = COUNT + 1


def function():
    global counter
    counter = spam(eggs)
    local = local + 1
    return local


class Ham(Base):
    size = size
"""
OF_NAMES = {(3, "undefined-all-variable"), (8, "used-before-assignment"), (12, "global-variable-undefined")} | {
    (line, "undefined-variable") for line in (13, 18, 19)
}
# Messages about the line before the import, and about a function's own name.
KEPT = {(5, "undefined-variable"), (14, "used-before-assignment")}


@pytest.mark.parametrize(
    ("line", "missing"),
    [
        ("from math import *\n", True),
        ("from math import pi as star  # not from tkinter import *\n", True),
        ("from tkinter import *\n", False),
        ("from pylab import \\\n*", False),
        ("from .here import *\n", False),
        ("from os.no_such_module import *\n", False),
        # This module builds its `__all__` when it is imported.
        ("from socket import*\n", False),
        ("import math; from math import *; from ctypes import *\n", False),
    ],
)
def test_names_may_come_from_a_module_that_is_not_fully_visible(scorer, line, missing):
    found = set(_messages(scorer, NAMES.format(line)))
    assert found & (OF_NAMES | KEPT) == (OF_NAMES | KEPT if missing else KEPT)


def test_only_modules_of_every_standard_library_are_visible():
    assert pylint_world.is_visible("collections.abc")
    assert not pylint_world.is_visible("numpy.random")
    assert not pylint_world.is_visible("tkinter")


def test_nothing_leaks_from_one_document_into_the_next(scorer):
    fresh = _fresh(USING)
    for text in (MUTATING, "# pylint: disable=all\n" + MUTATING, "x = (\n", "# pylint: disable=W,C\nimport os\n"):
        _messages(scorer, text)
    assert _messages(scorer, USING) == fresh


def test_the_order_of_documents_changes_nothing_even_where_some_fail(scorer, monkeypatch):
    lint = scorer_module._Linter.lint

    def fail_on_one(self, source):
        found = lint(self, source)
        if "fails in the middle" in source:
            raise RuntimeError
        return found

    monkeypatch.setattr(scorer_module._Linter, "lint", fail_on_one)
    monkeypatch.setattr(scorer_module, "_RENEWED_AFTER", 3)
    texts = [(LIBRARY / name).read_text() for name in FILES[:4]]
    texts += [USING, MUTATING, "x = " + "1 + " * 5_000 + "1\n", MUTATING + "# fails in the middle\n", "x = (\n", ""]
    texts += ["# pylint: disable=all\n" + USING, "# pylint: disable=C0111,C0103\nimport os\n", "from typing import *\n"]
    documents = [document(text, "python") for text in texts]
    runs = []
    for seed in range(3):
        order = random.Random(seed).sample(range(len(texts)), len(texts))
        results = dict(zip(order, scorer.score([documents[index] for index in order]), strict=True))
        runs.append(
            [each.reason if isinstance(each, ScoringError) else each.tolist() for _, each in sorted(results.items())]
        )
    assert runs[0] == runs[1] == runs[2]
    assert runs[0][6:8] == ["too-deep", "scorer-error"]


NUMERICAL = '''
"""Uses a package that may be installed."""
import numpy as np
import numpy.random
from numpy import array, no_such_name
from numpy.linalg import norm as length


class Stack(np.ndarray):
    def __init__(self):
        self.extra = array([1], np.float33)
        np.random.seed(1, 2, 3, 4)
        length(self).no_such_method()
'''


def test_messages_are_the_same_whether_a_package_is_installed_or_not(tmp_path, monkeypatch):
    present = _fresh(NUMERICAL)
    (tmp_path / "numpy").mkdir()
    (tmp_path / "numpy" / "__init__.py").write_text("class ndarray:\n    def __init__(self, a): pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    another = _fresh(NUMERICAL)

    class Hidden:
        def find_spec(self, name, *_):
            if name.partition(".")[0] == "numpy":
                raise ModuleNotFoundError(name)

    monkeypatch.setattr(sys, "meta_path", [Hidden(), *sys.meta_path])
    for name in [name for name in sys.modules if name.partition(".")[0] == "numpy"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("numpy")
    assert _fresh(NUMERICAL) == another == present
    assert len(present) > 3


def test_a_linter_is_renewed_before_its_checkers_fill_the_memory(scorer, monkeypatch):
    made = []
    renew = scorer_module._new_linter
    monkeypatch.setattr(scorer_module, "_new_linter", lambda options: made.append(1) or renew(options))
    monkeypatch.setattr(scorer_module, "_RENEWED_AFTER", 5)
    monkeypatch.setattr(scorer, "_checked", 0)
    for number in range(16):
        _messages(scorer, f"x{number} = 1\n")
    assert len(made) == 3


def test_a_document_cannot_turn_on_what_never_counts(scorer):
    text = (
        '"""Module."""\n# pylint: enable=all\n# pylint: enable=import-error,no-member,cyclic-import\nimport nothing\n'
    )
    symbols = {symbol for _, symbol in _messages(scorer, text)}
    assert "unused-import" in symbols
    assert not symbols & set(DISABLED)


def test_more_messages_can_be_turned_off_and_unknown_ones_are_refused():
    scorer = build("style", ScorerSpec(kind="pylint", disable=["C", "unused-import"]))
    assert _messages(scorer, "import os\nimport sys\n") == []
    assert scorer.fingerprint != build("style", ScorerSpec(kind="pylint")).fingerprint
    with pytest.raises(UserError, match="'no-such-message', which is not a message of pylint"):
        build("style", ScorerSpec(kind="pylint", disable=["no-such-message"]))


def test_code_nested_too_deeply_is_an_error_and_the_next_is_scored_as_before(scorer):
    nested = "x = " + "[" * 150 + "]" * 150 + "\n"
    added = "x = " + " + ".join(["a"] * 5_000) + "\n"
    last = document(USING, "python")
    expected = scores_of(scorer, last)[0].tolist()
    results = scorer.score([document(nested, "python"), document(added, "python"), last])
    assert isinstance(results[1], ScoringError)
    assert results[1].reason == "too-deep"
    assert results[2].tolist() == expected


def test_a_deadline_during_a_check_leaves_no_state_behind(scorer):
    last = document(USING, "python")
    expected = scores_of(scorer, last)[0].tolist()
    slow = document("".join((LIBRARY / name).read_text() for name in ("argparse.py", "typing.py")), "python")
    hurried = build("pylint", ScorerSpec(kind="pylint"), Execution(deadline_s=0.1))
    assert hurried.score([slow])[0].reason == "deadline"
    patient = build("pylint", ScorerSpec(kind="pylint"))
    hurried._deadline_s = patient._deadline_s
    assert hurried.score([last])[0].tolist() == expected


def test_a_check_that_was_interrupted_leaves_no_state_for_another_scorer(scorer, monkeypatch):
    from astroid.astroid_manager import MANAGER

    last = document("class Child:\n    def method(self):\n        return self.nothing\n", "python")
    expected = scores_of(scorer, last)[0].tolist()
    other = build("pylint", ScorerSpec(kind="pylint"))

    def interrupted(_source):
        MANAGER.astroid_cache.clear()  # as between the steps of a bootstrap
        raise DeadlineExceededError

    monkeypatch.setattr(other._linter, "lint", interrupted)
    assert other.score([last])[0].reason == "deadline"
    assert scorer.score([last])[0].tolist() == expected
    assert other.score([last])[0].tolist() == expected


def test_memory_is_bounded(scorer, monkeypatch):
    from astroid.astroid_manager import MANAGER

    before = _messages(scorer, USING)
    assert pylint_world.NAME not in MANAGER.astroid_cache
    assert len(MANAGER.astroid_cache) > 5
    monkeypatch.setattr(pylint_world, "_MOST_MODULES", 3)
    assert [_messages(scorer, USING) for _ in range(3)] == [before] * 3
    assert len(MANAGER.astroid_cache) <= 3


@settings(max_examples=60)
@given(text=SOURCE)
@example(text="\ufeff\ufeff")
def test_any_text_is_scored(scorer, text):
    each = document(text, "python")
    check_scores(scorer.score([each])[0], each)


def test_the_recursion_limit_is_left_as_it_was(scorer):
    before = sys.getrecursionlimit()
    scorer.score([document("x = 1\n", "python")])
    assert sys.getrecursionlimit() == before
