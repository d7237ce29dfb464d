"""The Kubernetes manifests as kubectl renders them, and what is wrong with one."""

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

ROOT = Path(__file__).resolve().parents[2]
KUBERNETES = ROOT / "infra" / "kubernetes"
# Also the jobs without an overlay: each can be applied as it is.
PLACES = sorted(
    str(path.parent.relative_to(KUBERNETES))
    for pattern in ("overlays/*/kustomization.yaml", "base/*/kustomization.yaml")
    for path in KUBERNETES.glob(pattern)
    if path.parent.name not in ("common", "monitoring")
)
VERSION = "1.37"
_CUSTOM = yaml.safe_load((Path(__file__).parent / "custom_kinds.yaml").read_text())


@cache
def render(place: str) -> tuple[Any, ...]:
    """Return the objects of a folder with a kustomization, as the real kubectl renders them."""
    kubectl = Path(sys.executable).parent / "kubectl"
    done = subprocess.run(
        [kubectl, "kustomize", KUBERNETES / place], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr
    return tuple(yaml.load_all(done.stdout, yaml.CSafeLoader))


def of_kind(place: str, kind: str) -> list[Any]:
    return [each for each in render(place) if each["kind"] == kind]


def templates(thing: Any) -> dict[str, Any]:
    """Return the templates of the pods that an object starts, by role, each with the containers that KubeRay adds."""
    if thing["kind"] == "Job":
        return {"trainer": thing["spec"]["template"]}
    if thing["kind"] != "RayJob":
        return {}
    cluster = thing["spec"]["rayClusterSpec"]
    head = cluster["headGroupSpec"]["template"]
    if cluster.get("enableInTreeAutoscaling"):
        fields = ("resources", "securityContext", "volumeMounts")
        options = {name: cluster["autoscalerOptions"].get(name, {}) for name in fields}
        first = head["spec"]["containers"][0]
        added = {"name": "autoscaler", "image": first["image"], **options}
        head = {**head, "spec": {**head["spec"], "containers": [first, added]}}
    workers = {f"worker {group['groupName']}": group["template"] for group in cluster["workerGroupSpecs"]}
    return {"submitter": thing["spec"]["submitterPodTemplate"], "head": head, **workers}


def pods(place: str) -> dict[str, Any]:
    """Return the templates of all pods of a place."""
    return {role: pod for thing in render(place) for role, pod in templates(thing).items()}


def invalid(thing: Any) -> list[str]:
    """Return what Kubernetes would refuse of an object, including fields that do not exist."""
    if thing["kind"] not in _CUSTOM:
        return list(_refused_by_kubernetes(thing))
    schema = _closed({**_CUSTOM[thing["kind"]], "$defs": _CUSTOM["$defs"]})
    found = [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(thing)]
    for role, template in templates(thing).items() if not found else ():
        pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "pod"}, "template": template}
        found += [f"{role}: {problem}" for problem in _refused_by_kubernetes(pod)]
    return found


def _refused_by_kubernetes(thing: Any) -> Iterator[str]:
    try:
        kubernetes_validate.validate(thing, VERSION, strict=True)
    except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
        yield str(error)


def _closed(schema: Any) -> Any:
    """Refuse fields that a schema does not list."""
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: _closed(value) for name, value in schema.items()}
    if "properties" in schema and isinstance(schema["properties"], dict):
        found = {"type": "object", "additionalProperties": False, **found}
    return found


def definitions() -> dict[str, Any]:
    """Return the schemas of the custom resource definitions in the folder PHF_CRDS, by kind."""
    found = {}
    for path in Path(os.environ["PHF_CRDS"]).glob("*.yaml"):
        spec = yaml.load(path.read_text(), yaml.CSafeLoader)["spec"]
        (version,) = (each for each in spec["versions"] if each["name"] == "v1")
        found[spec["names"]["kind"]] = _closed(_without_extensions(version["schema"]["openAPIV3Schema"]))
        found[spec["names"]["kind"]]["properties"]["metadata"] = True
    return found


def _without_extensions(schema: Any) -> Any:
    """Turn Kubernetes' dialect into JSON Schema: quantities may be numbers, and defaults fill required fields."""
    if isinstance(schema, list):
        return [_without_extensions(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    found = {name: _without_extensions(value) for name, value in schema.items() if not name.startswith("x-kubernetes-")}
    if isinstance(found.get("required"), list) and isinstance(found.get("properties"), dict):
        found["required"] = [name for name in found["required"] if "default" not in found["properties"].get(name, {})]
    return found


def insecure(pod: Any) -> list[str]:
    """Return what of a pod's template breaks the promises of infra/README.md, such as a writable root."""
    # https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted
    spec = pod["spec"]
    context = spec.get("securityContext", {})
    found = [f"{name} is set" for name in ("hostNetwork", "hostPID", "hostIPC") if spec.get(name)]
    if context.get("runAsNonRoot") is not True:
        found.append("may run as root")
    if context.get("seccompProfile") != {"type": "RuntimeDefault"}:
        found.append("no seccomp profile")
    if spec.get("automountServiceAccountToken") is not False or spec.get("serviceAccountName") != "phf":
        found.append("mounts a token, or is not the account of phf")
    allowed = {"name", "persistentVolumeClaim", "emptyDir", "configMap", "projected"}
    found += [f"volume {each['name']}" for each in spec.get("volumes", []) if not each.keys() <= allowed]
    for container in [*spec["containers"], *spec.get("initContainers", [])]:
        expected = {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        if container.get("securityContext") != expected:
            found.append(f"{container['name']}: security context")
        mounts = {each["mountPath"]: each["name"] for each in container.get("volumeMounts", [])}
        if not mounts.keys() >= {"/tmp", "/home/phf"}:
            found.append(f"{container['name']}: nowhere to write")
        if not set(mounts.values()) <= {each["name"] for each in spec.get("volumes", [])}:
            found.append(f"{container['name']}: mounts a volume that the pod lacks")
        resources = container.get("resources", {})
        if not resources.get("requests", {}).keys() >= {"cpu", "memory"} or "memory" not in resources.get("limits", {}):
            found.append(f"{container['name']}: resources")
    return found
