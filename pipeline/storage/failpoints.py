"""Failpoints: named places where a test can make a process die, fail or hang.

`PHF_FAILPOINTS` holds rules `NAME=ACTION[@N][;…]`: the N-th time (default 1) that this process passes NAME, it takes
ACTION: `kill` (SIGKILL to itself), `stop` (SIGSTOP, like a paused machine, until SIGCONT), `exit` (status 1 at once),
`raise` (OSError EIO) or `hang`. Outside tests the variable is unset, and a failpoint costs one dictionary lookup. Ray's
workers inherit the variable from the driver, or from the raylet of the node that it joined.
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
    """Take the action that `PHF_FAILPOINTS` sets for this place, usually none.

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
