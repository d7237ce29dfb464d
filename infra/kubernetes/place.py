"""The place `kubernetes`: labelling and training on several machines as RayJobs of KubeRay, else as Jobs."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from infra.kubernetes import client
from infra.kubernetes.client import Cluster
from infra.kubernetes.log import PodLogs, started
from infra.kubernetes.manifests import INSTANCE, needed, objects
from infra.kubernetes.options import KubernetesOptions
from infra.kubernetes.states import read_status, read_tasks
from infra.submission.job import AGAIN, Job, Kind, State, Status
from infra.submission.place import Place
from infra.submission.store import JobFiles
from scorers.errors import UserError
from scorers.printing import without_secrets
from scorers.rehearsal import Rehearsal

_RAY_JOBS = "rayjobs.ray.io"
_RANKS = {"ranks": 1, "address": None, "cpus_per_rank": None, "gpus_per_rank": None}


class Kubernetes(Place):
    """Submits by the user's kubectl. Each attempt is an object of its own, with a number, which stays when it ends."""

    name = "kubernetes"
    Options = KubernetesOptions
    decides: ClassVar[Mapping[Kind, Mapping[str, Any]]] = {Kind.LABEL: {"address": None}, Kind.TRAIN: _RANKS}

    def instead(self, kind: Kind) -> str:  # noqa: D102 - see Place, here and below
        return " There is one rank per GPU (--gpus) of each machine (--nodes)." if kind is Kind.TRAIN else ""

    def rehearsal(self, job: Job, options: KubernetesOptions) -> Rehearsal:  # noqa: D102
        return Rehearsal(files=False)

    def render(self, job: Job, options: KubernetesOptions, files: JobFiles) -> str:  # noqa: D102
        import yaml

        options.check(job)
        beside, thing = objects(job, options, 1)
        text: str = yaml.safe_dump_all([*beside, thing], sort_keys=False, width=100)
        return text

    def check(self, job: Job, options: KubernetesOptions) -> None:  # noqa: D102
        cluster = client.current(options.in_namespace)
        if cluster.has("namespace", cluster.namespace) is False:
            raise UserError(
                f"The cluster has no namespace {cluster.namespace}. Give another with --namespace, or run: "
                f"kubectl create namespace {cluster.namespace}"
            )
        _, thing = objects(job, options, 1)
        if thing["kind"] == "RayJob" and not _has_kuberay(cluster):
            raise UserError(
                "The cluster has no RayJobs: install KubeRay 1.6 or newer (https://ray-project.github.io/kuberay)."
            )
        for kind, name in dict.fromkeys(needed(thing)):
            if cluster.has(kind, name) is False:
                word, option = {"secret": ("secret", "--secret")}.get(kind, ("claim", "--volume"))
                raise UserError(f"The namespace {cluster.namespace} has no {word} {name}. {option} names another.")
        for each in _attempts(cluster, job):
            if read_status(each, _pods(cluster, each["metadata"]["name"])).state.is_alive:
                raise UserError(
                    f"The cluster already runs {each['metadata']['name']}, which writes to "
                    f"{without_secrets(job.output)}. Stop it there, or wait until it has ended."
                )

    def submit(self, job: Job, options: KubernetesOptions, files: JobFiles) -> dict[str, str]:  # noqa: D102
        cluster = client.current(options.in_namespace)
        numbers = [each["metadata"]["name"].rpartition("-")[2] for each in _attempts(cluster, job)]
        number = max((int(each) for each in numbers if each.isdecimal()), default=0) + 1
        beside, thing = objects(job, options, number)
        for each in beside:
            # Somebody may have changed what is there, such as the ports of the network policy.
            if not cluster.has(each["kind"], each["metadata"]["name"]):
                _create(cluster, each)
        _create(cluster, thing)
        name = thing["metadata"]["name"]
        return {"context": cluster.context, "namespace": cluster.namespace, thing["kind"].lower(): name}

    def status(self, job: Job, files: JobFiles) -> Status:  # noqa: D102
        cluster, kind, name = _find(job)
        thing = cluster.read("get", kind, name, "--ignore-not-found")
        if thing is None:
            return Status(State.LOST, f"the cluster does not know it, or it was deleted: {AGAIN}")
        pods = _pods(cluster, name) if kind == "job" else []
        status = read_status(thing, pods)
        tasks = [task.name for task in job.tasks]
        return replace(status, tasks=read_tasks(thing, pods, tasks)) if tasks else status

    def cancel(self, job: Job, files: JobFiles) -> None:  # noqa: D102
        cluster, kind, name = _find(job)
        thing = cluster.read("get", kind, name)
        status = thing.get("status") or {}
        if kind == "rayjob" and status.get("jobStatus") in ("PENDING", "RUNNING"):
            # To suspend or delete a RayJob removes the head before the driver has saved. Ray waits for it, and then
            # KubeRay removes the cluster.
            selector = f"ray.io/cluster={status.get('rayClusterName')},ray.io/node-type=head"
            heads = cluster.read("get", "pods", f"--selector={selector}")["items"]
            if not heads:
                raise UserError(f"The head of {name} is gone. Kubernetes will end the job soon: ask again.")
            stop = ["ray", "job", "stop", "--no-wait", "--address=http://127.0.0.1:8265", str(status.get("jobId"))]
            cluster.run("exec", heads[0]["metadata"]["name"], "--container=ray-head", "--", *stop)
            return
        # The pod of a Job gets SIGTERM, and the time that its manifest allows.
        cluster.run("patch", kind, name, "--type=merge", f"--patch={json.dumps({'spec': {'suspend': True}})}")

    def open_log(self, job: Job, files: JobFiles) -> PodLogs:  # noqa: D102
        cluster, _, name = _find(job)
        return PodLogs(cluster, lambda: _pods(cluster, name))

    def read_last_lines(self, job: Job, files: JobFiles, most: int) -> list[str]:  # noqa: D102
        cluster, _, name = _find(job)
        names = [pod["metadata"]["name"] for pod in started(_pods(cluster, name))]
        lines = [line for pod in names for line in cluster.run("logs", pod, f"--tail={most}").splitlines()]
        return [line[:1_000] for line in lines[-most:]]


def _find(job: Job) -> tuple[Cluster, str, str]:
    kind = "rayjob" if "rayjob" in job.handle else "job"
    return Cluster(job.handle["context"], job.handle["namespace"]), kind, job.handle[kind]


def _create(cluster: Cluster, thing: Any) -> None:
    cluster.run("create", "--filename=-", "--output=name", stdin=json.dumps(thing))


def _has_kuberay(cluster: Cluster) -> bool:
    return _RAY_JOBS in cluster.run("api-resources", "--api-group=ray.io", "--output=name").split()


def _attempts(cluster: Cluster, job: Job) -> list[Any]:
    """Return the attempts at a job that the cluster knows, whoever submitted them."""
    kinds = f"jobs.batch,{_RAY_JOBS}" if _has_kuberay(cluster) else "jobs.batch"
    found = cluster.read("get", kinds, f"--selector={INSTANCE}={job.id}")["items"]
    # The Job with which KubeRay submits a RayJob has its name.
    return [each for each in found if not each["metadata"].get("ownerReferences")]


def _pods(cluster: Cluster, name: str) -> list[Any]:
    """Return the pods of a Job, or of the one that submits a RayJob, the oldest first."""
    found = cluster.read("get", "pods", f"--selector=job-name={name}")["items"]
    return sorted(found, key=lambda pod: str(pod["metadata"].get("creationTimestamp")))
