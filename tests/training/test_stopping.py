"""A signal while a run is prepared."""

import contextlib
import signal

import pytest

from scorers.errors import StoppedError
from tests.interrupting import interrupted_in_a_class
from training.run.stopping import SIGNALS, stoppable


def swallowed(number: signal.Signals) -> None:
    """As an optional import is tried by libraries."""
    with contextlib.suppress(Exception):
        signal.raise_signal(number)


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("interrupted", [signal.raise_signal, interrupted_in_a_class, swallowed])
def test_a_signal_stops_whatever_the_interrupted_code_makes_of_it(interrupted, number):
    before = {each: signal.getsignal(each) for each in SIGNALS}
    try:
        with pytest.raises(StoppedError, match=number.name), stoppable():
            interrupted(number)
            pytest.fail("It went on.")
        # The process is leaving: who is asked by a launcher too is not asked twice.
        assert {signal.getsignal(each) for each in SIGNALS} == {signal.SIG_IGN}
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def test_errors_of_other_kinds_pass_and_the_signals_are_given_back():
    before = {each: signal.getsignal(each) for each in SIGNALS}
    with pytest.raises(ValueError, match="other"), stoppable():
        raise ValueError("other")
    assert {each: signal.getsignal(each) for each in SIGNALS} == before
