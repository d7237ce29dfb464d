"""`phf-again COMMAND...`: run a command again while it ends incomplete (4) or stopped in good order (75).

For places that start a failed job again whatever its status was, such as KubeRay.
"""

import signal
import subprocess
import sys
import time
from types import FrameType

from scorers.errors import EXIT_STOPPED, IncompleteError

AGAIN = (IncompleteError.exit_code, EXIT_STOPPED)
_TIMES, _WAIT_S = 10, 10.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def again(command: list[str], times: int = _TIMES, wait_s: float = _WAIT_S) -> int:
    """Run a command, and again after a status that asks for it; a signal to stop is passed on, and is the end.

    Args:
        command: words of the command.
        times: how often again at most.
        wait_s: seconds before each.

    Returns:
        The last status; 128 + N where the command died of signal N.
    """
    asked: list[int] = []
    passed: list[int] = []
    running: list[subprocess.Popen[bytes]] = []

    def stop(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        for process in running:
            process.send_signal(number)
            passed.append(number)

    before = {number: signal.signal(number, stop) for number in _SIGNALS}
    try:
        status = EXIT_STOPPED
        for attempt in range(times + 1):
            if asked:
                break
            if attempt:
                sys.stderr.write(f"Status {status}: the same command again ({attempt} of {times}).\n")
                time.sleep(wait_s)
            running[:] = [subprocess.Popen(command)]  # noqa: S603 - the user's own command
            # A signal may have come before the process was known here. Not twice: a second one ends phf at once.
            if asked and not passed:
                running[0].send_signal(asked[-1])
            status = running[0].wait()
            if status not in AGAIN:
                break
        return 128 - status if status < 0 else status
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main() -> None:
    """Entry point of the `phf-again` command."""
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.stderr.write("Usage: phf-again COMMAND..., such as: phf-again phf label corpus --output labelled\n")
        sys.exit(2)
    sys.exit(again(sys.argv[1:]))
