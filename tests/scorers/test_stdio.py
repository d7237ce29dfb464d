"""Any text can be printed, whatever is behind stdout and stderr, and a command keeps its own exit status."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = "… ✓ é 混 😀 \udce9"
SCRIPT = """
import sys
import typer
from scorers.console import command, print_json
from scorers.stdio import set_up_streams

set_up_streams()

@command
def shown(what, status):
    if what == "json":
        print_json({"text": TEXT})
    elif what == "defect":
        raise RuntimeError("text of the corpus")
    elif what == "much":
        for _ in range(10_000):
            print(TEXT)
    else:
        from rich.console import Console

        Console().print(TEXT)
        Console(stderr=True).print(TEXT)
    raise typer.Exit(int(status))

TEXT = TEXT_HERE
try:
    shown(*sys.argv[1:])
except typer.Exit as left:
    sys.exit(left.exit_code)
""".replace("TEXT_HERE", ascii(TEXT))


def run(*arguments: str, shell: str = '"$@"', **changes: str) -> "subprocess.CompletedProcess[bytes]":
    """Run the script with these arguments through a shell command."""
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {shell}", "bash", sys.executable, "-c", SCRIPT, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), **changes},
        capture_output=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("changes", "e", "shown"),
    [
        ({"PYTHONIOENCODING": "ascii"}, b"\\xe9", rb"... + \xe9 \u6df7 \U0001f600 \udce9"),
        ({"PYTHONIOENCODING": "latin-1"}, b"\xe9", b"... + \xe9 \\u6df7 \\U0001f600 \\udce9"),
        ({"LC_ALL": "C", "PYTHONUTF8": "0"}, b"\\xe9", rb"... + \xe9 \u6df7 \U0001f600 \udce9"),
        ({"PYTHONIOENCODING": "utf-8"}, "é".encode(), "… ✓ é 混 😀 ".encode() + rb"\udce9"),
    ],
)
def test_what_a_terminal_cannot_encode_is_written_otherwise(changes: dict[str, str], e: bytes, shown: bytes) -> None:
    done = run("text", "1", **changes)
    assert (done.returncode, done.stdout.strip(), done.stderr.strip()) == (1, shown, shown)
    as_json = run("json", "0", **changes)
    assert as_json.returncode == 0, as_json.stderr
    assert json.loads(as_json.stdout.decode(changes.get("PYTHONIOENCODING", "ascii"))) == {"text": TEXT}


@pytest.mark.parametrize(
    ("arguments", "shell", "status", "message"),
    [
        (("text", "0"), '"$@" >&-', 0, b"\xe2\x80\xa6"),
        (("text", "1"), '"$@" >&- 2>&-', 1, b""),
        (("text", "3"), '"$@" 2>/dev/full', 3, b""),
        (("much", "1"), '"$@" | head -1', 1, b""),
        (("text", "0"), '"$@" >/dev/full', 4, b"Cannot write to the standard output: No space left on device."),
        (("json", "0"), '"$@" >/dev/full', 4, b"Cannot write to the standard output: No space left on device."),
    ],
)
def test_a_stream_that_cannot_be_written_to_is_not_a_defect(
    arguments: tuple[str, str], shell: str, status: int, message: bytes
) -> None:
    done = run(*arguments, shell=shell, PYTHONIOENCODING="utf-8")
    assert done.returncode == status, done.stderr
    assert message in done.stderr
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr


def test_a_defect_has_its_own_status_and_shows_text_only_on_request() -> None:
    done = run("defect", "0")
    assert done.returncode == 70
    assert done.stderr.count(b"\n") == 1
    assert b"RuntimeError in <string>" in done.stderr
    assert b"corpus" not in done.stderr
    shown = run("defect", "0", PHF_TRACEBACK="1")
    assert shown.returncode == 70
    assert b"RuntimeError: text of the corpus" in shown.stderr
