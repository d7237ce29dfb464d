"""No process of phf imports code or reads settings from its working directory, whoever starts it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from infra.demo.steps import phf
from pipeline.config import LabelConfig
from pipeline.corpus.cut_units import make_plan
from pipeline.labelling.resolve import ResolvedJob, groups_of, resolve_config
from pipeline.labelling.workers.isolation import label_isolated
from scorers import interpreter
from scorers.doctor.children import run_job
from tests.hostile import LIBRARIES, PACKAGES, folder_of_traps
from tests.pipeline.labelling.test_joined_cluster import ray_head
from tests.training.jobs import command, make_code_dataset
from training.runs.folder import RunFolder

BIN = Path(sys.executable).parent
CODE = "try:\n    x=1\nexcept:\n    pass\n"
# Scores of the lines of CODE: E225 on the second, E722 on the third.
SCORES = {"pep8": [0, 0.125, 0.125, 0], "quick": [0, 0.125, 0.125, 0]}
SCORERS = ["--scorer", "pep8", "--scorer", "quick=ruff"]
SETTINGS = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "RAY_AUTH_MODE": "disabled",
    "PATH": f"{BIN}:{os.environ['PATH']}",
}
ENVIRONMENT = {
    name: value for name, value in {**os.environ, **SETTINGS}.items() if name not in ("PYTHONSAFEPATH", "PYTHONPATH")
}


def run(folder: Path, words: Sequence[str], **variables: str) -> "subprocess.CompletedProcess[str]":
    """Run a command as a user does, without the variables that make Python safe."""
    return subprocess.run(
        words, cwd=folder, env=ENVIRONMENT | variables, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture
def traps(tmp_path: Path) -> Iterator[Path]:
    with folder_of_traps(tmp_path) as place:
        (place / "doc.py").write_text(CODE)
        yield place


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_code_dataset(tmp_path_factory.mktemp("code") / "labelled", ["textwrap", "string"])


def check_labelled(output: Path) -> None:
    (row,) = pq.read_table(output / "data" / "0001", columns=list(SCORES)).to_pylist()
    assert row == SCORES


@pytest.mark.slow
def test_workers_of_a_local_ray(traps: Path, tmp_path: Path) -> None:
    done = run(traps, ["phf", "label", "doc.py", "--output", str(tmp_path / "out"), *SCORERS, "--workers", "1"])
    assert done.returncode == 0, done.stderr
    check_labelled(tmp_path / "out")


@pytest.mark.slow
def test_workers_of_a_cluster_that_was_started_there_too(traps: Path, tmp_path: Path) -> None:
    # Ray's own processes import libraries and are not protected there: a head that finds shadowed ones just dies.
    others = folder_of_traps(tmp_path / "head", [*PACKAGES, "pycodestyle"])
    with others as folder, ray_head(ENVIRONMENT, cwd=folder) as head:
        for number, address in enumerate((head.drivers, head.address)):
            output = tmp_path / f"out-{number}"
            done = run(traps, ["phf", "label", "doc.py", "--output", str(output), *SCORERS, "--address", address])
            assert done.returncode == 0, done.stderr
            check_labelled(output)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "options"),
    [
        ([], ["--ranks", "2"]),
        ([], ["--ranks", "2", "--on", "ray"]),
        (["torchrun", "--standalone", "--nproc-per-node", "2", "--no-python"], []),
    ],
    ids=["here", "ray", "torchrun"],
)
def test_ranks(traps: Path, tmp_path: Path, dataset: Path, launcher: list[str], options: list[str]) -> None:
    _, *words = command(dataset, tmp_path / "run", training__num_tokens=2 * 4 * 32)
    done = run(traps, [*launcher, *words, *options])
    assert done.returncode == 0, done.stdout + done.stderr
    facts = RunFolder(tmp_path / "run").read_facts()
    assert (facts.status, facts.horizon.ranks) == ("finished", 2)


def test_children_that_isolate_records(traps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(traps)
    given = {"inputs": ["doc.py"], "output": str(tmp_path / "out"), "scorers": {"pep8": {"kind": "pycodestyle"}}}
    config = resolve_config(LabelConfig.model_validate(given))
    plan = make_plan(config)
    job = ResolvedJob(config, plan, groups_of(config), {})
    result = label_isolated(job, "cpu", plan.units[0], "staging/1.parquet")
    assert (result.rows, result.quarantined) == (1, [])


def test_children_of_doctor(traps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(traps)
    assert "version" in run_job({"what": "torch"}, patience_s=120)


def test_commands_of_the_demo(traps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(traps)
    phf("--version")


def test_processes_that_libraries_start(traps: Path, tmp_path: Path) -> None:
    (tmp_path / "phf").write_text(
        "import multiprocessing, subprocess, sys\n"
        "import phf\n"
        "if __name__ == '__main__':\n"
        "    subprocess.run([sys.executable, '-c', 'import json, numpy, pipeline'], check=True)\n"
        "    process = multiprocessing.get_context('spawn').Process(target=int)\n"
        "    process.start()\n"
        "    process.join()\n"
        "    sys.exit(process.exitcode)\n"
    )
    done = run(traps, [sys.executable, str(tmp_path / "phf")])
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "path"),
    [
        ([sys.executable, "-m", "phf"], ""),
        (["phf"], os.pathsep),
        (["phf"], f".{os.pathsep}../traps{os.pathsep}/nowhere"),
    ],
    ids=["module", "empty", "relative"],
)
def test_what_python_itself_puts_on_the_path(tmp_path: Path, words: list[str], path: str) -> None:
    # Python starts before phf: phf cannot protect what Python itself imports, nor prevent a `phf` in the folder.
    with folder_of_traps(tmp_path, [*LIBRARIES, *PACKAGES[1:]]) as place:
        (place / "doc.py").write_text(CODE)
        done = run(place, [*words, "preview", "doc.py", *SCORERS, "--json"], PYTHONPATH=path)
        assert done.returncode == 0, done.stderr
        columns = json.loads(done.stdout)["documents"][0]["columns"]
        assert {name: each["scores"] for name, each in columns.items()} == SCORES


@pytest.mark.parametrize("package", ["pipeline", "training"])
def test_another_package_with_our_name_is_refused(tmp_path: Path, package: str) -> None:
    with folder_of_traps(tmp_path, [package]) as place:
        done = run(tmp_path, ["phf", "--version"], PYTHONPATH=str(place))
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert f"own package {package} " in done.stderr
        assert str(place / package) in done.stderr


def test_libraries_that_pythonpath_shadows_are_named(tmp_path: Path) -> None:
    (tmp_path / "sched.py").write_text("")
    (tmp_path / "yaml").mkdir()
    (tmp_path / "yaml" / "__init__.py").write_text("")
    # A folder that is not a package, so that the installed one is imported; and a module that shadows nothing.
    (tmp_path / "numpy").mkdir()
    (tmp_path / "mine.py").write_text("")
    done = run(tmp_path, ["phf", "--version"], PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert f"sched ({tmp_path / 'sched.py'}), yaml ({tmp_path / 'yaml' / '__init__.py'})." in done.stderr
    assert done.stderr.count("\n") == 1
    assert run(tmp_path, ["phf", "--version"]).stderr == ""


def test_a_child_finds_the_same_modules_as_its_parent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), "relative", "/installed"])
    monkeypatch.setenv("PYTHONPATH", "")
    assert interpreter.environment()["PYTHONPATH"] == f"{tmp_path}{os.pathsep}/installed"
    monkeypatch.setenv("PYTHONPATH", f"{os.pathsep}/x")
    assert interpreter.environment()["PYTHONPATH"] == "/installed"
    monkeypatch.setenv("PYTHONPATH", f"{os.pathsep}{tmp_path}")
    assert interpreter.environment()["PYTHONPATH"] == f"{tmp_path}{os.pathsep}/installed"
