"""The logs of a job's pods: only what is new is asked for."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from infra.kubernetes.client import Cluster, Refused
from infra.submission.place import Log

_STARTED, _ENDED = ("Running", "Succeeded", "Failed"), ("Succeeded", "Failed")
# Of `2026-01-31T12:00:00.123456789Z`: Kubernetes takes times by the second.
_SECOND = 19


@dataclass
class _Read:
    """What was read of a pod: the time of its last line, and the lines of that second, which come again."""

    time: str = ""
    lines: Counter[str] = field(default_factory=Counter)
    all: bool = False


class PodLogs(Log):
    """The logs of pods, one after the other; what a pod that is gone printed since the last call is lost.

    Args:
        cluster: of the pods.
        pods: returns them, the oldest first.
    """

    def __init__(self, cluster: Cluster, pods: Callable[[], Sequence[Any]]) -> None:
        self._cluster, self._pods = cluster, pods
        self._read: dict[str, _Read] = {}

    def read(self, *, ended: bool) -> bytes:  # noqa: D102 - see Log
        found = ""
        for pod in started(self._pods()):
            name, read = pod["metadata"]["name"], self._read.setdefault(pod["metadata"]["name"], _Read())
            if not read.all:
                # Its phase is older than its log.
                read.all = ended or pod["status"]["phase"] in _ENDED
                found += self._new(name, read)
        return found.encode(errors="replace")

    def _new(self, pod: str, read: _Read) -> str:
        since = [f"--since-time={read.time}"] if read.time else []
        try:
            text = self._cluster.run("logs", pod, "--timestamps", *since)
        except Refused as error:
            # Removed since the pods were listed.
            if "not found" in str(error):
                return ""
            raise
        *lines, rest = text.split("\n")
        lines += [rest] if rest and read.all else []
        new, again = [], read.lines.copy()
        for line in lines:
            if again[line]:
                again[line] -= 1
            else:
                new.append(line)
        if new:
            read.time = new[-1].partition(" ")[0]
            second = read.time[:_SECOND]
            read.lines = Counter(line for line in lines if line[:_SECOND] == second)
        return "".join(f"{line.partition(' ')[2]}\n" for line in new)


def started(pods: Sequence[Any]) -> list[Any]:
    """Return the pods that have printed, or may have."""
    return [pod for pod in pods if (pod.get("status") or {}).get("phase") in _STARTED]
