"""What runs reach at equal compute, from stored samples alone, and the sections about it."""

import re
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats

from scorers.errors import UserError
from tests.training.run_folders import make_run
from training import statistics
from training.comparison.compute_section import _lines as lines_of
from training.comparison.compute_section import _sampled as sampled_of
from training.comparison.compute_section import compute_section
from training.comparison.differences import difference_ends
from training.comparison.equal_compute import Drawn, Means, reached, stored_samples, usable_sweep
from training.comparison.guidance_section import guidance_section
from training.comparison.line_panels import Line
from training.comparison.load import Comparison, load_comparison
from training.comparison.page import write_comparison
from training.evaluation.recommended_guidance import MOST_PERPLEXITY, half_facts
from training.runs.folder import RunFolder
from training.runs.guidance_report import (
    SCALE_SCHEMA,
    GuidanceReport,
    Recommendation,
    ScaleFacts,
    guidance_folder,
    scale_file,
)
from training.runs.report import REPORT_NAME, Estimate, read_report
from training.runs.tables import SAMPLES_NAME, write_table


def drawn_of(scores: Any, guidance: float | None = None) -> Drawn:
    ids = pa.chunked_array(
        [pa.array([[index, index + 1, index] for index in range(len(scores))], pa.list_(pa.int32()))]
    )
    return Drawn(guidance, ids, np.arange(len(scores)), np.asarray(scores, dtype=np.float64))


def write_sweep(folder: RunFolder, scale: float, factor: float, **changes: Any) -> None:
    """A finished sweep of plain sampling and a scale whose scores are those of the plain samples times a factor."""
    report = read_report(folder)
    assert report is not None
    plain = pq.read_table(folder.evaluation / SAMPLES_NAME)
    guidance_folder(folder).mkdir()
    scales = []
    for each, times in ((1.0, 1.0), (scale, factor)):
        scores = pa.array([None if score is None else score * times for score in plain["score"].to_pylist()])
        nothing = [pa.nulls(len(plain), field.type) for field in SCALE_SCHEMA][len(plain.column_names) :]
        columns = [scores if name == "score" else plain[name] for name in plain.column_names]
        table = pa.table([*columns, *nothing], schema=SCALE_SCHEMA)
        write_table(scale_file(folder, each), table)
        mean = Estimate.of(statistics.mean(scores.drop_null().to_numpy()))
        samples = report.samples.model_copy(update={"misalignment": mean})
        halves = [half_facts(table, first, 0.0) for first in (0, 1)]
        scales.append(ScaleFacts(scale=each, samples=samples, choosing=halves[0], reporting=halves[1]))
    sweep = GuidanceReport(
        created_by="phf 0.1.0", run=report.run, column=report.column, kind=report.kind, step=report.step,
        prompt=report.prompt, away=[0, 2049], config=report.config, device="cpu", scorer=report.scorer,
        most_perplexity=MOST_PERPLEXITY, scales=scales, finished=True, recommended=Recommendation(scale=scale),
    )  # fmt: skip
    (guidance_folder(folder) / REPORT_NAME).write_text(sweep.model_copy(update=changes).model_dump_json())


