"""The Kubernetes manifests: what kubectl renders is valid, secure, complete, and runs commands that exist."""

import copy
import json
import os
import re
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
import typer
import yaml

from phf import app
from scorers.errors import EXIT_DEFECT, EXIT_STOPPED, EXIT_USAGE
from tests.infra.manifests import (
    KUBERNETES,
    PLACES,
    ROOT,
    definitions,
    insecure,
    invalid,
    of_kind,
    pods,
    render,
    templates,
)
from tests.infra.test_image import DOCKERFILE
from tests.infra.test_places import pinned

README = (ROOT / "infra" / "README.md").read_text()
RAY = [place for place in PLACES if of_kind(place, "RayJob")]
every_place = pytest.mark.parametrize("place", PLACES)
every_ray_job = pytest.mark.parametrize("place", RAY)


def test_there_are_the_places_that_the_readme_names() -> None:
    assert [place.rpartition("/")[2] for place in PLACES if place.startswith("overlays")] == [
        "cpu", "gpu", "kind", "prod", "spot",
    ]  # fmt: skip
    assert all(f"`{place}`" in README for place in PLACES)


@every_place
def test_what_kubectl_renders_is_valid(place: str) -> None:
    assert {thing["kind"] for thing in render(place)} & {"Job", "RayJob"}
    assert {thing["metadata"]["name"]: found for thing in render(place) if (found := invalid(thing))} == {}


def rename(*path: Any) -> Callable[[Any], None]:
    def change(thing: Any) -> None:
        for step in path[:-1]:
            thing = thing[step]
        thing[path[-1] + "x"] = thing.pop(path[-1])

    return change


HEAD = ("spec", "rayClusterSpec", "headGroupSpec", "template", "spec")


@pytest.mark.parametrize(
    ("place", "kind", "change"),
    [
        ("overlays/kind", "RayJob", rename("spec", "backoffLimit")),
        ("overlays/kind", "RayJob", rename("spec", "rayClusterSpec", "workerGroupSpecs", 0, "groupName")),
        ("overlays/kind", "RayJob", rename(*HEAD, "containers", 0, "volumeMounts", 0, "mountPath")),
        ("overlays/prod", "RayJob", rename("spec", "rayClusterSpec", "autoscalerOptions", "securityContext")),
        ("overlays/prod", "RayJob", lambda job: job["spec"]["rayClusterSpec"]["authOptions"].update(mode="tokens")),
        ("overlays/prod", "PodMonitor", rename("spec", "podMetricsEndpoints", 0, "metricRelabelings")),
        ("overlays/cpu", "PodDisruptionBudget", rename("spec", "minAvailable")),
        ("overlays/gpu", "Job", rename("spec", "podFailurePolicy", "rules", 0, "onExitCodes", "operator")),
    ],
)
def test_a_misspelt_field_is_found(place: str, kind: str, change: Callable[[Any], None]) -> None:
    thing = copy.deepcopy(of_kind(place, kind)[0])
    change(thing)
    assert invalid(thing) or [role for role, pod in templates(thing).items() if insecure(pod)]


@pytest.mark.skipif("PHF_CRDS" not in os.environ, reason="PHF_CRDS names no folder with KubeRay's definitions")
def test_what_kubectl_renders_suits_the_custom_resource_definitions() -> None:
    known = {kind: jsonschema.Draft202012Validator(schema) for kind, schema in definitions().items()}
    things = [
        thing
        for place in PLACES
        for kind in ("RayJob", "PodMonitor", "PrometheusRule")
        for thing in of_kind(place, kind)
    ]
    assert [error.message for thing in things for error in known[thing["kind"]].iter_errors(thing)] == []


@every_place
def test_the_command_of_a_job_has_options_that_exist(place: str) -> None:
    found = [job["spec"]["entrypoint"].split()[1:] for job in of_kind(place, "RayJob")]
    found += [job["spec"]["template"]["spec"]["containers"][0]["args"] for job in of_kind(place, "Job")]
    assert len(found) == 1
    program, command, *words = found[0]
    assert program == "phf"
    there = typer.main.get_command(app).commands[command]  # type: ignore[attr-defined]
    # Parse as the command itself does; this raises if the command would refuse.
    there.make_context(command, list(words)).close()


