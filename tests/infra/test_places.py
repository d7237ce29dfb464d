"""The files that start the jobs elsewhere parse, and name the versions that are tested together."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from infra.slurm.options import SlurmOptions
from infra.slurm.place import Slurm
from infra.submission.job import Job, Kind, Task
from infra.submission.store import JobFiles

ROOT = Path(__file__).resolve().parents[2]
INFRA = ROOT / "infra"


def pinned(package: str) -> str:
    found = re.search(rf"^{package}==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert found, f"{package} is not pinned"
    return found[1]


def test_the_packaged_spacy_model_is_pinned_by_hash() -> None:
    assert re.search(r"==\S+ .*--hash=sha256:[0-9a-f]{64}", (INFRA / "spacy-model.txt").read_text(), re.DOTALL)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Stand-ins for Slurm's commands, and an environment whose `phf` and `ray` record how they were called."""
    log = tmp_path / "calls"
    for path, body in {
        "bin/scontrol": 'if [ "$1" = show ]; then echo node-1; echo node-2; fi',
        "bin/srun": 'while [[ "$1" == --* ]]; do shift; done\nexec "$@"',
        "bin/hostname": "echo 127.0.0.1",
        "environment/bin/ray": """case "$1" in
            status)
                printf 'Active:\\n (no active nodes)\\nIdle:\\n'
                for _ in $(seq "${JOINED:-2}"); do echo ' 1 node_ab12'; done
                printf 'Pending:\\n 1 node_cd34\\n' ;;
            start) echo "token of $2: $RAY_AUTH_MODE $RAY_AUTH_TOKEN" >> "$LOG"; exit "${JOIN_STATUS:-0}" ;;
        esac""",
        "environment/bin/phf": 'env >> "$LOG"; exit "${PHF_STATUS:-0}"',
    }.items():
        command = tmp_path / path
        command.parent.mkdir(parents=True, exist_ok=True)
        command.write_text(f'#!/usr/bin/env bash\necho "{command.name} $*" >> "$LOG"\n{body}\n')
        command.chmod(0o755)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "environment"))
    return {
        "PATH": f"{tmp_path}/bin:/usr/bin:/bin",
        "LOG": str(log),
        "SLURM_JOB_ID": "41",
        "SLURM_JOB_NODELIST": "node-[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_PER_TASK": "2",
        "SLURMD_NODENAME": "node-1",
    }


def script(folder: Path, kind: Kind, *words: str) -> Path:
    """Write the script of a job, as `phf submit` does."""
    job = Job(
        id=f"{kind}-00000000",
        kind=kind,
        words=(kind, *words),
        folder=str(folder),
        output=str(folder / "new" / "out"),
        place="slurm",
        tasks=(Task(name="one", words=("train", "$(touch x)")),) if kind is Kind.SWEEP else (),
    )
    files = JobFiles(folder, job.id)
    files.add_event("submitted")
    files.script.write_text(Slurm().render(job, SlurmOptions(nodes=None if kind is Kind.SWEEP else 2), files))
    return files.script


@pytest.mark.parametrize("kind", Kind)
def test_shellcheck_finds_nothing_in_the_scripts_of_slurm(tmp_path: Path, kind: Kind) -> None:
    # A sweep has two, one after the other.
    scripts = script(tmp_path, kind, "a 'b'", "--output", "$(touch x)").read_text().split("#!/usr/bin/env bash\n")[1:]
    assert len(scripts) == (2 if kind is Kind.SWEEP else 1)
    for number, text in enumerate(scripts):
        path = tmp_path / f"{number}.sh"
        path.write_text(f"#!/usr/bin/env bash\n{text}")
        check = [Path(sys.executable).with_name("shellcheck"), "--severity", "warning", path]
        done = subprocess.run(check, check=False, timeout=60, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("kind", [Kind.LABEL, Kind.TRAIN])
@pytest.mark.parametrize(("status", "requeued"), [(0, False), (3, False), (75, True)])
def test_a_slurm_job_passes_its_arguments_on_and_requeues_only_when_stopped(
    slurm: dict[str, str], tmp_path: Path, kind: Kind, status: int, requeued: bool
) -> None:
    environment = slurm | {"PHF_STATUS": str(status)}
    path = script(tmp_path, kind, "in put", "--output", "$(touch x)")
    done = subprocess.run(["bash", path], env=environment, check=False, timeout=60)
    calls = Path(slurm["LOG"]).read_text()
    assert done.returncode == status
    assert re.search(f"phf {kind} .*in put --output \\$\\(touch x\\)", calls)
    assert ("scontrol requeue 41" in calls) is requeued
    assert not (tmp_path / "x").exists()
    events = JobFiles(tmp_path, f"{kind}-00000000").read_events()
    assert [(event.what, event.value) for event in events[1:]] == [("started", "node-1"), ("ended", str(status))]
    assert not list(tmp_path.glob(".phf-*"))


def test_a_cancelled_slurm_job_is_not_requeued(slurm: dict[str, str], tmp_path: Path) -> None:
    path = script(tmp_path, Kind.TRAIN)
    JobFiles(tmp_path, "train-00000000").add_event("cancelled")
    assert subprocess.run(["bash", path], env=slurm | {"PHF_STATUS": "75"}, check=False, timeout=60).returncode == 75
    assert "requeue" not in Path(slurm["LOG"]).read_text()


def test_all_nodes_of_a_slurm_job_have_one_token_which_no_command_line_shows(
    slurm: dict[str, str], tmp_path: Path
) -> None:
    tokens = set()
    path = script(tmp_path, Kind.LABEL)
    for _ in range(2):
        subprocess.run(["bash", path], env=slurm, check=True, timeout=60)
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
    slurm: dict[str, str], tmp_path: Path, changes: dict[str, str], problem: str
) -> None:
    path = script(tmp_path, Kind.LABEL)
    done = subprocess.run(["bash", path], env=slurm | changes, check=False, timeout=60, capture_output=True, text=True)
    assert done.returncode == 1
    assert problem in done.stderr
    assert "phf label" not in Path(slurm["LOG"]).read_text()