def test_plain_sampling_is_reported_by_all_samples_and_a_choice_by_the_odd_ones() -> None:
    scores = np.random.default_rng(0).gamma(1, 1, size=200)
    ways = [drawn_of(scores), drawn_of(scores / 4, guidance=2.0)]
    one = reached(ways, 0.1, 1)
    assert one is not None
    assert (one.means, one.compute, one.misalignment.value) == ("plain", 1, pytest.approx(scores.mean()))
    two = reached(ways, 0.0, 2)
    assert two is not None
    assert (two.means, two.compute) == ("g = 2", 2)
    assert two.misalignment.value == pytest.approx(scores[1::2].mean() / 4)
    four = reached(ways[:1], 0.0, 4)  # nothing is accepted at 0
    assert four is not None
    assert (four.means, four.compute) == ("best of 4", 4)
    assert four.misalignment.value == pytest.approx(np.sort(scores[1::2]) @ statistics.maximum_weights(100, 4)[::-1])
    # Every second sample is accepted, with a score far below what best-of-2 gives.
    mixed = np.where(np.arange(200) // 2 % 2, 9.0, 0.001)
    rejected = reached([drawn_of(mixed)], 0.5, 2)
    assert rejected is not None
    assert (rejected.means, rejected.compute, rejected.misalignment.value) == ("rejection", 2, pytest.approx(0.001))
    assert reached([drawn_of([])], 0.5, 4) is None


def test_distinct_2_is_of_kept_samples_from_disjoint_groups() -> None:
    scores = np.arange(40.0)[::-1]
    means = Means(drawn_of(scores), 4, 0.0)
    # The last of each group of four is kept: [3, 4, 3], [7, 8, 7], …: all their bigrams differ.
    assert means.distinct_2(10) == 1
    assert means.distinct_2(11) is None
    assert Means(drawn_of([]), 4, 0.0).distinct_2(1) is None


def test_the_likelihood_of_kept_samples_weighs_those_that_are_kept() -> None:
    drawn = Drawn(
        None, drawn_of([0.0, 1.0]).ids, np.arange(2), np.array([0.0, 1.0]), np.array([-2.0, -9.0]), np.ones(2)
    )
    assert Means(drawn, 2, 0.5).perplexity() == pytest.approx(np.exp(2))
    assert Means(drawn, 1, 0.5).perplexity() == pytest.approx(np.exp(5.5))
    assert Means(drawn, None, 0.5).perplexity() == pytest.approx(np.exp(2))


def test_the_interval_of_a_difference_covers_the_truth() -> None:
    generator, covered = np.random.default_rng(1), 0
    for _ in range(100):
        first, second = (Estimate.of(statistics.mean(generator.gamma(1, scale, size=80))) for scale in (1, 2))
        assert first is not None
        assert second is not None
        low, high = difference_ends(first, second)
        covered += low <= -1 <= high
    assert covered >= 87
    assert difference_ends(Estimate(value=1), Estimate(value=2)) == (-np.inf, np.inf)


def test_the_page_says_what_each_run_reaches_and_claims_no_more(tmp_path: Path) -> None:
    mle = make_run(tmp_path / "mle", "mle", scale=0.03, zeros=0)
    conditional = make_run(tmp_path / "conditional", "conditional", scale=0.02, zeros=0)
    without = load_comparison([mle.path, conditional.path])
    assert guidance_section(without) is None
    write_sweep(conditional, 3.0, 0.01)
    found = load_comparison([mle.path, conditional.path])
    section, guidance = compute_section(found), guidance_section(found)
    assert section is not None
    assert guidance is not None
    first, four, _ = section.findings[0].lines
    assert re.match(
        r"mle with best of 4 costs four times the sampling and reaches \S+ \(\S+ to \S+\); "
        r"conditional with g = 3 costs twice the sampling and reaches \S+ \(\S+ to \S+\)\. conditional is lower\.$",
        first,
    )
    assert "conditional is lowest (g = 3, best of 2)" in four
    cells = {row.label: [cell.small.split(" · ")[-1] for cell in row.cells] for row in section.tables[0].rows}
    assert cells["mle"] == ["plain", "best of 2", "best of 4", "best of 16"]
    assert cells["conditional"] == ["plain", "g = 3", "g = 3, best of 2", "g = 3, best of 8"]
    assert [cell.text for cell in guidance.tables[0].rows[1].cells][-1] == "recommended"
    page = write_comparison(found, tmp_path / "page").read_text()
    assert "At equal compute" in page
    assert "Recommended: g = 3" in page
    assert (tmp_path / "page" / "equal-compute.png").is_file()


def test_alike_runs_are_not_told_apart(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, name, scale=0.03, seed=seed) for seed, name in enumerate(("mle", "rwr", "awr"))]
    section = compute_section(load_comparison([run.path for run in runs]))
    assert section is not None
    assert "These samples do not distinguish it from" in " ".join(section.findings[0].lines)


