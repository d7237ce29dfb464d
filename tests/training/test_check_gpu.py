"""The check of a GPU runs on a CPU with tiny sizes, goes on after a failure, and reports a missing GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.benchmarks import check_gpu
from tests.pages import ROOT


def run(*arguments: str, path: str = "") -> tuple[int, list[dict[str, object]]]:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "tests.benchmarks.check_gpu", "--device", "cpu", *arguments],
        env=os.environ | {"PYTHONPATH": f"{path}:{ROOT}".lstrip(":")},
        cwd="/",
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        timeout=300,
    )
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_a_failed_step_does_not_end_the_others(tmp_path: Path) -> None:
    (tmp_path / "profanity_check").mkdir()
    (tmp_path / "profanity_check" / "__init__.py").write_text("raise ImportError('broken here')")
    status, lines = run("--steps", "resume", "losses", path=str(tmp_path))
    assert [(line["step"], line["status"]) for line in lines] == [("resume", "failed"), ("losses", "passed")]
    assert status == 1
    assert "phf label ended with status" in str(lines[0]["error"])
    figures = lines[1]["figures"]
    assert isinstance(figures, dict)
    assert {name.partition(",")[0] for name in figures} == {*check_gpu.OBJECTIVES}


@pytest.mark.slow
def test_a_run_resumes_and_is_exported() -> None:
    status, lines = run("--steps", "resume", "evaluate")
    assert (status, [line["status"] for line in lines]) == (0, ["passed", "passed"]), lines


def test_no_step_begins_when_the_time_is_up() -> None:
    status, lines = run("--seconds", "1")
    assert status == 0
    assert {line["status"] for line in lines} == {"skipped"}
    assert [line["step"] for line in lines] == [*check_gpu.STEPS]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    assert check_gpu.main([]) == 2
    assert "make check-gpu needs a GPU" in capsys.readouterr().err
