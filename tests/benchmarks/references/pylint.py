"""pylint as a command: one process per file, without a configuration file."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path


def messages(text: str, disable: Iterable[str] = ()) -> list[tuple[int, str]]:
    """The line, from 1, and the name of each message about a file with this text, sorted.

    The file is alone in a folder that is the working directory, so that pylint imports none of the caller's files.
    `disable` names messages to turn off on the command line.

    Raises:
        RuntimeError: pylint failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "phf_document.py")
        path.write_text(text, encoding="utf-8", newline="")
        command = [sys.executable, "-m", "pylint", "--rcfile=/dev/null", "--output-format=json", "--jobs=1"]
        off = ",".join(disable)
        done = subprocess.run(
            [*command, *([f"--disable={off}"] if off else []), path.name], cwd=folder, capture_output=True, check=False
        )
    if done.returncode & 32:
        raise RuntimeError(f"pylint ended with status {done.returncode}")
    return sorted((each["line"], each["symbol"]) for each in json.loads(done.stdout))
