"""The section about linear probes of the compare page."""

from typing import Any

import pytest

from scorers.errors import UserError
from tests.training.run_folders import make_run
from training.comparison.load import load_comparison
from training.comparison.page import write_comparison
from training.comparison.probe_section import probe_section
from training.runs.folder import RunFolder
from training.runs.probe_report import LayerFacts, ProbeFigures, ProbeReport, ProbeSentences, probe_path
from training.runs.report import Estimate, run_fingerprint


def write_probe(run: RunFolder, auc: float, /, **changes: Any) -> None:
    layers = [
        LayerFacts(layer=layer, auc=Estimate(value=auc - 0.1 + 0.05 * layer, low=0.5, high=1), logme=-0.3 + 0.1 * layer)
        for layer in (0, 1)
    ]
    report = ProbeReport(
        created_by="phf", run=run_fingerprint(run), settings="s", column="pep8", threshold=0, pooling="mean", folds=5,
        seed=0, step=1, held_out=900, misaligned=90, device="cpu",
        sentences=ProbeSentences(number=180, documents=40, fingerprint="f"),
        figures=ProbeFigures(best=Estimate(value=auc, low=auc - 0.1, high=auc + 0.1), chosen=[1] * 5, layers=layers),
    ).model_copy(update=changes)  # fmt: skip
    probe_path(run).write_text(report.model_dump_json())


def test_probes_are_shown_by_group_of_seeds(tmp_path):
    seeds = [make_run(tmp_path / f"mle-{seed}", "mle", training={"seed": seed}) for seed in (1, 2)]
    other = make_run(tmp_path / "awr", "awr", seed=1)
    paths = [run.path for run in (*seeds, other)]
    assert probe_section(load_comparison(paths)) is None
    for run, auc in zip(seeds, (0.7, 0.8), strict=True):
        write_probe(run, auc)
    write_probe(other, 0.6)
    section = probe_section(load_comparison(paths))
    (table,) = section.tables
    assert "older state" not in section.note
    # By hand: t of one degree of freedom is 12.7062, the standard error 0.05; no AUC is above 1.
    assert next((cell.text, cell.small) for cell in table.rows[0].cells) == ("0.750", "0.115–1.00")
    assert [cell.text for cell in table.rows[0].cells] == ["0.750", "0.650", "0.700", "−0.200"]
    assert next((cell.text, cell.small) for cell in table.rows[1].cells) == ("0.600", "0.500–0.700")
    page = write_comparison(load_comparison(paths), tmp_path / "out").read_text()
    assert "Preference in the hidden states" in page


def test_probes_of_other_states_and_sentences_are_named(tmp_path):
    mle, awr, rwr = (make_run(tmp_path / name, name) for name in ("mle", "awr", "rwr"))
    write_probe(mle, 0.7)
    write_probe(awr, 0.7, sentences=ProbeSentences(number=180, documents=40, fingerprint="other"))
    write_probe(rwr, 0.7, run="older")
    comparison = load_comparison([mle.path, awr.path, rwr.path])
    section = probe_section(comparison)
    assert "left out: rwr." in section.note
    assert "not all runs were probed on the same sentences" in section.note.lower()
    assert [row.label for row in section.tables[0].rows] == ["mle", "awr"]
    reason = "no scored sentence was held out of training."
    for run in (mle, awr, rwr):
        write_probe(run, 0.7, figures=None, sentences=None, not_measured=reason)
    section = probe_section(comparison)
    assert f"awr cannot be probed: {reason}" in section.note
    assert not section.tables
    probe_path(awr).write_text("{}")
    with pytest.raises(UserError, match=r"probe\.json.*--probe"):
        probe_section(comparison)
