"""A sweep on Kubernetes: an Indexed Job, and the script that its pods run, in a ConfigMap with the sweep's file."""

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from infra.kubernetes.options import KubernetesOptions, is_shared
from infra.submission.job import Job
from scorers.errors import UserError
from scorers.printing import printable, without_secrets
from scorers.shell import quoted

_MOUNTED = "/etc/phf-sweep"
_SPEC, _SCRIPT = "sweep.yaml", "run.sh"
# A ConfigMap may have 1 MiB.
_LARGEST = 1_000_000
# https://kubernetes.io/docs/concepts/workloads/controllers/job/#pod-failure-policy
_FINAL = {"action": "FailIndex", "onExitCodes": {"containerName": "phf", "operator": "In", "values": [2, 4, 70]}}


def config_map(job: Job) -> dict[str, Any]:
    """Return the ConfigMap of a sweep; the same content has the same name.

    Raises:
        UserError: the file of the sweep cannot be read, holds a secret, or is too large.
    """
    path = Path(job.words[-1])
    try:
        spec = path.read_text(encoding="utf-8")
    except (OSError, UnicodeError):
        raise UserError(f"Cannot read {printable(str(path))}.") from None
    if without_secrets(spec) != spec:
        raise UserError(
            f"{printable(str(path))} holds a password, a token or a signature, which would end up in a ConfigMap. Give "
            "it to the pods by --secret."
        )
    words = (*job.words[:-1], f"{_MOUNTED}/{_SPEC}")
    data = {_SPEC: spec, _SCRIPT: _template().render(job=job, words=words)}
    content = "\0".join(data.values())
    if len(content.encode()) > _LARGEST:
        raise UserError(f"The sweep has too many runs for one Job ({len(job.tasks):,}): divide it.")
    name = f"{job.id}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "immutable": True, "data": data}


def make_indexed(thing: Any, job: Job, options: KubernetesOptions, script: str) -> None:
    """Make a training Job one with an index for each run.

    Args:
        thing: the Job, with its name.
        job: the sweep.
        options: checked.
        script: name of the ConfigMap.
    """
    spec, pod = thing["spec"], thing["spec"]["template"]["spec"]
    runs = len(job.tasks)
    # An index that fails does not stop the others.
    spec |= {"completionMode": "Indexed", "completions": runs, "parallelism": min(options.nodes or runs, runs)}
    spec["backoffLimitPerIndex"] = spec.pop("backoffLimit")
    rules = spec["podFailurePolicy"]["rules"]
    spec["podFailurePolicy"]["rules"] = [_FINAL, *(rule for rule in rules if rule["action"] != "FailJob")]
    (container,) = pod["containers"]
    container["args"] = ["bash", f"{_MOUNTED}/{_SCRIPT}", thing["metadata"]["name"]]
    if is_shared(job.folder):
        container["workingDir"] = job.folder
    container["volumeMounts"].append({"name": "sweep", "mountPath": _MOUNTED, "readOnly": True})
    pod["volumes"].append({"name": "sweep", "configMap": {"name": script}})


@cache
def _template() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(  # noqa: S701 - a script for bash, whose words `quoted` quotes
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, keep_trailing_newline=True
    )
    environment.filters["quoted"] = quoted
    return environment.get_template("sweep.sh.j2")
