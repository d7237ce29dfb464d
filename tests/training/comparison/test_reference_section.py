"""The section about references: distances by seed group, the front, and results of another state."""

import re
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pyarrow.parquet as pq
import pytest
from scipy import stats

from scorers.errors import UserError
from tests.training.run_folders import make_run
from training.comparison.load import load_comparison
from training.comparison.reference_section import reference_section
from training.comparison.section import Section
from training.comparison.style import Look
from training.runs.folder import RunFolder
from training.runs.reference_report import (
    DivergenceFacts,
    DrawnFacts,
    ReferenceFacts,
    ReferenceReport,
    UnderReferenceFacts,
    reference_path,
    samples_digest,
)
from training.runs.report import Estimate, read_report, run_fingerprint


def estimate(value: float) -> Estimate:
    return Estimate(value=value, low=value * 0.9, high=value * 1.1)


def write_distance(run: RunFolder, reference: RunFolder, kl: float | None, /, **changes: Any) -> ReferenceReport:
    """Store a distance from a reference, and the likelihood of the run's samples under it."""
    compared = {"texts": 300, "tokens": 900, "ended": 10, "reencoded": False}
    evaluation = read_report(run)
    assert evaluation is not None
    under = {}
    for place, name in enumerate(("samples", *(["guided"] if evaluation.guided else []))):
        table = pq.read_table(run.evaluation / f"{name}.parquet")
        under[name] = UnderReferenceFacts(
            **compared,
            samples=samples_digest(table["ids"].to_pylist(), table["ended"].to_pylist()),
            perplexity=estimate(20 + place),
            bits_per_byte=estimate(2 + place),
        )
    report = ReferenceReport(
        created_by="phf 0.1.0",
        run=run_fingerprint(run),
        name=reference.path.name,
        reference=ReferenceFacts(kind="run", place="x", fingerprint=run_fingerprint(reference), objective="mle"),
        drawn=DrawnFacts(reference_samples=300, reference_tokens=64, seed=0, max_tokens=64),
        prompt=[0],
        divergence=None if kl is None else DivergenceFacts(**compared, kl=estimate(kl), kl_per_token=estimate(kl / 3)),
        under_reference=under,
        device="cpu",
        seconds=1,
    ).model_copy(update=changes)
    path = reference_path(run, report.name)
    path.parent.mkdir(exist_ok=True)
    path.write_text(report.model_dump_json())
    return report


def section_of(*runs: RunFolder) -> Section | None:
    return reference_section(load_comparison([run.path for run in runs]))


def cells(section: Section | None, table: int = 0) -> dict[str, list[str]]:
    assert section is not None
    return {row.label: [cell.text for cell in row.cells] for row in section.tables[table].rows}


def findings(section: Section | None) -> dict[str, list[str]]:
    assert section is not None
    return {each.title: list(each.lines) for each in section.findings}


def test_distances_are_means_over_seeds_without_the_reference_itself(tmp_path: Path) -> None:
    seeds = {
        name: [
            make_run(tmp_path / f"{name}{seed}", name, scale=scale, seed=seed, training={"seed": seed})
            for seed in (0, 1, 2)
        ]
        for name, scale in (("mle", 0.04), ("conditional", 0.01))
    }
    reference = seeds["mle"][0]
    for run, kl in zip(seeds["mle"], (0.0, 0.3, 0.5), strict=True):
        write_distance(run, reference, kl)
    for run, kl in zip(seeds["conditional"], (1.0, 2.0, 6.0), strict=True):
        write_distance(run, reference, kl)
    section = section_of(*seeds["mle"], *seeds["conditional"])
    assert section is not None
    (table,), (plot,) = section.tables, section.plots
    assert (table.title, section.findings) == ("Distance from mle0 (mle)", [])
    mle, conditional = table.rows
    assert (mle.label, mle.cells[0].text, mle.cells[2].text) == ("mle", "0.400", "20.0")
    values = [1.0, 2.0, 6.0]
    half = stats.t.ppf(0.975, 2) * stdev(values) / 3**0.5
    assert conditional.cells[0].text == "3.00"
    low, high = (float(each.replace("−", "-")) for each in re.split("–| to ", conditional.cells[0].small))
    assert (low, high) == pytest.approx((fmean(values) - half, fmean(values) + half), rel=0.01)
    assert "The reference itself is left out of the KL of its seeds." in table.note
    assert plot.caption.endswith("A ring: by the rule of this page, no other is better than conditional.")
    assert "conditional: misalignment" in plot.description


