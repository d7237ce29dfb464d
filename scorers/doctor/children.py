"""Run a job of `phf doctor` in a process of its own, so that a crash of a library is a result like any other."""

import json
import signal
import subprocess
from collections.abc import Mapping
from typing import Any

from scorers import interpreter


class LostChildError(Exception):
    """The process ended without a result; the message says how."""


def run_job(job: Mapping[str, Any], *, patience_s: float) -> dict[str, Any]:
    """Run a job with `python -m scorers.doctor` and return its result.

    Args:
        job: `{"what": "torch"}` or `{"what": "scorer", ...}`, as JSON values.
        patience_s: seconds after which the process is killed.

    Raises:
        LostChildError: it was killed, died, or printed no valid result.
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
        raise LostChildError(_describe_end(done.returncode))
    try:
        found: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        raise LostChildError("Its process ended without a result.") from None
    return found


def _describe_end(status: int) -> str:
    if status > 0:
        return f"Its process ended with status {status}."
    name = signal.Signals(-status).name
    hint = ", probably out of memory" if -status == signal.SIGKILL else ""
    return f"Its process was ended by {name}{hint}."
