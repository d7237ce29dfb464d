import json

import pytest
from typer.testing import CliRunner

from scorers import registry
from scorers.cli import app
from scorers.contract import Execution
from scorers.doctor.children import LostChildError, run_job
from scorers.doctor.machine import machine_facts
from scorers.doctor.report import places
from scorers.doctor.sample import sample
from scorers.doctor.trial import try_scorer
from scorers.fingerprint import file_sha256
from scorers.registry import ScorerSpec, resolve

BROKEN = """
import os, signal
from scorers.contract import SemanticOptions

class Options(SemanticOptions):
    how: str = "raise"

class BrokenScorer:
    Options, main_option, runs_on_gpu = Options, "how", False

    def __init__(self, name, options, execution):
        if options.how == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        raise ValueError("somebody's text")
"""


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """An installed package whose scorer cannot be built."""
    (tmp_path / "broken_scorer.py").write_text(BROKEN)
    info = tmp_path / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[phf.scorers]\nbroken = broken_scorer:BrokenScorer\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    registry._plugins.cache_clear()
    yield
    registry._plugins.cache_clear()


TORCH = {
    "version": "2.13.0",
    "cuda_build": "13.0",
    "threads": 8,
    "devices": [],
    "cpu_product_s": {"size": 512, "fp32": 1.0, "bf16": 0.6},
}


def test_every_requested_scorer_is_tried_and_one_that_cannot_run_gives_status_1(broken):
    asked = ["pep8", "toxicity=detoxify:/nowhere", "x=broken", "y=broken:crash"]
    options = [part for each in asked for part in ("--scorer", each)]
    result = CliRunner().invoke(app, ["doctor", *options, "--json", "--seconds", "0.05"])
    assert result.exit_code == 1, result.output
    report = json.loads(result.stdout)
    pep8, toxicity, raising, crashing = report["scorers"]
    assert pep8["problem"] is None
    assert pep8["found"]["libraries"].keys() == {"pycodestyle", "python"}
    assert pep8["found"]["device"] == "cpu"
    assert pep8["found"]["measured"]["failures"] == {}
    assert pep8["sentences_per_s"] > 100
    assert 1e7 < pep8["found"]["memory"] < 2e9
    assert "neither a published variant" in toxicity["problem"]
    assert raising["problem"] == "It fails: ValueError at broken_scorer.py:14."
    assert crashing["problem"] == "Its process was ended by SIGSEGV."
    assert {"toxicity", "x", "y"} <= report["remedies"].keys()
    assert report["machine"]["torch"]["version"]
    assert report["machine"]["cores"]["usable"] >= 1


def test_scorers_that_all_run_give_status_0_and_a_table():
    result = CliRunner().invoke(app, ["doctor", "--scorer", "given=column", "--seconds", "0.01"])
    assert result.exit_code == 0, result.output
    assert "given=column" in result.stdout
    assert "documents of prose" in result.stdout


def test_an_unknown_kind_is_wrong_usage():
    assert CliRunner().invoke(app, ["doctor", "--scorer", "toxicity=lienar"]).exit_code == 2


def test_weights_are_reported_by_place_and_hash(tiny_bert):
    checkpoint, folder = tiny_bert
    spec = resolve("toxicity", ScorerSpec(kind="detoxify", model=str(checkpoint), config=str(folder)))
    found = try_scorer("toxicity", spec, Execution(), 0.01)
    assert found["problem"] is None
    assert found["sha256"]["checkpoint"] == file_sha256(checkpoint)
    assert found["precision"] == "fp32"
    assert set(places(spec)) == {str(checkpoint), str(folder)}


def test_a_device_that_is_not_there_is_named(tiny_bert):
    checkpoint, folder = tiny_bert
    spec = resolve("toxicity", ScorerSpec(kind="detoxify", model=str(checkpoint), config=str(folder)))
    found = try_scorer("toxicity", spec, Execution(device="cuda:99"), 0.01)
    assert "no device 'cuda:99'" in found["problem"]


@pytest.mark.parametrize("kind", ["linear", "scrubadub"])
def test_models_that_come_with_packages_are_found(kind):
    (place,) = places(resolve("column", ScorerSpec(kind=kind)))
    assert place.startswith("/")


def test_a_process_that_takes_too_long_is_stopped():
    with pytest.raises(LostChildError, match=r"no result after 0\.01 s"):
        run_job({"what": "torch"}, patience_s=0.01)


@pytest.mark.parametrize(
    ("changed", "fact", "remedy"),
    [
        ({"problem": "Its process was ended by SIGILL."}, "torch", "pip install"),
        ({"version": None}, "torch", "pip install"),
        ({"cpu_product_s": {"size": 512, "fp32": 1.0, "bf16": 80.0}}, "bf16 on the CPU", "fp32"),
        (
            {"devices": [{"name": "T4", "compute_capability": "7.5", "memory": 16e9, "bf16": False}]},
            "gpus",
            "training.precision=fp16",
        ),
    ],
)
def test_each_problem_has_a_one_line_remedy(changed, fact, remedy):
    facts = {each.name: each for each in machine_facts(TORCH | changed)}
    assert remedy in facts[fact].remedy
    assert "\n" not in facts[fact].remedy


def test_a_healthy_torch_has_no_remedy():
    facts = {each.name: each for each in machine_facts(TORCH)}
    assert facts["torch"].remedy is None
    assert facts["bf16 on the CPU"].remedy is None
    assert "8 threads" in facts["torch"].text


def test_a_module_that_replaces_a_library_is_shown(monkeypatch, tmp_path):
    (tmp_path / "sched.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "import path" not in {each.name for each in machine_facts(TORCH)}
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    facts = {each.name: each for each in machine_facts(TORCH)}
    assert facts["import path"].data == {"sched": str(tmp_path / "sched.py")}
    assert f"sched ({tmp_path / 'sched.py'})" in facts["import path"].remedy


def test_a_full_folder_and_offline_variables_are_reported(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 10, "total": 100}))
    facts = {each.name: each for each in machine_facts(TORCH)}
    assert "TMPDIR" in facts["temporary files"].remedy
    assert facts["Hugging Face"].data["environment"] == {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}


@pytest.mark.parametrize("kind", ["prose", "python"])
def test_the_sample_is_real_text_that_does_not_change(kind):
    texts = list(sample(kind))
    assert texts == list(sample(kind))
    assert sum(map(len, texts)) > 300_000
    assert len(set(texts)) > 200
