import contextlib
import re
import signal
import threading
import time

import pytest

from scorers.attempt import attempt
from scorers.contract import ScoringError
from scorers.deadline import DeadlineExceededError, deadline
from scorers.sentences import document

CATASTROPHE = re.compile(r"(a+)+$")


def _spin():
    while True:
        pass


def _in_thread(function):
    outcome = []

    def run():
        try:
            outcome.append(function())
        except BaseException as error:  # noqa: BLE001 - a deadline is one
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    return outcome[0]


def _limited(function, seconds=0.2):
    def run():
        with deadline(seconds):
            return function()

    return run


@pytest.mark.parametrize("hang", [_spin, lambda: time.sleep(30), lambda: CATASTROPHE.match("a" * 60 + "b")])
def test_the_main_thread_is_stopped_in_python_in_a_call_and_in_a_pattern(hang):
    began = time.monotonic()
    with pytest.raises(DeadlineExceededError):
        _limited(hang)()
    assert time.monotonic() - began < 5


def test_another_thread_is_stopped_too():
    assert isinstance(_in_thread(_limited(_spin)), DeadlineExceededError)


@pytest.mark.parametrize("run", [lambda function: function(), _in_thread])
def test_work_that_ends_in_time_is_not_interrupted_then_or_later(run):
    def work():
        # Long enough for a thread that gets no core for a while, and shorter than the deadline.
        results = [_limited(lambda: 42, 0.5)() for _ in range(50)]
        end = time.monotonic() + 0.6
        while time.monotonic() < end:
            pass
        return results

    assert run(work) == [42] * 50


def test_a_bare_except_does_not_swallow_the_deadline():
    def stubborn():
        for _ in range(2):
            try:
                _spin()
            except:  # noqa: E722
                time.sleep(0)
        _spin()

    with pytest.raises(DeadlineExceededError):
        _limited(stubborn)()


def test_the_previous_handler_and_timer_are_restored():
    def mine(_signal, _frame):
        pass

    # pytest-timeout has a timer of its own here.
    theirs = signal.getitimer(signal.ITIMER_REAL)
    before = signal.signal(signal.SIGALRM, mine)
    try:
        for seconds, interval in ((0, 0), (500, 3)):
            signal.setitimer(signal.ITIMER_REAL, seconds, interval)
            with deadline(5):
                pass
            assert signal.getsignal(signal.SIGALRM) is mine
            left, repeated = signal.getitimer(signal.ITIMER_REAL)
            assert repeated == interval
            assert seconds - 5 <= left <= seconds
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *theirs)


@pytest.mark.parametrize(("outer", "inner"), [(0.2, 10), (10, 0.2)])
def test_deadlines_nest_and_the_earliest_counts(outer, inner):
    began = time.monotonic()
    with pytest.raises(DeadlineExceededError), deadline(outer), deadline(inner):
        _spin()
    assert time.monotonic() - began < 5


def test_an_outer_deadline_still_holds_after_an_inner_one():
    with pytest.raises(DeadlineExceededError), deadline(0.4):
        with pytest.raises(DeadlineExceededError), deadline(0.1):
            _spin()
        _spin()


def test_failures_become_values_without_the_text():
    each = document("a secret text")

    def fail(_document):
        raise ValueError(f"cannot read {_document.text}")

    error = attempt(fail, each, 5)
    assert isinstance(error, ScoringError)
    assert error.reason == "scorer-error"
    assert "ValueError at test_deadline.py:" in error.detail
    assert "secret" not in str(error)


def test_the_time_of_a_document_grows_with_its_length():
    short = attempt(lambda _document: _spin(), document("short"), 0.1)
    assert short.reason == "deadline"
    assert attempt(lambda _document: time.sleep(0.3), document("a. " * 100_000, "python"), 0.1) is None


def test_a_memory_error_becomes_a_value_and_an_interrupt_does_not():
    def fail(error):
        def function(_document):
            raise error

        return function

    assert attempt(fail(MemoryError()), document("x"), 5).reason == "scorer-error"
    with pytest.raises(KeyboardInterrupt):
        attempt(fail(KeyboardInterrupt()), document("x"), 5)


@pytest.mark.parametrize("run", [lambda function: function(), _in_thread])
def test_a_very_short_deadline_fires_only_in_its_own_block(run):
    def work():
        for seconds in [1e-6, 1e-5, 3e-5, 1e-4] * 50:
            with contextlib.suppress(DeadlineExceededError):
                _limited(lambda: sum(range(100)), seconds)()
        end = time.monotonic() + 0.3
        while time.monotonic() < end:
            pass
        return "undisturbed"

    assert run(work) == "undisturbed"
    assert signal.getitimer(signal.ITIMER_REAL)[1] == 0