@every_place
def test_every_pod_is_as_restricted_as_the_readme_says(place: str) -> None:
    assert {role: found for role, pod in pods(place).items() if (found := insecure(pod))} == {}


@pytest.mark.parametrize(
    "change",
    [
        lambda spec: spec["securityContext"].pop("runAsNonRoot"),
        lambda spec: spec["securityContext"].pop("seccompProfile"),
        lambda spec: spec.update(automountServiceAccountToken=True),
        lambda spec: spec.pop("serviceAccountName"),
        lambda spec: spec.update(hostNetwork=True),
        lambda spec: spec["volumes"].append({"name": "host", "hostPath": {"path": "/"}}),
        lambda spec: spec["volumes"].clear(),
        lambda spec: spec["containers"][-1]["securityContext"].update(readOnlyRootFilesystem=False),
        lambda spec: spec["containers"][-1].pop("securityContext"),
        lambda spec: spec["containers"][-1]["resources"].pop("limits"),
        lambda spec: spec["containers"][-1]["volumeMounts"].clear(),
    ],
)
@pytest.mark.parametrize("role", ["submitter", "head", "worker gpu"])
def test_a_pod_that_is_less_restricted_is_found(role: str, change: Callable[[Any], None]) -> None:
    pod = copy.deepcopy(pods("overlays/prod")[role])
    change(pod["spec"])
    assert insecure(pod)


@every_place
def test_every_name_is_defined_or_documented(place: str) -> None:
    named: set[str] = set()
    for pod in pods(place).values():
        spec = pod["spec"]
        named |= {spec["serviceAccountName"]}
        for volume in spec.get("volumes", []):
            named |= {
                volume[kind][key]
                for kind, key in (("configMap", "name"), ("persistentVolumeClaim", "claimName"))
                if kind in volume
            }
        for container in spec["containers"]:
            named |= {next(iter(each.values()))["name"] for each in container.get("envFrom", [])}
            assert all("valueFrom" not in each for each in container.get("env", []))
    defined = {thing["metadata"]["name"] for thing in render(place)}
    assert [name for name in sorted(named - defined) if f"`{name}`" not in README] == []
    assert len({container["image"] for pod in pods(place).values() for container in pod["spec"]["containers"]}) == 1


def test_the_namespace_is_one_and_the_image_is_set_in_one_place() -> None:
    for place in PLACES:
        if place.startswith("overlays"):
            assert {thing["metadata"].get("namespace", "phf") for thing in render(place)} == {"phf"}
            image = next(iter(pods(place).values()))["spec"]["containers"][0]["image"]
            assert image != "phf"
    for path in KUBERNETES.rglob("*.yaml"):
        assert set(re.findall(r"^\s*-?\s*image: (.*)$", path.read_text(), re.MULTILINE)) <= {"phf"}, path


def test_only_the_autoscaler_has_a_token_of_kubernetes() -> None:
    for place in PLACES:
        for pod in pods(place).values():
            tokens = {volume["name"] for volume in pod["spec"]["volumes"] if "projected" in volume}
            having = {
                container["name"]
                for container in pod["spec"]["containers"]
                for mount in container["volumeMounts"]
                if mount["name"] in tokens
            }
            assert having == ({"autoscaler"} if tokens else set())
    assert any("projected" in volume for volume in pods("overlays/prod")["head"]["spec"]["volumes"])


