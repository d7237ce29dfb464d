"""How commands end."""

import signal

import pytest
import typer

from scorers.console import command
from tests.interrupting import interrupted_in_a_class


@pytest.mark.parametrize("interrupted", [signal.raise_signal, interrupted_in_a_class])
def test_ctrl_c_ends_a_command_with_130_wherever_it_comes(interrupted, capsys):
    with pytest.raises(typer.Exit) as ended:
        command(interrupted)(signal.SIGINT)
    assert ended.value.exit_code == 130
    assert capsys.readouterr().err == "Interrupted.\n"
