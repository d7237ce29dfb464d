"""Named places where a test can make a process die, fail or hang, as disks, networks and schedulers do.

`PHF_FAILPOINTS` holds rules `NAME=ACTION[@N][;…]`: the N-th time (1 where it is left out) that this process passes
NAME, ACTION is taken: `kill` (SIGKILL to itself), `stop` (SIGSTOP, as a machine that pauses: SIGCONT lets it go on),
`exit` (status 1 at once), `raise` (OSError EIO) or `hang`. Unset, as always outside of tests, passing one costs a
dictionary look-up. Ray's workers inherit the variable from the driver, or from the raylet of a node that it joined.
"""

import errno
import os
import signal
import threading
from collections import Counter

VARIABLE = "PHF_FAILPOINTS"

_passed: Counter[str] = Counter()
_lock = threading.Lock()


def failpoint(name: str) -> None:
    """Do what the environment asks for at this place; usually nothing.

    Raises:
        OSError: the rule's action is `raise`.
    """
    rules = os.environ.get(VARIABLE)
    if rules:
        _follow(rules, name)


def _follow(rules: str, name: str) -> None:
    with _lock:
        _passed[name] += 1
        passed = _passed[name]
    for rule in rules.split(";"):
        where, _, what = rule.partition("=")
        action, _, nth = what.partition("@")
        if where.strip() == name and int(nth or 1) == passed:
            _act(action.strip(), name)


def _act(action: str, name: str) -> None:
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif action == "exit":
        os._exit(1)
    elif action == "raise":
        raise OSError(errno.EIO, os.strerror(errno.EIO), f"failpoint {name}")
    elif action == "hang":
        threading.Event().wait()
    else:
        raise ValueError(f"{VARIABLE}: the failpoint {name} has the unknown action {action!r}")
