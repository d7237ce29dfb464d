"""The exit statuses of commands."""

import signal
from pathlib import Path

import pytest
import typer

from scorers.console import command
from tests.interrupting import interrupt_in_class_creation


def test_a_name_that_is_too_long_is_no_defect(capsys):
    with pytest.raises(typer.Exit) as ended:
        command(lambda: Path("x" * 5000).is_file())()
    assert ended.value.exit_code == 2
    assert "a name in it is too long for the file system" in capsys.readouterr().err


@pytest.mark.parametrize("interrupted", [signal.raise_signal, interrupt_in_class_creation])
def test_ctrl_c_ends_a_command_with_130_at_any_point(interrupted, capsys):
    with pytest.raises(typer.Exit) as ended:
        command(interrupted)(signal.SIGINT)
    assert ended.value.exit_code == 130
    assert capsys.readouterr().err == "Interrupted.\n"
