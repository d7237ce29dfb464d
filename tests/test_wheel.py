"""The wheel: other packages can type-check against it and run with it."""

import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.pages import ROOT

PACKAGES = ("scorers", "pipeline", "training", "infra")
SCORER = """\
import numpy as np

from scorers.contract import SemanticOptions
from scorers.fingerprint import fingerprint


class Options(SemanticOptions):
    mark: str = "!"


print(np.zeros(1), fingerprint("x", {}, revision=1))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("wheel")
    source = place / "source"
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "phf.py"):
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*command, "--wheel-dir", str(place), str(source)], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    (found,) = place.glob("phf-*.whl")
    return found


def test_every_package_is_marked_as_typed_and_tests_and_examples_are_left_out(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert [f"{package}/py.typed" in names for package in PACKAGES] == [True] * 4
    assert not [name for name in names if name.startswith(("tests", "scorers/examples"))]
    data = {"pipeline/dataset/card.md.j2", "training/comparison/page.css", "training/comparison/page.js"}
    data |= {f"infra/kubernetes/base/{job}/job.yaml" for job in ("label", "train", "train_on_ray")}
    assert data <= set(names)


@pytest.mark.slow
def test_a_scorer_in_another_package_type_checks_against_it(wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True, timeout=100)
    (packages,) = (environment / "lib").glob("python3*/site-packages")
    zipfile.ZipFile(wheel).extractall(packages)
    # Add the libraries that phf needs; a .pth file does not bring in editable installs.
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (tmp_path / "my_scorer.py").write_text(SCORER)
    options = ["--python-executable", str(environment / "bin" / "python"), "--cache-dir", str(tmp_path / "cache")]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", *options, "--config-file", "", "my_scorer.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
