"""The exit statuses of commands."""

import signal

import pytest
import typer

from scorers.console import command
from tests.interrupting import interrupt_in_class_creation


@pytest.mark.parametrize("interrupted", [signal.raise_signal, interrupt_in_class_creation])
def test_ctrl_c_ends_a_command_with_130_at_any_point(interrupted, capsys):
    with pytest.raises(typer.Exit) as ended:
        command(interrupted)(signal.SIGINT)
    assert ended.value.exit_code == 130
    assert capsys.readouterr().err == "Interrupted.\n"
