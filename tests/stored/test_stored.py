"""What an earlier version of phf wrote opens, resumes, verifies and compares (see README.md)."""

import io
import json
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from safetensors.numpy import load_file
from typer.testing import CliRunner

from phf import app
from pipeline.dataset import open_dataset
from scorers import registry, sentences
from scorers.errors import UserError
from tests.pipeline import here, probe
from tests.pipeline.label_job import data_hashes
from tests.stored.make import LABEL
from tests.training.jobs import figures, metrics
from training.comparison.findings import findings
from training.comparison.load import load_comparison
from training.data.cache import relocate_data
from training.loop.train import train
from training.runs import checkpoints
from training.runs.folder import RunFolder
from training.runs.report import EvaluationReport, read_report

ARCHIVES = sorted(Path(__file__).parent.glob("*.tar.gz"))
# Losses in fp32 differ between processors by less, because the stored runs were trained with `COMPARABLE`.
CLOSE: dict[str, Any] = {"rel": 1e-4, "abs": 1e-6}


@pytest.fixture(scope="module", params=ARCHIVES, ids=lambda path: path.name.removesuffix(".tar.gz"))
def stored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The unpacked folder, which is also the working directory; the scorer of its datasets is installed."""
    folder = tmp_path_factory.mktemp("stored")
    with tarfile.open(request.param) as archive:
        archive.extractall(folder, filter="data")
    probe.install(folder / "site-packages")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder / "site-packages"))
        patch.setenv(probe.LOG, str(folder / "scored.log"))
        registry._plugins.cache_clear()
        yield folder
    registry._plugins.cache_clear()


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("name", ["labelled", "twice"])
def test_a_dataset_opens_and_verifies(stored: Path, name: str) -> None:
    rows = here.rows_of(stored / name)
    texts = [json.loads(line) for path in sorted(stored.glob("corpus/*")) for line in path.read_text().splitlines()]
    assert [(row["doc_id"], row["text"]) for row in rows] == [
        (each["id"], each["text"]) for each in texts if probe.RAISE not in each["text"]
    ]
    assert all(row["style"] == pytest.approx(np.diff(row["ends"], prepend=0) / 1000) for row in rows)
    report = here.run("verify", name, "--inputs")
    assert (report["ok"], report["problems"], report["inputs_compared"]) == (True, [], True)
    assert here.run("status", name)["state"] == "sealed"
    manifest = open_dataset(name).manifest
    assert list(manifest.scorers) == (["style"] if name == "labelled" else ["style", "length"])
    assert manifest.ledger.quarantined == {"scorer-error": 1}
    assert "documents" in run("inspect", name)
    found = datasets.load_dataset(name, split="train", cache_dir=str(stored / "cache"))
    assert found.to_list() == rows


def test_a_half_labelled_job_resumes_to_the_same_dataset(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert here.run("status", "half")["committed"] == 3
    # Resume rightly refuses another version of spaCy, which is not what is tested.
    begun = json.loads(Path("half/job/config.json").read_text())["sentences"]
    monkeypatch.setattr(sentences, "fingerprint", lambda: begun)
    here.run(*LABEL, "--output", "half")
    scored = Path("scored.log").read_text().split()
    assert probe.key(here.rows_of("labelled")[0]["text"]) not in scored, "what is committed is not scored again"
    assert here.rows_of("half") == here.rows_of("labelled")
    now, then = (pq.read_metadata(stored / name / "data/0001/part-00000.parquet") for name in ("half", "labelled"))
    if now.created_by == then.created_by:
        assert data_hashes(Path("half")) == data_hashes(Path("labelled"))
    assert here.run("verify", "half", "--inputs")["ok"]
    assert here.run("label", *LABEL[1:], "--output", "labelled")["generation"] == 1


def test_a_dataset_is_retagged(stored: Path) -> None:
    here.run("retag", "twice", "--threshold", "style=p60")
    wanted = [row["style_aligned"] for row in here.rows_of("labelled")]
    assert [row["style_aligned"] for row in here.rows_of("twice")] == wanted
    assert here.run("verify", "twice")["ok"]


def test_a_document_is_purged_and_a_run_on_it_does_not_resume(stored: Path) -> None:
    shutil.copytree("labelled", "purged")
    assert here.run("purge", "purged", "--doc-id", "0-3")["documents"] == 1
    kept = [row["doc_id"] for row in here.rows_of("labelled") if row["doc_id"] != "0-3"]
    assert [row["doc_id"] for row in here.rows_of("purged")] == kept
    assert here.run("verify", "purged", "--inputs")["ok"]
    config = RunFolder(Path("stopped")).read_config()
    config = config.model_copy(update={"data": relocate_data(config.data, "purged")})
    with pytest.raises(UserError, match=r"(?s)documents purged from purged: 0 in the run, 1 now.*--init-from"):
        train(config, Console(file=io.StringIO()))


def test_a_stopped_run_resumes_to_the_figures_of_an_undisturbed_one(stored: Path) -> None:
    folder, whole = RunFolder(Path("stopped")), RunFolder(Path("conditional"))
    facts, stores = folder.read_facts(), sorted(Path("labelled.tokens").iterdir())
    assert (facts.status, facts.step) == ("stopped", checkpoints.steps(folder.checkpoints)[-1])
    config = folder.read_config()
    config = config.model_copy(update={"data": relocate_data(config.data, None)})
    printed = io.StringIO()
    assert train(config, Console(file=printed, width=200)).status == "finished"
    assert f"step {facts.step} of 16" in printed.getvalue()
    assert sorted(Path("labelled.tokens").iterdir()) == stores, "the stored tokens are used"
    assert flat(figures(folder.path)) == pytest.approx(flat(figures(whole.path)), **CLOSE)
    validated, expected = (
        [line["validation"]["loss"] for line in metrics(each.path) if "validation" in line] for each in (folder, whole)
    )
    assert validated == pytest.approx(expected, **CLOSE)
    same_weights(folder.model, whole.model)


def test_the_model_of_a_checkpoint_is_exported(stored: Path) -> None:
    folder = RunFolder(Path("conditional"))
    (path,) = folder.checkpoints.glob("step-*")
    found = checkpoints.verify(path)
    assert isinstance(found, checkpoints.Checkpoint)
    assert found.marker.step == 16
    run("export-model", "conditional")
    same_weights(folder.exports / "step-00000016", folder.model)


def test_runs_are_compared_by_their_stored_reports(stored: Path) -> None:
    found = load_comparison(["conditional", "mle"])
    assert [each.label for each in found.runs] == ["mle", "conditional"]
    assert (found.baseline.label, found.paired, found.mismatches) == ("mle", True, [])
    for each in found.runs:
        assert each.report == report(each.label)
        assert len(each.scores) == each.report.samples.scored
        assert each.metrics[-1]["step"] == each.facts.step == 16
    assert findings(found)


def test_a_stored_model_is_evaluated_again(stored: Path) -> None:
    before = report("conditional")
    run("evaluate", "conditional")
    now = report("conditional")
    assert (now.run, now.samples.number) == (before.run, before.samples.number)
    assert before.held_out is not None
    assert now.held_out is not None
    assert now.held_out.fingerprint == before.held_out.fingerprint
    assert now.held_out.bits_per_byte.value == pytest.approx(before.held_out.bits_per_byte.value, **CLOSE)


def report(name: str) -> EvaluationReport:
    found = read_report(RunFolder(Path(name)))
    assert found is not None
    return found


def flat(rows: list[tuple[float, ...]]) -> list[float]:
    return [value for row in rows for value in row]


def same_weights(folder: Path, other: Path) -> None:
    found, wanted = (load_file(each / "model.safetensors") for each in (folder, other))
    assert found.keys() == wanted.keys()
    for name, array in found.items():
        np.testing.assert_allclose(array, wanted[name], rtol=1e-3, atol=1e-5, err_msg=name)