@every_place
def test_policy_and_budget_select_the_pods_they_mean(place: str) -> None:
    (policy,) = of_kind(place, "NetworkPolicy")
    chosen = policy["spec"]["podSelector"]["matchLabels"].items()
    assert all(chosen <= pod["metadata"]["labels"].items() for pod in pods(place).values())
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert all(rule.get("from") for rule in policy["spec"]["ingress"])
    assert all(rule.get("to") for rule in policy["spec"]["egress"])
    for budget in of_kind(place, "PodDisruptionBudget"):
        selected = dict(budget["spec"]["selector"]["matchLabels"])
        # KubeRay's label for the head.
        assert selected.pop("ray.io/node-type") == "head"
        assert selected.items() <= pods(place)["head"]["metadata"]["labels"].items()
        # An arbitrary controller, such as KubeRay's, allows no other field.
        assert budget["spec"].keys() == {"minAvailable", "selector"}
    assert len(of_kind(place, "PodDisruptionBudget")) == (place in RAY)


def test_the_prometheus_operator_keeps_the_metrics_that_prometheus_keeps() -> None:
    plain = yaml.safe_load((ROOT / "infra" / "monitoring" / "prometheus.yaml").read_text())
    (monitor,) = [each for each in of_kind("overlays/cpu", "PodMonitor") if each["metadata"]["name"] == "phf"]
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    wanted = [
        {"sourceLabels" if key == "source_labels" else key: value for key, value in rule.items()}
        for rule in plain["scrape_configs"][0]["metric_relabel_configs"]
    ]
    assert endpoint["metricRelabelings"] == wanted


@every_ray_job
def test_a_ray_job_has_the_pinned_ray_a_token_and_no_work_on_its_head(place: str) -> None:
    (job,) = of_kind(place, "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["rayVersion"] == pinned("ray")
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    # KubeRay would restart any failed job, whatever its status; `phf-again` checks the status.
    assert job["spec"]["backoffLimit"] == 0
    assert job["spec"]["entrypoint"].startswith("phf-again phf ")
    for group in cluster["workerGroupSpecs"]:
        if cluster.get("enableInTreeAutoscaling"):
            assert group["minReplicas"] <= group["replicas"] < group["maxReplicas"]
        else:
            assert group["replicas"] > 0
            assert not {"minReplicas", "maxReplicas"} & set(group)


def test_an_autoscaled_cluster_has_room_for_the_ranks_that_its_command_starts() -> None:
    (job,) = of_kind("overlays/prod", "RayJob")
    words = job["spec"]["entrypoint"].split()
    ranks, gpus = (int(words[words.index(flag) + 1]) for flag in ("--ranks", "--gpus-per-rank"))
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    each = group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]
    assert ranks * gpus == group["maxReplicas"] * int(each)


def test_a_pod_with_a_volume_lets_the_user_of_the_image_write_to_it() -> None:
    dockerfile = DOCKERFILE.read_text()
    user = re.search(r"^RUN useradd .*--uid (\d+) (\w+)$", dockerfile, re.MULTILINE)
    assert user
    # By number, because Kubernetes cannot see from a name that the user is not root.
    assert set(re.findall("^USER (.*)$", dockerfile, re.MULTILINE)) == {user[1]}
    assert f"ENV HOME=/home/{user[2]}\n" in dockerfile
    assert {pod["spec"]["securityContext"]["fsGroup"] for place in PLACES for pod in pods(place).values()} == {
        int(user[1])
    }


def test_a_stopped_pod_is_restarted_and_one_with_a_usage_error_or_a_defect_is_not() -> None:
    (job,) = of_kind("overlays/gpu", "Job")
    actions = {
        status: rule["action"]
        for rule in job["spec"]["podFailurePolicy"]["rules"]
        for status in rule.get("onExitCodes", {}).get("values", [])
    }
    assert actions == {EXIT_USAGE: "FailJob", EXIT_DEFECT: "FailJob", EXIT_STOPPED: "Ignore"}
    pod = job["spec"]["template"]["spec"]
    # Kubernetes accepts a pod failure policy only if pods are not restarted in place.
    assert pod["restartPolicy"] == "Never"
    assert pod["terminationGracePeriodSeconds"] >= 300


def test_the_corpus_for_kind_is_one() -> None:
    (corpus,) = of_kind("overlays/kind", "ConfigMap")
    records = [json.loads(line) for line in corpus["data"]["corpus.jsonl"].splitlines()]
    assert len({record["id"] for record in records}) == len(records) == 3
    assert all(record["text"] for record in records)
