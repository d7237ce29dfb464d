"""`phf-again COMMAND...`: rerun a command as long as it exits incomplete (4) or cleanly stopped (75).

For platforms that restart a failed job whatever its exit status, such as KubeRay.
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


def run_again(command: list[str], times: int = _TIMES, wait_s: float = _WAIT_S) -> int:
    """Run a command, and rerun it after one of the statuses in `AGAIN`; pass a signal to stop on, and rerun no more.

    Args:
        command: the words of the command.
        times: most reruns.
        wait_s: seconds to wait before each.

    Returns:
        The last exit status; 128 + N if signal N killed the command.
    """
    received: list[int] = []
    forwarded: list[int] = []
    running: list[subprocess.Popen[bytes]] = []

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for process in running:
            process.send_signal(number)
            forwarded.append(number)

    before = {number: signal.signal(number, stop) for number in _SIGNALS}
    try:
        status = EXIT_STOPPED
        for attempt in range(times + 1):
            if received:
                break
            if attempt:
                sys.stderr.write(f"Status {status}: running the same command again ({attempt} of {times}).\n")
                time.sleep(wait_s)
            running[:] = [subprocess.Popen(command)]  # noqa: S603 - the user's own command
            # A signal may have come before `running` was set. Do not send it twice: a second one ends phf at once.
            if received and not forwarded:
                running[0].send_signal(received[-1])
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
    sys.exit(run_again(sys.argv[1:]))
