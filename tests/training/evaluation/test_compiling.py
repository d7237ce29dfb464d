"""Samples are compiled in a child process, and whatever they hold cannot harm this one."""

from pathlib import Path

import pytest

from training.evaluation import compiling
from training.evaluation.compiling import measure_compiling, which_compile
from training.evaluation.compiling_child import COMPILES, FAILS, UNDECIDED, judge
from training.scoring import judged_text


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("x = 1\n", COMPILES),
        ("x = 1", COMPILES),
        ("\ufeffx = 1\n", COMPILES),
        ("'\\d'\nassert (1, 2)\n", COMPILES),  # warnings
        ("", UNDECIDED),
        (" \n\n", UNDECIDED),
        ("x = (\n", FAILS),
        ("return 1\n", FAILS),  # parses
        ("x = '\0'\n", FAILS),
        ("x = '\ud800'\n", FAILS),
        ("1" * 5000 + "\n", FAILS),
        ("(" * 1000 + ")" * 1000 + "\n", FAILS),
        ("x = " + "-" * 100_000 + "1\n", FAILS),
    ],
)
def test_a_sample_that_ended_is_judged_whole(text: str, verdict: bytes) -> None:
    assert judge(text, ended=True) == verdict


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("x = 1\n", COMPILES),
        ("x = 1\ny = (1,\n", COMPILES),
        ("x = 1\r\ndef f(a):\r\n", COMPILES),
        ('x = 1\n"""Breaks\noff', COMPILES),
        ("x = 1\ntry:\n    y = 2\n", COMPILES),
        ("@decorator\n", UNDECIDED),
        ("x = (\n", UNDECIDED),
        ("x = )\ny = (\n", FAILS),
        ("def f(:\n    pass\n", FAILS),
    ],
)
def test_a_sample_that_was_cut_is_judged_up_to_its_last_whole_statement(text: str, verdict: bytes) -> None:
    assert judge(text, ended=False) == verdict


def test_the_share_of_samples_that_compile(tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    texts = [f"open({str(touched)!r}, 'w')\n", "x = (", "y = 1\nz = (", "def f(", "", "if x:\n  y"]
    facts = measure_compiling(texts, [True, True, False, False, True, False])
    assert facts is not None
    assert (facts.samples, facts.share.value) == (3, 2 / 3)
    # Wilson's interval of 2 out of 3.
    assert facts.share.low == pytest.approx(0.2077, abs=1e-4)
    assert facts.share.high == pytest.approx(0.9385, abs=1e-4)
    assert not touched.exists()
    assert measure_compiling(["", "x = "], [True, False]) is None


@pytest.mark.parametrize(
    ("prompt", "text", "ended", "compiles"),
    [
        ("def f(a):\n", "    return a\n", True, True),  # not without its prompt
        ("x = ", "1\n", True, True),
        ("x = )\n", "y = 1\n", True, False),
        ("x = 1\n", "", True, None),
        ("x = 1\n", "\n\n", True, None),
        ("x = 1\ny = (", "1,\n2,\n3", False, None),  # only lines of the prompt are whole statements
        ("x = 1\nval", "ue = 3", False, None),
        ("x = 1\nval", "ue = 3\ny", False, True),
        ("\ufeffx = 1\n", "y", False, None),
        ("\ufeffx = 1\n", "y\n", False, True),
        ("é = 1\n", "y", False, None),
    ],
)
def test_a_continuation_is_compiled_with_its_prompt(prompt: str, text: str, ended: bool, compiles: bool | None) -> None:
    whole = prompt + text if ended else judged_text(prompt + text, "python", ended=False)
    verdict = judge(whole, ended=ended, prompt=len(prompt))
    assert {COMPILES: True, FAILS: False, UNDECIDED: None}[verdict] is compiles


def test_the_child_gets_the_length_of_the_prompt() -> None:
    assert which_compile(["y", "y\n", "return x"], [False, True, True], ["x = 1\n", "", "def f(x): "]) == [
        None, True, True,
    ]  # fmt: skip


def test_a_sample_that_ends_its_process_or_hangs_does_not_compile_and_others_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "hostile_child.py").write_text(
        "import os, time, training.evaluation.compiling_child as child\n"
        "judge = child.judge\n"
        "def hostile(text, ended, prompt):\n"
        "    if 'crash' in text: os.abort()\n"
        "    if 'hang' in text: time.sleep(100)\n"
        "    return judge(text, ended=ended, prompt=prompt)\n"
        "child.judge = hostile\n"
        "child.main()\n"
    )
    original = compiling.interpreter.command
    monkeypatch.setattr(
        compiling.interpreter, "command", lambda _: [original("x")[0], str(tmp_path / "hostile_child.py")]
    )
    monkeypatch.setattr(compiling, "_SECONDS", 3.0)
    facts = measure_compiling(["x = 1\n", "crash\n", "y = 2\n", "hang\n", "z = 3\n", "crash\n"], [True] * 6)
    assert facts is not None
    assert (facts.samples, facts.share.value) == (6, 0.5)


def test_a_sample_that_needs_gigabytes_does_not_compile() -> None:
    parts = "import " + ".".join(["a"] * 50_000) + "\n"
    facts = measure_compiling([parts, "x = 1\n"], [True, True])
    assert facts is not None
    assert facts.share.value == 0.5