def test_runs_of_a_group_that_are_each_the_reference_of_their_seed_are_one_reference(tmp_path: Path) -> None:
    mle, conditional = (
        [make_run(tmp_path / f"{name}{seed}", name, seed=seed, training={"seed": seed}) for seed in (0, 1, 2)]
        for name in ("mle", "conditional")
    )
    for own, run, kl in zip(mle, conditional, (1.0, 2.0, 6.0), strict=True):
        write_distance(run, own, kl)
    section = section_of(*mle, *conditional)
    assert section is not None
    (table,), (plot,) = section.tables, section.plots
    assert table.title == "Distance from mle of the same seed"
    assert {name: row[0] for name, row in cells(section).items()} == {"mle": "0", "conditional": "3.00"}
    assert "Not measured" not in table.note
    assert "conditional: misalignment" in plot.description
    # Other settings are apart, also here.
    drawn = DrawnFacts(reference_samples=99, reference_tokens=64, seed=0, max_tokens=64)
    for own, run in zip(mle, conditional, strict=True):
        write_distance(run, own, 3.0, drawn=drawn, name=f"{own.path.name}-99")
    section = section_of(*mle, *conditional)
    assert section is not None
    assert [each.title for each in section.tables] == [
        "Distance from mle of the same seed",
        "Distance from mle of the same seed (2)",
    ]
    for own, run in zip(mle, conditional, strict=True):
        reference_path(run, f"{own.path.name}-99").unlink()
    # A run that is compared with another seed too makes it a reference of its own.
    write_distance(conditional[0], mle[1], 4.0)
    section = section_of(*mle, *conditional)
    assert section is not None
    assert section.tables == []
    assert findings(section) == {
        "Not shown": [
            "mle of the same seed: of no objective were all seeds compared with it.",
            "mle1 (mle): of no objective were all seeds compared with it.",
        ]
    }


def test_guided_samples_have_a_likelihood_and_no_distance(tmp_path: Path) -> None:
    mle = make_run(tmp_path / "mle", "mle")
    guided = make_run(tmp_path / "conditional", "conditional", guided=0.002)
    other = make_run(tmp_path / "rwr", "rwr")
    write_distance(guided, mle, 2.0)
    # The reference need not be measured against itself.
    section = section_of(mle, guided)
    assert cells(section) == {
        "mle": ["0", "0", "–", "–"],
        "conditional": ["2.00", "0.667", "20.0", "2.00"],
        "conditional (g = 2)": ["–", "–", "21.0", "3.00"],
    }
    assert section is not None
    assert len(section.plots) == 1
    # With a run that was not measured there is no front, and the table names it.
    section = section_of(mle, guided, other)
    assert section is not None
    assert section.plots == []
    assert section.tables[0].note.endswith("Not measured: rwr.")
    assert "Guided samples come from another distribution" in section.tables[0].note


def test_other_settings_of_one_reference_are_apart(tmp_path: Path) -> None:
    mle, rwr, awr = (make_run(tmp_path / name, name) for name in ("mle", "rwr", "awr"))
    write_distance(rwr, mle, 1.0)
    drawn = DrawnFacts(reference_samples=99, reference_tokens=64, seed=0, max_tokens=64)
    write_distance(awr, mle, None, drawn=drawn, warnings=["KL is infinite."])
    section = section_of(mle, rwr, awr)
    assert cells(section, 0)["rwr"][0] == "1.00"
    assert "awr" not in cells(section, 0)
    assert cells(section, 1)["awr"] == ["–", "–", "20.0", "2.00"]
    assert section is not None
    assert [each.title for each in section.tables] == ["Distance from mle", "Distance from mle (2)"]
    assert findings(section) == {"Notes on the references": ["awr and mle (2): KL is infinite."]}


def test_results_of_another_state_are_named_and_not_shown(tmp_path: Path) -> None:
    mle, rwr, awr = (make_run(tmp_path / name, name) for name in ("mle", "rwr", "awr"))
    assert section_of(mle, rwr) is None
    write_distance(rwr, mle, 1.0, run="0" * 16)
    stale = section_of(mle, rwr)
    assert stale is not None
    assert (stale.plots, stale.tables) == ([], [])
    assert findings(stale) == {"Not shown": ["rwr and mle: the run was trained since."]}
    report = write_distance(awr, mle, 2.0)
    under = {name: each.model_copy(update={"samples": "0" * 16}) for name, each in report.under_reference.items()}
    write_distance(awr, mle, 2.0, under_reference=under)
    found = section_of(mle, awr)
    assert cells(found) == {"mle": ["0", "0"], "awr": ["2.00", "0.667"]}
    assert findings(found) == {
        "Not shown": ["awr and mle: the likelihood of samples, because others were drawn since."]
    }
    reference_path(awr, "mle").write_text("{}")
    with pytest.raises(UserError, match=r"mle\.json is damaged.*--reference"):
        section_of(mle, awr)


def test_names_from_reports_are_shown_as_they_are(tmp_path: Path) -> None:
    mle, rwr = make_run(tmp_path / "mle", "mle"), make_run(tmp_path / "rwr", "rwr")
    name = "<b>$x^2$</b>\x1b" + "y" * 300
    report = write_distance(rwr, mle, 1.0)
    reference_path(rwr, "mle").write_text(report.model_copy(update={"name": name}).model_dump_json())
    section = section_of(mle, rwr)
    assert section is not None
    title = section.tables[0].title
    assert title.startswith("Distance from <b>$x^2$</b>")
    assert "\x1b" not in title
    assert len(title) < 100
    assert section.plots[0].draw(Look(narrow=True)).svg


def test_nothing_is_called_better_where_no_run_can_be_judged(tmp_path: Path) -> None:
    # Worse than the frequencies of tokens.
    mle, rwr = (make_run(tmp_path / name, name, bits=9.0) for name in ("mle", "rwr"))
    for run, kl in ((mle, 0.5), (rwr, 1.0)):
        write_distance(run, mle, kl)
    section = section_of(mle, rwr)
    assert section is not None
    (plot,) = section.plots
    assert "better" not in plot.caption
