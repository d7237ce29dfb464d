"""`phf submit --on kubernetes`: its manifests, what is refused, and jobs submitted by a real kubectl.

The API server is one of the tests, and no job runs.
"""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from click.testing import Result
from typer.testing import CliRunner

from infra.kubernetes.client import Cluster
from infra.kubernetes.log import PodLogs
from infra.kubernetes.states import read_status
from infra.kubernetes.sweep import config_map
from infra.submission.job import Job, Kind, Status, Task
from phf import app
from tests.infra.kubernetes_api import KUBERAY, Api, serve
from tests.infra.manifests import insecure, invalid, templates

LABEL = ("label", "s3://corpus/raw/*.jsonl.zst", "--output", "s3://corpus/labelled", "--scorer", "pii")
TRAIN = ("train", "/shared/labelled", "--task", "toxicity", "--model", "nano", "--output", "/shared/runs/mle")
SWEEP = ("sweep", "sweep.yaml", "--set", "seeds=[1,2]")
SPEC = {
    "dataset": "/shared/labelled",
    "out": "/shared/sweep",
    "objectives": ["mle"],
    "settings": {"task": "toxicity", "model": {"name": "nano"}},
}
ON = ("--on", "kubernetes", "--image", "registry.example.com/phf@sha256:0")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own, the working directory, and no cluster."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(SPEC))
    return tmp_path


@pytest.fixture
def api(folder: Path) -> Iterator[Api]:
    """A cluster with KubeRay and a claim."""
    with serve(folder) as found:
        found.add("v1", "persistentvolumeclaims", "phf-shared")
        yield found


def phf(*words: str) -> Result:
    return CliRunner().invoke(app, list(words), catch_exceptions=False)


def submit(*words: str) -> Result:
    return phf("submit", *words, *ON)


def submitted(*words: str) -> str:
    result = submit(*words)
    assert result.exit_code == 0, result.output
    return result.stdout.strip()


