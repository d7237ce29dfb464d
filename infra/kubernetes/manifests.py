"""The objects of a job: those of the folder `base`, with the job's name, command, image and sizes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from infra.kubernetes.options import SHARED, KubernetesOptions, is_shared
from infra.kubernetes.sweep import config_map, make_indexed
from infra.submission.job import Job, Kind
from scorers.shell import quoted

INSTANCE = "app.kubernetes.io/instance"
_BASE = Path(__file__).parent / "base"
_MOUNT = {"name": "shared", "mountPath": SHARED}
_GPUS = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]


def objects(job: Job, options: KubernetesOptions, number: int) -> tuple[list[Any], Any]:
    """Return what an attempt at a job needs beside it, which other jobs and attempts may share; and its Job or RayJob.

    Args:
        job: what to run.
        options: checked.
        number: of the attempt.
    """
    several = job.kind is Kind.TRAIN and options.machines > 1
    folder = "label" if job.kind is Kind.LABEL else "train_on_ray" if several else "train"
    beside, found = [], None
    for thing in _load(_BASE / folder):
        thing["metadata"]["namespace"] = options.in_namespace
        if thing["kind"] in ("Job", "RayJob"):
            found = thing
        else:
            beside.append(thing)
        if thing["kind"] == "PodDisruptionBudget":
            thing["metadata"]["name"] = f"{job.id}-head"
            thing["spec"]["selector"]["matchLabels"][INSTANCE] = job.id
    assert found is not None, folder  # noqa: S101
    found["metadata"] |= {
        "name": f"{job.id}-{number}",
        "labels": {"app.kubernetes.io/part-of": "phf", INSTANCE: job.id},
    }
    if job.kind is Kind.SWEEP:
        script = config_map(job)
        script["metadata"] |= {"namespace": options.in_namespace, "labels": dict(found["metadata"]["labels"])}
        beside.append(script)
        make_indexed(found, job, options, script["metadata"]["name"])
    else:
        _set_command(found, job, options)
    for pod in _pods(found):
        pod["metadata"]["labels"][INSTANCE] = job.id
        for container in pod["spec"]["containers"]:
            container["image"] = options.image
    for pod in _pods_with_data(found):
        _mount(pod["spec"], options)
        if options.secret is not None:
            pod["spec"]["containers"][0]["envFrom"] = [{"secretRef": {"name": options.secret}}]
    _set_size(found, options)
    return beside, found


def needed(thing: Any) -> Iterator[tuple[str, str]]:
    """Return the kinds and names of the objects that must be there before a Job or RayJob."""
    for pod in _pods_with_data(thing):
        for volume in pod["spec"]["volumes"]:
            if "persistentVolumeClaim" in volume:
                yield "persistentvolumeclaim", volume["persistentVolumeClaim"]["claimName"]
        for each in pod["spec"]["containers"][0].get("envFrom", []):
            if not each["secretRef"].get("optional"):
                yield "secret", each["secretRef"]["name"]


def _load(folder: Path) -> Iterator[Any]:
    """Return the objects of a folder with a kustomization, each without parts that it shares with another."""
    import yaml

    for name in yaml.safe_load((folder / "kustomization.yaml").read_text(encoding="utf-8"))["resources"]:
        if (folder / name).is_dir():
            yield from _load(folder / name)
        else:
            yield json.loads(json.dumps(yaml.safe_load((folder / name).read_text(encoding="utf-8"))))


def _pods(thing: Any) -> list[Any]:
    if thing["kind"] == "Job":
        return [thing["spec"]["template"]]
    return [thing["spec"]["submitterPodTemplate"], *_pods_with_data(thing)]


def _pods_with_data(thing: Any) -> list[Any]:
    """Return the templates of the pods that run phf; the driver's or only one comes first."""
    if thing["kind"] == "Job":
        return [thing["spec"]["template"]]
    cluster = thing["spec"]["rayClusterSpec"]
    return [cluster["headGroupSpec"]["template"], *(group["template"] for group in cluster["workerGroupSpecs"])]


def _set_command(thing: Any, job: Job, options: KubernetesOptions) -> None:
    given = job.words[1:]
    if thing["kind"] == "Job":
        ranks = ["--ranks", str(options.ranks_per_machine)]
        (container,) = thing["spec"]["template"]["spec"]["containers"]
        container["args"] = ["phf", job.kind.value, *ranks, *given]
        if is_shared(job.folder):
            container["workingDir"] = job.folder
        return
    words = ["phf", job.kind.value, "--address", "auto"]
    if job.kind is Kind.TRAIN:
        each = options.ranks_per_machine
        words += ["--on", "ray", "--ranks", str(each * options.machines)]
        words += ["--cpus-per-rank", str(max(1, options.cores // each))]
        words += ["--gpus-per-rank", "1"] if options.gpus else []
    here = ["env", "-C", job.folder] if is_shared(job.folder) else []
    # KubeRay hands these words to bash, and Ray the words that bash makes of them to the head's shell. `exec`: Ray also
    # signals a shell that is to stop, which ends at once and without the status of phf.
    thing["spec"]["entrypoint"] = " ".join(quoted(word) for word in ["exec", *here, *words, *given])


def _mount(pod: Any, options: KubernetesOptions) -> None:
    """Mount the volume, in addition or under another name."""
    if options.volume is None:
        return
    pod["volumes"] = [each for each in pod["volumes"] if each["name"] != "shared"]
    pod["volumes"].append({"name": "shared", "persistentVolumeClaim": {"claimName": options.volume}})
    (container,) = pod["containers"]
    if _MOUNT not in container["volumeMounts"]:
        container["volumeMounts"].append(dict(_MOUNT))


def _set_size(thing: Any, options: KubernetesOptions) -> None:
    if thing["kind"] == "RayJob":
        (group,) = thing["spec"]["rayClusterSpec"]["workerGroupSpecs"]
        group["replicas"] = options.machines
    pod = _pods_with_data(thing)[-1]["spec"]
    pod.pop("tolerations", None)
    if options.gpus:
        pod["tolerations"] = [dict(each) for each in _GPUS]
    pod["containers"][0]["resources"] = options.resources
