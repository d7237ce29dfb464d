"""Runs a job of `phf doctor` in a process of its own, so that whatever a library does there is an answer."""

import json
import signal
import subprocess
from collections.abc import Mapping
from typing import Any

from scorers import interpreter


class LostChildError(Exception):
    """The process ended without a result; the message says how, for people."""


def ask(job: Mapping[str, Any], *, patience_s: float) -> dict[str, Any]:
    """The result of a job of `python -m scorers.doctor`.

    Args:
        job: `{"what": "torch"}` or `{"what": "scorer", ...}`, as JSON values.
        patience_s: seconds after which the process is killed.

    Raises:
        LostChildError: it was killed, died or said something else.
    """
    try:
        done = subprocess.run(  # noqa: S603 - this interpreter, this package
            interpreter.command("scorers.doctor"),
            input=json.dumps(job).encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=interpreter.environment(),
            timeout=patience_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise LostChildError(f"It had no result after {patience_s:g} s and was stopped.") from None
    if done.returncode:
        raise LostChildError(_how(done.returncode))
    try:
        found: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        raise LostChildError("Its process ended without a result.") from None
    return found


def _how(status: int) -> str:
    if status > 0:
        return f"Its process ended with status {status}."
    name = signal.Signals(-status).name
    hint = "; out of memory, most likely" if -status == signal.SIGKILL else ""
    return f"Its process was ended by {name}{hint}."