def job(name: str) -> Any:
    result = phf("jobs", name, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def rendered(*words: str) -> dict[str, Any]:
    """The objects of a dry run, by kind."""
    result = submit(*words, "--dry-run")
    assert result.exit_code == 0, result.output
    return {thing["kind"]: thing for thing in yaml.safe_load_all(result.stdout)}


def parse(words: list[str]) -> dict[str, Any]:
    """The parameters that the command of a job gets, as the command itself parses them."""
    assert words[0] == "phf"
    there = typer.main.get_command(app).commands[words[1]]  # type: ignore[attr-defined]
    with there.make_context(words[1], words[2:]) as context:
        return dict(context.params)


def words_on_the_head(entrypoint: str) -> list[str]:
    """Return the words that are run: KubeRay's pod has them in bash, and Ray quotes them for the shell of the head."""

    def run(*shell: str) -> list[str]:
        done = subprocess.run([*shell], capture_output=True, text=True, check=True, timeout=60)
        return done.stdout.split("\0")[:-1]

    command = shlex.join(run("/bin/bash", "-ce", f"printf '%s\\0' {entrypoint}"))
    # `exec` replaces the shell, which Ray would signal too.
    assert command.startswith("exec phf ")
    return run("/bin/sh", "-c", command.replace("exec phf", "printf '%s\\0' phf", 1))


SIZES = ("--nodes", "3", "--gpus", "4", "--cpus", "32", "--memory", "128G")


@pytest.mark.parametrize(
    "words",
    [
        LABEL,
        (*LABEL, *SIZES, "--volume", "team", "--secret", "keys"),
        TRAIN,
        (*TRAIN, "--gpus", "8", "--volume", "team", "--secret", "keys"),
        (*TRAIN, *SIZES, "--namespace", "team"),
        (*SWEEP, *SIZES, "--volume", "team"),
    ],
)
def test_the_objects_of_a_job_are_valid_and_as_restricted_as_those_of_the_overlays(words: tuple[str, ...]) -> None:
    found = rendered(*words)
    assert {kind: problems for kind, thing in found.items() if (problems := invalid(thing))} == {}
    thing = found.get("RayJob") or found["Job"]
    pods = templates(thing)
    assert {role: problems for role, pod in pods.items() if (problems := insecure(pod))} == {}
    assert {each["image"] for pod in pods.values() for each in pod["spec"]["containers"]} == {ON[-1]}
    policy = found["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"].items()
    assert all(policy <= pod["metadata"]["labels"].items() for pod in pods.values())
    if thing["kind"] == "RayJob":
        budget = dict(found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"])
        assert budget.pop("ray.io/node-type") == "head"
        assert budget.items() <= pods["head"]["metadata"]["labels"].items()
        assert found["PodDisruptionBudget"]["metadata"]["name"] == thing["metadata"]["name"][:-2] + "-head"


def test_labelling_runs_the_words_that_were_given_whatever_they_hold(folder: Path) -> None:
    odd = "s3://corpus/a 'b' \"c\" $(touch x) {d,e}\t\x1b\n~/*.jsonl"
    thing = rendered("label", odd, *LABEL[2:], *SIZES)["RayJob"]
    words = words_on_the_head(thing["spec"]["entrypoint"])
    assert words[:4] == ["phf", "label", "--address", "auto"]
    given = parse(words)
    assert (given["address"], given["output"]) == ("auto", "s3://corpus/labelled")
    assert odd in words
    assert not (folder / "x").exists()
    (group,) = thing["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert group["replicas"] == 3
    assert group["template"]["spec"]["containers"][0]["resources"] == {
        "requests": {"cpu": "32", "memory": "128Gi"},
        "limits": {"memory": "128Gi", "nvidia.com/gpu": "4"},
    }
    assert not (folder / "state").exists()


def test_only_the_pods_need_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    # Incomplete here: Azure's account, and a key without its secret.
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    for name in ("AWS_SECRET_ACCESS_KEY", "AZURE_STORAGE_ACCOUNT_NAME"):
        monkeypatch.delenv(name, raising=False)
    for output in ("s3://corpus/labelled", "az://corpus/labelled"):
        thing = rendered("label", LABEL[1], "--output", output, "--scorer", "pii")["RayJob"]
        assert parse(words_on_the_head(thing["spec"]["entrypoint"]))["output"] == output


def test_there_is_a_rank_for_each_gpu() -> None:
    (container,) = rendered(*TRAIN, "--gpus", "8")["Job"]["spec"]["template"]["spec"]["containers"]
    given = parse(container["args"])
    assert (given["on"], given["ranks"], given["output"]) == ("here", 8, "/shared/runs/mle")
    given = parse(words_on_the_head(rendered(*TRAIN, *SIZES)["RayJob"]["spec"]["entrypoint"]))
    assert (given["on"], given["address"], given["ranks"]) == ("ray", "auto", 12)
    assert (given["cpus_per_rank"], given["gpus_per_rank"]) == (8, 1)


def test_volume_and_secret_are_those_that_were_named() -> None:
    pods = templates(rendered(*LABEL[:2], "--output", "/shared/out", "--scorer", "pii", "--volume", "team")["RayJob"])
    pods |= templates(rendered(*TRAIN, "--volume", "team", "--secret", "keys")["Job"])
    for role, pod in pods.items():
        claims = [each["persistentVolumeClaim"]["claimName"] for each in pod["spec"]["volumes"] if len(each) > 1
                  and "persistentVolumeClaim" in each]  # fmt: skip
        # KubeRay's own pod neither reads nor writes data.
        assert claims == ([] if role == "submitter" else ["team"])
    assert pods["trainer"]["spec"]["containers"][0]["envFrom"] == [{"secretRef": {"name": "keys"}}]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ((*LABEL[:2], "--output", "out", "--scorer", "pii"), "The pods do not see"),
        ((*LABEL[:2], "--output", "/shared/out", "--scorer", "pii"), "The pods do not see /shared/out"),
        ((*LABEL[:2], "--output", "/shared/../out", "--scorer", "pii", "--volume", "x"), "The pods do not see"),
        ((*TRAIN, "--ranks", "2"), "There is one rank per GPU"),
        ((*LABEL, "--workers", "0"), "--workers 0 labels without Ray"),
        ((*LABEL, "--address", "auto"), "the place decides --address"),
        ((*LABEL, "--memory", "0"), "needs a limit"),
        ((*LABEL, "--volume", "A\x1b"), "not of the form"),
        ((*LABEL, "--secret", "../x"), "not of the form"),
        ((*LABEL, "--partition", "gpu"), "--partition means nothing with --on kubernetes"),
        ((*SWEEP, "--set", "out=sweep"), "The pods do not see"),
        (("sweep", "missing.yaml"), "missing.yaml"),
        ((*SWEEP, "--set", "settings.tracking.project=hf_abcdefghijklmnopqrstuvwxyz"), "password"),
        ((*LABEL, "--set", "id_field=hf_abcdefghijklmnopqrstuvwxyz"), "password"),
    ],
)
def test_what_cannot_work_is_refused_without_a_cluster(words: tuple[str, ...], problem: str) -> None:
    result = submit(*words, "--dry-run")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.output
    assert problem in result.stderr
    assert not {"\x1b", "hf_abc"} & set(result.output)


def test_an_image_is_required() -> None:
    result = phf("submit", *LABEL, "--on", "kubernetes", "--dry-run")
    assert (result.exit_code, "needs --image" in result.stderr) == (2, True)


def test_what_the_cluster_lacks_is_one_message_before_anything_is_submitted(
    api: Api, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(problem: str, *words: str) -> None:
        result = submit(*words)
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.output
        assert problem in result.stderr
        assert api.objects == before

    before = dict(api.objects)
    refused("has no namespace elsewhere", *LABEL, "--namespace", "elsewhere")
    refused("has no claim missing. --volume names another", *TRAIN, "--volume", "missing")
    refused("has no secret missing. --secret names another", *LABEL, "--secret", "missing")
    del api.versions[KUBERAY]
    refused("install KubeRay", *LABEL)
    (folder / "config").write_text((folder / "config").read_text().replace(api.server, "http://127.0.0.1:9"))
    refused("No Kubernetes cluster answers", *LABEL)
    (folder / "config").unlink()
    refused("No Kubernetes cluster answers", *LABEL)
    monkeypatch.setenv("PATH", str(folder))
    refused("kubectl is not installed", *LABEL)
    assert json.loads(phf("jobs", "--json").stdout) == []


def test_training_is_followed_cancelled_and_continued(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without KubeRay, and by a user who may not read secrets.
    del api.versions[KUBERAY]
    api.add("networking.k8s.io/v1", "networkpolicies", "phf", spec={"changed": True})
    api.forbidden |= {"secrets", "namespaces"}
    name = submitted(*TRAIN, "--secret", "keys")
    assert api.named("jobs") == [f"{name}-1"]
    assert api.objects["networkpolicies", "phf"]["spec"] == {"changed": True}
    assert api.named("serviceaccounts") == ["phf"]
    there = job(name)
    assert (there["state"], there["handle"]["job"]) == ("queued", f"{name}-1")

    first = api.objects["jobs", f"{name}-1"]
    first["status"] = {"active": 1, "ready": 1}
    api.add_pod("a", {"job-name": f"{name}-1"}, "phf", phase="Running")
    api.logs["a"] = "".join(f"step {number}\n" for number in range(30))
    assert job(name)["state"] == "running"
    shown = phf("jobs", name).stdout
    assert "step 29" in shown
    assert "step 5\n" not in shown
    # Also where this user has no record of it.
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("XDG_STATE_HOME", "elsewhere")
        result = submit(*TRAIN)
        assert (result.exit_code, f"already runs {name}-1" in result.stderr) == (2, True)

    assert phf("jobs", name, "--cancel").exit_code == 0
    assert first["spec"]["suspend"] is True
    assert job(name)["state"] == "running"
    first["status"] = {"active": 0, "conditions": [{"type": "Suspended", "status": "True"}]}
    assert job(name)["state"] == "cancelled"

    assert submitted(*TRAIN) == name
    second = api.objects["jobs", f"{name}-2"]
    second["status"] = {"failed": 1, "conditions": [{"type": "Failed", "status": "True", "reason": "PodFailurePolicy"}]}
    ended = [{"name": "phf", "state": {"terminated": {"exitCode": 2}}}]
    api.add_pod("b", {"job-name": f"{name}-2"}, "phf", phase="Failed", containerStatuses=ended)
    api.logs["b"] = "Error: refused.\n"
    followed = phf("jobs", name, "--follow")
    assert (followed.exit_code, followed.stdout) == (2, "Error: refused.\n")
    del api.objects["jobs", f"{name}-2"]
    assert job(name)["state"] == "lost"


def test_a_sweep_has_an_index_for_each_run(api: Api) -> None:
    name = submitted(*SWEEP)
    (script,) = api.named("configmaps")
    data = api.objects["configmaps", script]["data"]
    assert yaml.safe_load(data["sweep.yaml"]) == SPEC
    there = api.objects["jobs", f"{name}-1"]
    assert (there["spec"]["completions"], there["spec"]["parallelism"]) == (2, 2)
    assert job(name)["tasks"] == {"mle-s1": "queued", "mle-s2": "queued"}

    there["status"] = {"active": 1, "ready": 1, "completedIndexes": "0"}
    annotations = {"batch.kubernetes.io/job-completion-index": "1"}
    api.add_pod("a", {"job-name": f"{name}-1"}, "phf", phase="Running", annotations=annotations)
    now = job(name)
    assert (now["state"], now["tasks"]) == ("running", {"mle-s1": "finished", "mle-s2": "running"})
    assert phf("jobs", name, "--cancel").exit_code == 0
    assert there["spec"]["suspend"] is True
    there["status"] = {"conditions": [{"type": "Failed", "status": "True"}], "failedIndexes": "0-1"}
    del api.objects["pods", "a"]
    now = job(name)
    assert (now["state"], now["exit_status"]) == ("failed", 4)
    assert (now["reason"], {*now["tasks"].values()}) == ("2 of 2 runs failed: see its log", {"failed"})
    # The same file and command need no other ConfigMap.
    assert submitted(*SWEEP, "--nodes", "1") == name
    assert api.named("configmaps") == [script]
    assert api.objects["jobs", f"{name}-2"]["spec"]["parallelism"] == 1


@pytest.fixture
def pod(folder: Path) -> Callable[..., "subprocess.Popen[bytes]"]:
    """Runs the script of a sweep with two runs as the pod of an index; `phf` writes its words, and ends with STATUS."""
    output = folder / "a 'sweep'"
    tasks = tuple(Task(name=name, words=("train", f"$(touch {name})")) for name in "xy")
    made = Job(id="sweep-00000000", kind=Kind.SWEEP, words=("sweep", "--at-once", "1", "sweep.yaml"), folder="/",
               output=str(output), place="kubernetes", tasks=tasks)  # fmt: skip
    (folder / "run.sh").write_text(config_map(made)["data"]["run.sh"])
    (folder / "bin").mkdir()
    phf = folder / "bin" / "phf"
    phf.write_text(
        "#!/usr/bin/env bash\n"
        'echo "$@" >> calls\n'
        "[[ -z ${WAIT:-} ]] || { trap 'kill $!; exit 75' TERM; sleep 60 & touch waits; wait; }\n"
        '[[ $1 == sweep ]] || exit "$STATUS"\n'
    )
    phf.chmod(0o755)

    def start(index: int, status: int = 0, attempt: str = "sweep-00000000-1", **more: str) -> "subprocess.Popen[bytes]":
        path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        env = {**os.environ, "PATH": path, "JOB_COMPLETION_INDEX": str(index), "STATUS": str(status), **more}
        return subprocess.Popen(["bash", "run.sh", attempt], env=env, cwd=folder)

    return start


def test_the_index_that_ends_last_compares(folder: Path, pod: Callable[..., "subprocess.Popen[bytes]"]) -> None:
    calls = folder / "calls"

    def ended(*given: Any) -> tuple[int, list[str]]:
        calls.write_text("")
        status = pod(*given).wait(60)
        return status, calls.read_text().splitlines()

    first, second = "train $(touch x)", "train $(touch y)"
    comparison = "sweep --at-once 1 /etc/phf-sweep/sweep.yaml"
    assert ended(0) == (0, [first])
    # These are run again.
    assert ended(1, 75) == (75, [second])
    assert ended(1, 137) == (137, [second])
    # What has failed for good is tried again by the sweep, whose status counts.
    assert ended(1, 4) == (0, [second, comparison])
    assert ended(1, 0, "sweep-00000000-2") == (0, [second])
    assert ended(0, 2, "sweep-00000000-2") == (0, [first, comparison])
    assert ended(2)[0] == 2
    assert not list((folder / "a 'sweep'").iterdir())
    assert not (folder / "x").exists()


def test_a_run_of_a_sweep_gets_the_signal_of_its_pod(
    folder: Path, pod: Callable[..., "subprocess.Popen[bytes]"]
) -> None:
    process = pod(0, WAIT="1")
    while not (folder / "waits").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.terminate()
    assert process.wait(60) == 75
    assert (folder / "calls").read_text() == "train $(touch x)\n"


def test_shellcheck_finds_nothing_in_the_script_of_a_sweep(
    folder: Path, pod: Callable[..., "subprocess.Popen[bytes]"]
) -> None:
    check = [Path(sys.executable).with_name("shellcheck"), "--severity", "warning", folder / "run.sh"]
    done = subprocess.run(check, check=False, timeout=60, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_a_followed_log_asks_only_for_what_is_new(api: Api) -> None:
    def printing(pod: str, phase: str, text: str) -> None:
        api.add_pod(pod, {}, "phf", phase=phase)
        api.logs[pod] = text

    log = PodLogs(Cluster("tests", "phf"), lambda: [api.objects["pods", name] for name in api.named("pods")])
    # Lines that are alike, within a second too.
    text = "".join(f"{number // 4}\n" for number in range(16)) + "the end"
    printing("first", "Running", "")
    found = b""
    for size in (2, 3, 4, 8, 8, 21, 38, 39):
        api.logs["first"] = text[:size]
        found += log.read(ended=False)
        assert found.decode() == text[: text.rindex("\n", 0, size) + 1]
        assert len(api.sent) < 16
    printing("first", "Succeeded", text)
    printing("second", "Running", "again")
    found += log.read(ended=False)
    assert found.decode() == f"{text}\n"
    assert log.read(ended=True) == b"again\n"
    del api.objects["pods", "first"]
    assert log.read(ended=True) == b""


def test_labelling_is_stopped_by_ray_which_waits_for_it(api: Api) -> None:
    name = submitted(*LABEL, "--nodes", "2")
    assert api.named("rayjobs") == [f"{name}-1"]
    assert api.named("poddisruptionbudgets") == [f"{name}-head"]
    ray_job = api.objects["rayjobs", f"{name}-1"]

    def is_now(driver: str, deployment: str = "Running", message: str = "") -> Status:
        ray_job["status"] = {
            "jobStatus": driver, "jobDeploymentStatus": deployment, "message": message,
            "jobId": "raysubmit", "rayClusterName": "cluster",
        }  # fmt: skip
        return read_status(ray_job, [])

    assert is_now("", "Initializing").state == "queued"
    assert is_now("RUNNING").state == job(name)["state"] == "running"
    result = phf("jobs", name, "--cancel")
    assert (result.exit_code, "head" in result.stderr) == (2, True)
    api.add_pod("head", {"ray.io/cluster": "cluster", "ray.io/node-type": "head"}, "ray-head", phase="Running")
    result = phf("jobs", name, "--cancel")
    assert result.exit_code == 0, result.output
    ((pod, words),) = api.executed
    assert (pod, words[:4], words[-1]) == ("head", ["ray", "job", "stop", "--no-wait"], "raysubmit")
    assert "suspend" not in ray_job["spec"]
    assert is_now("STOPPED", "Complete").state == "cancelled"

    ended = is_now("FAILED", "Failed", "Job entrypoint command failed with exit code 4, last available logs")
    assert (ended.state, ended.exit_status) == ("failed", 4)
    refused = is_now("", "ValidationFailed", "no such field")
    assert (refused.state, refused.reason) == ("failed", "no such field")
    assert is_now("SUCCEEDED", "Complete").state == "finished"

    # Before there is a head, nothing is lost when KubeRay starts none.
    assert submitted(*LABEL) == name
    assert phf("jobs", name, "--cancel").exit_code == 0
    assert api.objects["rayjobs", f"{name}-2"]["spec"]["suspend"] is True
    assert job(name)["state"] == "cancelled"
