"""How a job is going, as its object on Kubernetes says."""

import re
from collections.abc import Sequence
from typing import Any

from infra.submission.job import AGAIN, State, Status, ended
from scorers.errors import EXIT_INCOMPLETE
from scorers.printing import printable

_INDEX = "batch.kubernetes.io/job-completion-index"
# Ray's words, which KubeRay copies into the status.
_EXIT_CODE = re.compile(r"exit code (\d{1,3})\b")


def read_status(thing: Any, pods: Sequence[Any]) -> Status:
    """Return the state of a Job or RayJob.

    Args:
        thing: the object, as kubectl prints it.
        pods: those of a Job, the oldest first.
    """
    return _of_ray_job(thing) if thing["kind"] == "RayJob" else _of_job(thing, pods)


def _of_ray_job(thing: Any) -> Status:
    # https://docs.ray.io/en/latest/cluster/kubernetes/getting-started/rayjob-quick-start.html
    status = thing.get("status") or {}
    deployment, driver = status.get("jobDeploymentStatus", ""), status.get("jobStatus", "")
    if deployment in ("Suspending", "Suspended") or driver == "STOPPED":
        return Status(State.CANCELLED, AGAIN)
    if driver == "SUCCEEDED":
        return ended(0)
    message = status.get("message") or ""
    if driver == "FAILED" and (code := _EXIT_CODE.search(message)):
        return ended(int(code[1]))
    if driver == "FAILED" or deployment in ("Failed", "ValidationFailed", "Complete"):
        # The driver left no exit code, or was never started.
        return Status(State.FAILED, _reason(status.get("reason"), message))
    if thing["spec"].get("suspend"):
        return Status(State.CANCELLED, AGAIN)
    return Status(State.RUNNING if driver == "RUNNING" else State.QUEUED)


def _of_job(thing: Any, pods: Sequence[Any]) -> Status:
    status = thing.get("status") or {}
    holds = {each["type"]: each for each in status.get("conditions") or [] if each["status"] == "True"}
    if "Complete" in holds:
        return ended(0)
    failed = holds.get("Failed")
    if failed and thing["spec"].get("completionMode") == "Indexed":
        # Nobody knows whose exit status is that of the whole.
        number, runs = len(_indexes(status.get("failedIndexes") or "")), thing["spec"]["completions"]
        return Status(State.FAILED, f"{number} of {runs} runs failed: see its log", EXIT_INCOMPLETE)
    if failed:
        codes = [code for pod in pods if (code := _exit_code(pod)) is not None]
        return ended(codes[-1]) if codes else Status(State.FAILED, _reason(failed.get("reason"), failed.get("message")))
    # Pods that are asked to stop are `terminating` until they have saved their work.
    alive = status.get("active", 0) + (status.get("terminating") or 0)
    if thing["spec"].get("suspend"):
        return Status(State.RUNNING, "it saves its work") if alive else Status(State.CANCELLED, AGAIN)
    if status.get("ready"):
        return Status(State.RUNNING)
    return Status(State.REQUEUED if pods and any(_exit_code(pod) is not None for pod in pods) else State.QUEUED)


def read_tasks(thing: Any, pods: Sequence[Any], names: Sequence[str]) -> dict[str, Status]:
    """Return the states of the indexes of an Indexed Job, by their names.

    Args:
        thing: the Job.
        pods: its pods.
        names: of the indexes.
    """
    status = thing.get("status") or {}
    states = dict.fromkeys(range(len(names)), State.QUEUED if _of_job(thing, []).state.is_alive else State.CANCELLED)
    for pod in pods:
        number = int(pod["metadata"].get("annotations", {}).get(_INDEX, -1))
        if (pod.get("status") or {}).get("phase") == "Running":
            states[number] = State.RUNNING
    states |= dict.fromkeys(_indexes(status.get("completedIndexes") or ""), State.FINISHED)
    states |= dict.fromkeys(_indexes(status.get("failedIndexes") or ""), State.FAILED)
    return {name: Status(states[number]) for number, name in enumerate(names)}


def _indexes(text: str) -> set[int]:
    """Return the numbers of a list such as `1,3-5,7`."""
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def _exit_code(pod: Any) -> int | None:
    for container in (pod.get("status") or {}).get("containerStatuses") or []:
        # Not that of a sidecar which the cluster adds.
        terminated = (container.get("state") or {}).get("terminated")
        if container["name"] == "phf" and terminated:
            return int(terminated["exitCode"])
    return None


def _reason(reason: object, message: object) -> str:
    return printable(": ".join(str(each)[:300] for each in (reason, message) if each)) or "Kubernetes gives no reason"