def test_seeds_are_one_line_with_an_interval_over_them(tmp_path: Path) -> None:
    seeds = [
        make_run(tmp_path / f"{name}{seed}", name, scale=scale, seed=seed, training={"seed": seed})
        for name, scale in (("mle", 0.04), ("conditional", 0.02))
        for seed in (0, 1, 2)
    ]
    for run, scale in zip(seeds[3:], (3.0, 3.0, 2.0), strict=True):
        write_sweep(run, scale, 0.2)
    comparison = load_comparison([run.path for run in seeds])
    section = compute_section(comparison)
    assert section is not None
    assert [row.label for row in section.tables[0].rows] == ["mle", "conditional"]
    mle, conditional = section.tables[0].rows
    values = [run.scores.mean() for run in comparison.runs[:3]]
    half = stats.t.ppf(0.975, 2) * stdev(values) / 3**0.5
    assert float(mle.cells[0].text) == pytest.approx(fmean(values), rel=0.01)
    ends = [float(each) for each in mle.cells[0].small.removesuffix(" · plain").split("–")]
    assert ends == pytest.approx([fmean(values) - half, fmean(values) + half], rel=0.02)
    assert conditional.cells[1].small.endswith(" · g = 3 or g = 2")
    odd = [0.2 * read_table_scores(run)[1::2] for run in seeds[3:]]
    assert float(conditional.cells[1].text) == pytest.approx(fmean(np.nanmean(each) for each in odd), rel=0.01)
    plain = [Means(stored_samples(run, None)[0], 4, 0.0).value() for run in comparison.runs[:3]]
    lines = compute_lines(comparison)
    assert [line.label for line in lines] == ["mle", "conditional", "conditional, g = 3 or 2"]
    assert [compute for compute, _ in lines[2].points] == [2, 4, 8, 16]
    compute, four = lines[0].points[2]
    assert (compute, four.value) == (4, pytest.approx(fmean(value for value in plain if value is not None)))
    assert None not in (four.low, four.high)


def compute_lines(comparison: Comparison) -> list[Line]:
    sampled = [sampled_of(group) for group in comparison.groups if group.guidance is None]
    return lines_of(sampled, lambda means: means.value(), bars=True)


def read_table_scores(run: RunFolder) -> Any:
    return pq.read_table(run.evaluation / SAMPLES_NAME)["score"].to_numpy()


def test_groups_that_the_rule_finds_too_costly_do_not_win(tmp_path: Path) -> None:
    mle = make_run(tmp_path / "mle", "mle", scale=0.03, zeros=0)
    cheap = make_run(tmp_path / "rwr", "rwr", scale=0.02, zeros=0)
    costly = make_run(tmp_path / "filtering", "filtering", scale=0.001, zeros=0, bits=2.6)
    section = compute_section(load_comparison([mle.path, cheap.path, costly.path]))
    assert section is not None
    lines = section.findings[0].lines
    assert "rwr is lowest" in lines[1]
    assert lines[-1].startswith("Not considered, because the rule of this page")
    assert lines[-1].endswith(": filtering.")
    assert [row.label for row in section.tables[0].rows] == ["mle", "filtering", "rwr"]


@pytest.mark.parametrize("changes", [{"run": "0" * 16}, {"finished": False}, {"column": "style"}])
def test_a_sweep_of_another_state_is_not_used(tmp_path: Path, changes: dict[str, Any]) -> None:
    run = make_run(tmp_path / "conditional", "conditional", guided=0.004)
    write_sweep(run, 3.0, 0.01, **changes)
    (loaded,) = load_comparison([run.path]).runs
    assert usable_sweep(loaded) is None
    assert [each.guidance for each in stored_samples(loaded, None)] == [None, 2]


def test_a_damaged_sweep_is_one_message(tmp_path: Path) -> None:
    run = make_run(tmp_path / "conditional", "conditional")
    write_sweep(run, 3.0, 0.01)
    scale_file(run, 3.0).write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"g-3\.parquet is missing or damaged"):
        compute_section(load_comparison([run.path]))
