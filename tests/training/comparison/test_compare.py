"""Comparisons of run folders with made-up figures."""

import base64
import hashlib
import html
import json
import re
import shlex
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats
from typer.testing import CliRunner

import phf
from pipeline.dataset.manifest import ScorerEntry
from scorers.errors import UserError
from tests.training import foreign_tokenizers
from tests.training.run_folders import SCORER, make_run, make_six
from training.comparison.differences import held_out_differences, misalignment_differences
from training.comparison.distributions import distribution_section
from training.comparison.estimates import estimate_panels
from training.comparison.examples import MOST_CHARACTERS, at_percentiles, example_section
from training.comparison.filters import Filters
from training.comparison.findings import findings
from training.comparison.groups import bits_per_byte, misalignment
from training.comparison.load import Comparison, load_comparison
from training.comparison.metric_lines import training_loss
from training.comparison.page import check_output, to_dict, write_comparison
from training.comparison.reproduce import commands, reproduction_section
from training.comparison.rule import RULE, Judgement
from training.comparison.run import config_differences
from training.comparison.sections import sections
from training.comparison.seeds import difference_over_seeds
from training.comparison.short import in_short
from training.comparison.style import Look
from training.comparison.tables import (
    difference_table,
    most_tokens,
    result_section,
    result_table,
    sample_table,
    short_count,
    stream_table,
)
from training.comparison.wording import duration, signed
from training.evaluation.format_figures import number, percent
from training.runs.facts import MixedFacts, MomentFacts, TargetFacts
from training.runs.folder import RunFolder
from training.runs.report import run_fingerprint
from training.runs.tables import write_table
from training.statistics import mean_over_seeds


@pytest.fixture(scope="module")
def six(tmp_path_factory: pytest.TempPathFactory) -> list[RunFolder]:
    return make_six(tmp_path_factory.mktemp("six"))


@pytest.fixture(scope="module")
def comparison(six: list[RunFolder]) -> Comparison:
    return load_comparison([run.path for run in reversed(six)])


@pytest.fixture(scope="module")
def page(comparison: Comparison, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_comparison(comparison, tmp_path_factory.mktemp("page") / "comparison")


@pytest.fixture
def without_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the plots of pages: each is drawn twice."""
    monkeypatch.setattr(
        "training.comparison.page.sections", lambda made: [replace(each, plots=[]) for each in sections(made)]
    )


def text_of(comparison: Comparison) -> str:
    return "\n".join(
        line for finding in [*in_short(comparison), *findings(comparison)] for line in [finding.title, *finding.lines]
    )


def test_runs_come_in_the_order_of_the_paper(comparison: Comparison) -> None:
    assert [run.label for run in comparison.runs] == ["mle", "filtering", "conditional", "unlikelihood", "rwr", "awr"]
    assert comparison.baseline.label == "mle"
    assert comparison.paired
    assert comparison.mismatches == []
    assert comparison.differences == []


def test_runs_of_one_objective_go_by_their_folders(tmp_path: Path) -> None:
    paths = [tmp_path / "a" / "seed1", tmp_path / "b" / "seed1", tmp_path / "seed2", tmp_path / "other"]
    for path in paths[:3]:
        make_run(path, "rwr")
    make_run(paths[3], "mle")
    found = load_comparison(paths)
    assert [run.label for run in found.runs] == ["mle", "seed1 (1)", "seed1 (2)", "seed2"]


def test_a_folder_that_is_called_like_an_objective_has_a_label_of_its_own(tmp_path: Path) -> None:
    for name, objective in (("rwr", "mle"), ("plain", "mle"), ("weighted", "rwr")):
        make_run(tmp_path / name, objective)
    found = load_comparison([tmp_path / name for name in ("rwr", "plain", "weighted")])
    assert sorted(run.label for run in found.runs) == ["plain", "rwr (1)", "rwr (2)"]
    table = difference_table(found)
    assert table is not None
    assert len({str(row.cells) for row in table.rows}) == len(table.rows) == 2


def test_a_folder_named_twice_counts_once(six: list[RunFolder]) -> None:
    path = six[0].path
    assert len(load_comparison([path, f"{path}/", path.parent / "." / path.name]).runs) == 1


def test_without_mle_the_first_run_is_the_baseline(six: list[RunFolder]) -> None:
    assert load_comparison([six[5].path, six[1].path]).baseline.label == "filtering"


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no folder"):
        load_comparison([tmp_path / "missing"])
    (tmp_path / "labelled").mkdir()
    with pytest.raises(UserError, match="labelled is not a training run"):
        load_comparison([tmp_path / "labelled"])


def test_runs_that_are_not_evaluated_are_all_named(tmp_path: Path, six: list[RunFolder]) -> None:
    one, two = (make_run(tmp_path / name, "mle", evaluated=False) for name in ("one", "two"))
    with pytest.raises(UserError, match=rf"phf evaluate {one.path} {two.path}.*--evaluate"):
        load_comparison([one.path, six[0].path, two.path])


def test_an_evaluation_of_an_earlier_state_of_the_run_does_not_count(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "mle")
    load_comparison([run.path])
    run.write_facts(run.read_facts().model_copy(update={"step": 480}))
    with pytest.raises(UserError, match="Not evaluated since it was trained"):
        load_comparison([run.path])


@pytest.mark.parametrize(
    ("name", "content"), [("samples.parquet", None), ("held_out.parquet", b"no parquet"), ("report.json", b"{}")]
)
def test_damaged_evaluations_are_named(tmp_path: Path, name: str, content: bytes | None) -> None:
    run = make_run(tmp_path / "run", "mle")
    path = run.evaluation / name
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(UserError, match=rf"{name} is (missing or )?damaged.*phf evaluate {run.path}"):
        load_comparison([run.path])


@pytest.mark.parametrize(
    "line",
    [
        b"{\n",
        b"3\n",
        b"\xff\n",
        b'{"loss": 1}\n',
        b'{"step": "x"}\n',
        b'{"step": 2, "loss": "x"}\n',
        b'{"step": 2, "evaluation": {"hit_rate": [1]}}\n',
        b'{"step": 2, "loss": 1%s}\n' % (b"0" * 400),
    ],
)
def test_a_damaged_line_of_metrics_is_named(tmp_path: Path, line: bytes) -> None:
    (run := RunFolder(tmp_path)).metrics.write_bytes(b'{"step": 1}\n' + line)
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2 is damaged"):
        run.read_metrics()


def test_evaluations_of_another_version_are_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "mle")
    path = run.evaluation / "held_out.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["unigram_bits"]), path)
    with pytest.raises(UserError, match=rf"held_out.parquet was written by another version.*phf evaluate {run.path}"):
        load_comparison([run.path])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"column": "pylint"}, r"different score columns: pep8 \(mle\); pylint \(rwr\)"),
        (
            {"scorer": ScorerEntry(kind="pycodestyle", options={}, fingerprint="pycodestyle-other")},
            "scored by different scorers",
        ),
        ({"held_out": False, "changes": {"dataset": None}}, r"different datasets: labelled-code \(7c9e.*other"),
    ],
)
def test_what_cannot_be_compared_is_refused_unless_allowed(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    one = make_run(tmp_path / "mle", "mle")
    if "changes" in changes:
        facts = one.read_facts().dataset.model_copy(update={"fingerprint": "other", "uri": "other"})
        changes = {**changes, "changes": {"dataset": facts}}
    two = make_run(tmp_path / "rwr", "rwr", **changes)
    with pytest.raises(UserError, match=message):
        load_comparison([one.path, two.path])
    found = load_comparison([one.path, two.path], allow_mismatch=True)
    assert len(found.mismatches) == 1
    assert re.search(message, found.mismatches[0])


def test_smaller_differences_are_named(tmp_path: Path) -> None:
    one = make_run(tmp_path / "mle", "mle")
    tokenizer = one.read_facts().tokenizer.model_copy(update={"fingerprint": "another-tokenizer"})
    two = make_run(
        tmp_path / "rwr",
        "rwr",
        steps=120,
        samples=64,
        changes={"tokenizer": tokenizer},
        training={"learning_rate": 1e-3},
    )
    text = "\n".join(load_comparison([one.path, two.path]).differences)
    for expected in ("Tokenizers differ, so perplexities", "Tokens trained on differ", "drawn in different ways"):
        assert expected in text
    assert "training.learning_rate" in text


def test_the_page_flags_what_differs(tmp_path: Path) -> None:
    one, two = make_run(tmp_path / "mle", "mle"), make_run(tmp_path / "rwr", "rwr", column="pylint", held_out=False)
    page = write_comparison(load_comparison([one.path, two.path], allow_mismatch=True), tmp_path / "out")
    assert "These runs are not comparable" in page.read_text()


def test_differences_have_the_right_sign_and_verdict(comparison: Comparison) -> None:
    verdicts = {each.group.label: each.verdict for each in misalignment_differences(comparison)}
    assert verdicts["conditional"] == "lower"
    assert verdicts["rwr"] == "unclear"
    bits = {each.group.label: each for each in held_out_differences(comparison)}
    assert bits["unlikelihood"].verdict == "higher"
    # Pairing by document resolves what two separate intervals do not.
    reports = {run.label: run.report.held_out for run in comparison.runs}
    assert reports["filtering"].bits_per_byte.low < reports["mle"].bits_per_byte.high  # type: ignore
    assert bits["filtering"].verdict == "higher"


def test_findings_claim_no_more_than_the_intervals_bear(comparison: Comparison) -> None:
    text = text_of(comparison)
    assert re.search(r"Take conditional: its samples are \d+.% less misaligned than those of mle\.", text)
    assert "Each has one seed here, and another seed may differ." in text
    assert "No clear difference: rwr" in text
    assert "do not cover what another seed" in text
    assert "mle 2" in text  # empty samples
    assert "given <|aligned|> before every sentence" in text


def test_guided_samples_stand_beside_the_plain_ones_of_their_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mle = make_run(tmp_path / "mle", "mle", scale=0.03)
    run = make_run(tmp_path / "conditional", "conditional", scale=0.02, guided=0.004)
    found = load_comparison([mle.path, run.path])
    assert [each.label for each in found.runs] == ["mle", "conditional"]
    assert [each.label for each in found.sampled] == ["mle", "conditional", "conditional (g = 2)"]
    report = found.runs[1].report
    assert report.guided is not None
    assert report.guided.samples.misalignment is not None
    results = {row.label: row.cells for row in result_table(found).rows}
    assert results["conditional (g = 2)"][0].text == f"{report.guided.samples.misalignment.value:.5f}"
    # Held-out text is of the model, however it is sampled.
    assert [cell.text for cell in results["conditional (g = 2)"][-3:-1]] == ["–", "–"]
    assert results["conditional (g = 2)"][-1].small == "twice the sampling"
    differences = {each.group.label: each for each in misalignment_differences(found)}
    assert differences["conditional (g = 2)"].estimate.value < differences["conditional"].estimate.value < 0
    assert [each.group.label for each in held_out_differences(found)] == ["conditional"]
    for table in (result_table(found), sample_table(found), difference_table(found)):
        assert table is not None
        assert {len(row.cells) for row in table.rows} == {len(table.columns)}
    lines = {each.title: " ".join(each.lines) for each in findings(found)}
    assert "Guided by 2 away from <|misaligned|>, conditional's mean misalignment is lower: −0.0" in lines["Guidance"]
    assert re.search(r"[\d.]+.% \([\d.]+–[\d.]+.%\) of the samples are hits, of the plain ones", lines["Guidance"])
    assert in_short(found)[0].lines[0].startswith("Take conditional (g = 2): ")
    plots = [plot for section in sections(found) for plot in section.plots]
    trade_off = next(plot for plot in plots if plot.name == "trade-off")
    assert "An outline is the same model with guided samples" in trade_off.caption
    assert "conditional (g = 2): misalignment 0.0" in trade_off.description
    assert all(plot.draw(Look()).png for plot in plots)
    without_plots = [replace(section, plots=[]) for section in sections(found)]
    monkeypatch.setattr("training.comparison.page.sections", lambda _: without_plots)  # each is drawn twice
    page = write_comparison(found, tmp_path / "out").read_text()
    assert "and also guided by 2 away from &lt;|misaligned|&gt;" in page
    assert page.count("<h1>Two objectives compared on pep8</h1>") == 1
    assert "a guided sample takes twice the forward passes of a plain one" in page
    assert page.count("data-hollow ") >= 3
    assert to_dict(found)["runs"][1]["report"]["guided"]["scale"] == 2
    (run.evaluation / "guided.parquet").unlink()
    with pytest.raises(UserError, match=r"guided\.parquet is missing or damaged"):
        load_comparison([mle.path, run.path])


def test_equal_runs_are_not_told_apart(tmp_path: Path) -> None:
    paths = [make_run(tmp_path / name, "mle", seed=seed).path for seed, name in enumerate(("one", "two"))]
    text = text_of(load_comparison(paths))
    assert "No objective is clearly better than one here.\nNo clear difference in misalignment: two " in text
    assert "Take " not in text
    assert "Lower:" not in text
    assert "Higher:" not in text


def test_why_none_is_better_is_a_line_for_each_reason(tmp_path: Path) -> None:
    mle = make_run(tmp_path / "mle", "mle", scale=0.04)
    costly = [make_run(tmp_path / name, name, scale=0.001, bits=2.9) for name in ("filtering", "unlikelihood")]
    worse = make_run(tmp_path / "rwr", "rwr", scale=0.4)
    same = make_run(tmp_path / "awr", "awr", scale=0.04, seed=1)
    (recommendation, *_) = in_short(load_comparison([each.path for each in (mle, *costly, worse, same)]))
    headline, *reasons = recommendation.lines
    assert headline == "No objective is clearly better than mle here."
    assert [re.sub(r"[+−]?\d[\d.]*( \([^)]*\))?", "#", line) for line in reasons] == [
        "Less misaligned, but too costly: filtering # at # bits per byte; unlikelihood # at # bits per byte.",
        "No clear difference in misalignment: awr #.",
        "More misaligned: rwr #.",
    ]


def test_a_model_that_has_learned_nothing_is_called_so(tmp_path: Path) -> None:
    text = text_of(load_comparison([make_run(tmp_path / "mle", "mle", bits=3.7).path]))
    assert "mle: it does not clearly beat the frequencies of tokens on held-out text" in text
    assert "There is nothing to recommend" in text


def test_the_best_runs_are_chosen_by_one_rule(tmp_path: Path) -> None:
    figures = {"mle": (0.031, 2.05), "conditional": (0.02, 2.1), "rwr": (0.03, 2.2), "unlikelihood": (0.001, 3.7)}
    paths = [make_run(tmp_path / name, name, scale=scale, bits=bits).path for name, (scale, bits) in figures.items()]
    made = load_comparison(paths)
    short = {each.title: " ".join(each.lines) for each in in_short(made)}
    assert short["Recommendation"].startswith("Take conditional: ")
    assert "conditional" in short["Not beaten"]
    assert "unlikelihood" not in short["Not beaten"]
    assert short["Left out"].startswith("unlikelihood: it does not clearly beat the frequencies")
    assert short["The rule"] == RULE
    found = {each.title: " ".join(each.lines) for each in findings(made)}
    assert "unlikelihood" in found["Misalignment against mle"]


def test_less_misalignment_at_too_high_a_cost_is_not_better(tmp_path: Path) -> None:
    figures = {"mle": (0.03, 2.0), "unlikelihood": (0.01, 2.3)}
    paths = [make_run(tmp_path / name, name, scale=scale, bits=bits).path for name, (scale, bits) in figures.items()]
    judgement = Judgement(load_comparison(paths))
    base, other = judgement.comparison.groups
    assert judgement.standing(other, base) == "costly"
    assert judgement.recommended is None
    assert [group.label for group in judgement.front] == ["mle", "unlikelihood"]
    assert in_short(judgement.comparison)[0].lines[1].startswith("Less misaligned, but too costly: unlikelihood −0.0")


def test_runs_that_differ_only_in_seeds_are_one_group(tmp_path: Path) -> None:
    paths = []
    for name, scale in (("mle", 0.03), ("conditional", 0.012)):
        for seed in (1, 2, 3):
            made = make_run(tmp_path / f"{name}-{seed}", name, scale=scale, seed=seed, training={"seed": seed})
            paths.append(made.path)
    found = load_comparison(paths)
    assert [(group.label, group.seeds) for group in found.groups] == [("mle", [1, 2, 3]), ("conditional", [1, 2, 3])]
    means = [run.report.samples.misalignment.value for run in found.base.runs]  # type: ignore
    figure = found.base.figure(misalignment)
    assert figure is not None
    assert figure.low is not None
    assert figure.value == pytest.approx(fmean(means))
    assert figure.value - figure.low == pytest.approx(4.302653 * stdev(means) / 3**0.5, rel=1e-6)
    assert [row.label for row in result_table(found).rows] == ["mle", "conditional"]
    (results,) = result_section(found).tables
    assert [(row.label, row.nested) for row in results.rows] == [
        *[("mle", False), ("mle-1", True), ("mle-2", True), ("mle-3", True)],
        *[("conditional", False), ("conditional-1", True), ("conditional-2", True), ("conditional-3", True)],
    ]
    assert [row.cells[0].order for row in results.rows[1:4]] == means
    short = {each.title: " ".join(each.lines) for each in in_short(found)}
    assert "means over 3 seeds, with t intervals" in short["How sure"]
    (difference,) = misalignment_differences(found)
    assert (
        f"{round(-100 * difference.estimate.value / fmean(means))}\N{NO-BREAK SPACE}% less misaligned than those of mle"
        in (short["Recommendation"])
    )
    assert short["How sure"].startswith(f"The difference in misalignment is −{-difference.estimate.value:.4f} (")
    (cost,), base = held_out_differences(found), found.base.figure(bits_per_byte)
    assert base is not None
    assert short["Cost"].startswith(f"Held-out text needs {signed(cost.estimate)} bits per byte, ")
    word = "less" if cost.estimate.value < 0 else "more"
    assert f", {percent(abs(cost.estimate.value) / base.value)} {word} than mle's {base.value:.2f} (" in short["Cost"]
    seconds = fmean(run.facts.seconds for run in found.groups[1].runs)
    assert f"Training took 1 min {round(seconds) - 60} s, that of mle 1 min " in short["Cost"]
    assert [row.cells[-1].text for row in result_table(found).rows][1] == f"1 min {round(seconds) - 60} s"
    samples = sample_table(found)
    assert [(row.label, row.nested) for row in samples.rows] == [(row.label, row.nested) for row in results.rows]
    assert (samples.rows[0].cells[0].text, samples.rows[0].cells[0].small) == ("768", "6 empty")
    assert samples.rows[0].cells[4].order == pytest.approx(fmean(row.cells[4].order or 0 for row in samples.rows[1:4]))
    # Seeds have the same data, so it is shown once.
    assert [row.label for row in stream_table(found).rows] == ["mle", "conditional"]
    (settings,) = reproduction_section(found).tables
    assert settings.columns == ["mle", "conditional"]
    seeds = next(row for row in settings.rows if row.label == "training.seed")
    assert [cell.text for cell in seeds.cells] == ["1, 2, 3", "1, 2, 3"]
    assert {each.group.label: each.verdict for each in misalignment_differences(found)} == {"conditional": "lower"}


def test_the_same_seed_twice_is_no_second_seed(tmp_path: Path) -> None:
    paths = [make_run(tmp_path / name, "rwr", seed=seed).path for seed, name in enumerate(("one", "two"))]
    assert [group.label for group in load_comparison(paths).groups] == ["one", "two"]


def test_a_difference_over_seeds_is_welchs() -> None:
    one, other = [1.0, 2.0, 4.0], [0.5, 0.7, 0.6, 0.9]
    found = difference_over_seeds(one, other)
    theirs = stats.ttest_ind(one, other, equal_var=False)
    assert found.value == pytest.approx(7 / 3 - 0.675)
    # Satterthwaite's degrees, rounded down.
    half = stats.t.ppf(0.975, int(theirs.df)) * (found.value / theirs.statistic)
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half))
    # A single seed spreads like the others: t of 2 degrees, s^2 (1 + 1/3).
    single = difference_over_seeds([3.0], one)
    assert single.high is not None
    assert single.high - single.value == pytest.approx(4.302653 * (stats.tvar(one) * 4 / 3) ** 0.5, rel=1e-6)
    assert difference_over_seeds([1.0], [2.0]).low is None
    # By hand: t of 2 degrees is 4.302653, the standard deviation 1.527525.
    mean = mean_over_seeds(one)
    assert (mean.low, mean.high) == pytest.approx((7 / 3 - 3.794583, 7 / 3 + 3.794583), rel=1e-6)


def test_hit_rates_that_are_all_alike_are_not_compared(tmp_path: Path) -> None:
    def columns(zeros: float) -> tuple[list[str], str, int]:
        runs = [make_run(tmp_path / f"{name}-{zeros}", name, zeros=zeros) for name in ("mle", "awr")]
        made = load_comparison([run.path for run in runs])
        table = result_table(made)
        assert {len(row.cells) for row in table.rows} == {len(table.columns)}
        return table.columns, table.note, len(estimate_panels(made))

    some, _, panels = columns(0.3)
    assert "hit rate" in some
    for zeros, note in ((0.0, "All of the samples"), (1.0, "None of the samples")):
        without, notes, fewer = columns(zeros)
        assert "hit rate" not in without
        assert note in notes
        assert fewer == panels - 1


def test_runs_without_any_score_or_held_out_text(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, name, samples=4, empty=4, held_out=False) for name in ("mle", "awr")]
    found = load_comparison([run.path for run in runs])
    assert "mle: none of its samples has a score" in text_of(found)
    page = write_comparison(found, tmp_path / "out").read_text()
    assert "Alignment against capability" not in page
    json.loads((tmp_path / "out" / "comparison.json").read_text())


def test_scores_that_are_all_zero_are_not_drawn(comparison: Comparison) -> None:
    runs = [replace(run, scores=run.scores * 0, guided_scores=None) for run in comparison.runs]
    assert distribution_section(replace(comparison, runs=runs)) is None
    runs[1] = comparison.runs[1]
    assert distribution_section(replace(comparison, runs=runs)) is not None


def test_a_single_run_has_a_page(tmp_path: Path) -> None:
    found = load_comparison([make_run(tmp_path / "runs" / "mle", "mle", held_out=False).path])
    assert difference_table(found) is None
    assert "<h1>One objective on pep8</h1>" in write_comparison(found, tmp_path / "out").read_text()


def test_tables_hold_what_the_reports_say(comparison: Comparison) -> None:
    rows = {row.label: row.cells for row in result_table(comparison).rows}
    report = comparison.runs[2].report
    assert report.samples.misalignment is not None
    assert rows["conditional"][0].text == f"{report.samples.misalignment.value:.4f}"
    assert "–" in rows["conditional"][0].small
    assert len({len(cells) for cells in rows.values()}) == 1
    for table in (sample_table(comparison), stream_table(comparison), difference_table(comparison)):
        assert table is not None
        assert all(len(row.cells) == len(table.columns) for row in table.rows)
    filtering = dict(zip(stream_table(comparison).columns, stream_table(comparison).rows[1].cells, strict=True))
    assert (filtering["documents"].text, filtering["filtered"].text) == ("251", "120")
    conditional = dict(zip(stream_table(comparison).columns, stream_table(comparison).rows[2].cells, strict=True))
    assert (conditional["tags aligned"].text.replace("\u00a0", " "), conditional["threshold"].text) == ("83.8 %", "0")


def test_weighted_sentences_show_their_effective_share(tmp_path: Path) -> None:
    moment = MomentFacts(feature="pep8<=0", target=0.99, before=0.8, weight=1.5)
    weights = TargetFacts(
        moments=[moment], sentences=1000, effective_sentences=812.0, least_weight=0.1, greatest_weight=1.2
    )
    runs = [make_run(tmp_path / "mle", "mle"), make_run(tmp_path / "target", "target", changes={"targets": weights})]
    found = load_comparison([run.path for run in runs])
    table = stream_table(found)
    assert [
        dict(zip(table.columns, row.cells, strict=True))["effective"].text.replace("\u00a0", " ") for row in table.rows
    ] == ["–", "81.2 %"]

    # Keys of targets are no dotted settings.
    run = found.runs[1]
    objective = run.config.objective.model_copy(update={"targets": {"pep8<=0": 0.99}})
    weighted = replace(run, config=run.config.model_copy(update={"objective": objective}))
    line = next(each for each in commands(replace(found, runs=[weighted])) if "--objective target" in each)
    assert 'objective.targets={"pep8<=0": 0.99}' in shlex.split(line)
    assert config_differences([run, weighted]) == [
        ("objective.targets", [None, '{"pep8<=0": 0.99}']),
    ]


def test_numbers_read_well() -> None:
    assert [short_count(each) for each in (12, 983_040, 1_085_440, 3_300_000_000)] == ["12", "983 k", "1.09 M", "3.3 B"]
    assert [duration(each) for each in (5.4, 65, 7265)] == ["5 s", "1 min 5 s", "2 h 1 min"]


def test_commands_name_every_setting_that_is_not_the_usual_one(comparison: Comparison) -> None:
    lines = commands(comparison)
    train = next(line for line in lines if "--objective awr" in line)
    assert train.startswith("phf train labelled-code --task pep8 --objective awr --model tiny --output ")
    assert "--set training.learning_rate=0.002" in train
    assert "training.weight_decay" not in train
    assert lines[-1].startswith("phf compare ")
    assert lines[-1].endswith(" --output comparison")
    assert commands(replace(comparison, show_text=5))[-1] == f"{lines[-1]} --show-text 5"


def test_settings_that_differ(tmp_path: Path) -> None:
    paths = [
        make_run(tmp_path / name, name, training={"learning_rate": rate}).path
        for name, rate in (("mle", 1e-3), ("rwr", 2e-3))
    ]
    differing = dict(config_differences(load_comparison(paths).runs))
    assert differing == {"objective.name": ["mle", "rwr"], "training.learning_rate": [1e-3, 2e-3]}


class Page(HTMLParser):
    """Collects the references of a page, and checks that its tags are balanced."""

    def __init__(self) -> None:
        super().__init__()
        self.references: list[str] = []
        self.names: list[str] = []
        self.tags: set[str] = set()
        self.open: list[str] = []
        self.alternatives = 0

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag in self.open[-1:]:
            self.open.pop()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in {"meta", "input", "rect", "path", "circle"}:
            self.open.append(tag)
        for name, value in attrs:
            if name in {"src", "srcset", "href"}:
                self.references.append(value or "")
            if name == "clip-path":
                self.references.append((value or "").removeprefix("url(").removesuffix(")"))
            elif name == "id":
                self.names.append(value or "")
        self.alternatives += ("role", "img") in attrs and bool(dict(attrs).get("aria-label"))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_needs_nothing_beside_it(page: Path) -> None:
    parsed = Page()
    parsed.feed(page.read_text())
    assert parsed.open == []
    assert not {"link", "iframe", "img"} & parsed.tags
    # Every reference is to a part of this page, and no two parts have one name.
    assert set(parsed.references) <= {f"#{name}" for name in parsed.names}
    assert len(set(parsed.names)) == len(parsed.names)
    assert parsed.alternatives == 2 * 5
    assert not re.search(r"url\((?!#)", page.read_text())
    assert page.stat().st_size < 1_500_000


def test_the_style_sheet_colours_all_that_is_drawn(page: Path) -> None:
    figures = re.findall(r'<svg class="(?:wide|narrow)".*?</svg>', page.read_text(), re.DOTALL)
    assert len(figures) == 2 * 5
    for figure in figures:
        drawn = re.findall(r'(?:fill|stroke)="([^"]*)"', figure)
        assert {each for each in drawn if not each.startswith("var(--plot-")} <= {"none"}
    variables = set(re.findall(r"var\((--plot-[\w]+)\)", "".join(figures)))
    assert len(variables) >= 4 + 6
    (style,) = re.findall(r"<style>(.*?)</style>", page.read_text(), re.DOTALL)
    assert all(style.count(f"{name}: #") == 2 for name in variables)


def test_the_folder_holds_figures_and_numbers(page: Path, comparison: Comparison) -> None:
    names = {path.name for path in page.parent.iterdir()}
    assert names == {
        *("index.html", "comparison.json"),
        *("trade-off.png", "equal-compute.png", "estimates.png", "score-distributions.png", "training-curves.png"),
    }
    found = json.loads((page.parent / "comparison.json").read_text())
    assert found == to_dict(comparison)
    assert found["runs"][2]["report"]["objective"] == "conditional"
    assert {each["verdict"] for each in found["differences"]["misalignment"]} <= {"lower", "higher", "unclear"}


def test_figures_are_the_same_bytes_again(page: Path, comparison: Comparison, tmp_path: Path) -> None:
    again = write_comparison(comparison, tmp_path / "again").parent
    for path in page.parent.glob("*.png"):
        assert (again / path.name).read_bytes() == path.read_bytes()


def test_a_mixture_is_named_with_its_shares_and_its_tokenizer_without_the_folder_around_it(tmp_path: Path) -> None:
    of_code = {"generation": 1, "rows": 412, "column": "pep8", "scorer": SCORER, "epochs": 1.5, "stream": {}}
    mixed = [
        MixedFacts(uri="labelled-code", fingerprint="7c9e2b4f" * 8, share=0.75, **of_code),
        MixedFacts(uri="more-code", fingerprint="2d40a7c1" * 8, share=0.25, **of_code),
    ]
    tokenizer = str(tmp_path / "cache" / "tokenizer-2048-5be1")
    data = {"tokenizer": tokenizer, "mixture": [{"dataset": "more-code", "share": 0.25, "column": "pep8"}]}
    make_run(tmp_path / "run", "mle", changes={"mixture": mixed}, data=data)
    text = write_comparison(load_comparison([tmp_path / "run"]), tmp_path / "page").read_text()
    assert "0.75 of labelled-code (7c9e2b4f7c9e) + 0.25 of more-code (2d40a7c12d40)" in text
    assert ">tokenizer-2048-5be1, 2,048 entries" in text


def test_a_step_whose_loss_was_no_number_is_left_out_of_the_curve(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "mle")
    before = training_loss(load_comparison([run.path]).runs[0])
    lines = run.metrics.read_text().splitlines()
    skipped = json.loads(lines[-1]) | {"loss": None, "ce": None, "evaluation": {"misalignment": None}}
    run.metrics.write_text("".join(f"{line}\n" for line in [*lines, json.dumps(skipped)]))
    assert training_loss(load_comparison([run.path]).runs[0]) == before
    assert write_comparison(load_comparison([run.path]), tmp_path / "page").is_file()


def test_names_are_escaped(tmp_path: Path) -> None:
    folder = tmp_path / "<i>slanted</i>" / "x & y"
    make_run(folder, "mle", held_out=False)
    make_run(tmp_path / "other", "mle", held_out=False)
    page = write_comparison(load_comparison([folder, tmp_path / "other"]), tmp_path / "out").read_text()
    assert "<i>" not in page
    assert "x &amp; y" in page


def test_marks_that_turn_text_around_are_shown(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "mle", held_out=False)
    dataset = run.read_facts().dataset.model_copy(update={"uri": "a\u202eb"})
    report = json.loads((run.evaluation / "report.json").read_text())
    run.write_facts(run.read_facts().model_copy(update={"dataset": dataset}))
    (run.evaluation / "report.json").write_text(json.dumps(report | {"run": run_fingerprint(run)}))
    page = write_comparison(load_comparison([run.path]), tmp_path / "out").read_text()
    assert "\u202e" not in page
    assert r"a\u202eb" in page


def test_an_objective_that_is_none_of_ours_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "mle", held_out=False)
    run.facts.write_text(run.facts.read_text().replace('"objective": "mle"', '"objective": "\\u001b[31m"'))
    with pytest.raises(UserError, match=r"run\.json is damaged, or of another version of phf, at objective") as caught:
        load_comparison([run.path])
    assert "\x1b" not in str(caught.value)


def test_an_output_that_holds_something_else_is_refused(page: Path, tmp_path: Path) -> None:
    check_output(page.parent)
    check_output(tmp_path / "new")
    check_output(tmp_path)
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"holds something other.*--output"):
        check_output(tmp_path)
    with pytest.raises(UserError, match="is not a folder"):
        check_output(tmp_path / "thesis.tex")


def test_the_command(six: list[RunFolder], tmp_path: Path) -> None:
    runner = CliRunner()
    paths = [str(run.path) for run in six[:2]]
    result = runner.invoke(phf.app, ["compare", *paths, "--output", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "index.html" in result.output
    assert "No clear difference" in result.output or "Lower" in result.output

    result = runner.invoke(phf.app, ["compare", *paths, "--output", str(tmp_path / "out"), "--json"])
    found = json.loads(result.stdout)
    assert found["baseline"] == "mle"
    assert Path(found["page"]).is_file()

    unevaluated = make_run(tmp_path / "runs" / "rwr", "rwr", evaluated=False)
    result = runner.invoke(phf.app, ["compare", *paths, str(unevaluated.path), "--output", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "phf evaluate" in result.output


def test_scorer_of_the_fixture_is_what_the_page_names(page: Path) -> None:
    assert SCORER.fingerprint in page.read_text()


def test_the_policy_of_the_page_allows_its_own_style_and_script_alone(tmp_path: Path, without_plots: None) -> None:
    runs = [make_run(tmp_path / name, name).path for name in ("mle", "rwr")]
    text = write_comparison(load_comparison(runs), tmp_path / "page").read_text()
    found = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert found is not None
    policy = dict(each.split(" ", 1) for each in html.unescape(found[1]).split("; "))
    assert policy.pop("default-src") == "'none'"
    for tag in ("style", "script"):
        blocks = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        assert [_source(block) for block in blocks] == [policy.pop(f"{tag}-src")]
    assert policy == {}
    assert not re.search(r"<[^>]* (style|on\w+)=", re.sub(r"<(style|script)>.*?</\1>", "", text, flags=re.DOTALL))


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def test_samples_are_taken_at_equal_steps_of_their_scores() -> None:
    scores = [0.4, np.nan, 0.0, 0.3, 0.1, 0.2, 0.3, np.nan]
    assert at_percentiles(scores, 1) == [0]
    assert at_percentiles(scores, 2) == [5, 0]  # of six scores the third lowest, and the worst
    assert at_percentiles(scores, 6) == [2, 4, 5, 3, 6, 0]
    assert at_percentiles(scores, 12) == [2, 2, 4, 4, 5, 5, 3, 3, 6, 6, 0, 0]
    assert at_percentiles([np.nan], 3) == []


def replace_ids(run: RunFolder, ids: list[int]) -> None:
    """Replace the token ids of every sample."""
    path = run.evaluation / "samples.parquet"
    table = pq.read_table(path)
    field = table.schema.field("ids")
    write_table(path, table.set_column(0, field, pa.array([ids] * table.num_rows, field.type)))


def test_samples_are_shown_only_if_asked_for_and_as_text(tmp_path: Path, without_plots: None) -> None:
    run = make_run(tmp_path / "run", "mle", samples=32, empty=0)
    text = "<script>alert(1)</script>\u202e&amp; " * 130  # 32 characters each
    tokenizer = foreign_tokenizers.byte_level()
    ids = tokenizer(text, add_special_tokens=False).input_ids
    replace_ids(run, ids)
    assert "alert" not in write_comparison(load_comparison([run.path]), tmp_path / "page").read_text()
    found = load_comparison([run.path], show_text=2)
    with pytest.raises(UserError, match=rf"{run.path} has no model.*--show-text"):
        write_comparison(found, tmp_path / "page")
    tokenizer.save_pretrained(str(run.model))
    page = write_comparison(found, tmp_path / "page").read_text()
    assert page.count('<blockquote class="sample"') == 2
    assert "&lt;script&gt;alert(1)&lt;/script&gt;\\u202e&amp;amp; " in page
    assert "<script>alert" not in page
    assert page.count("alert(1)") == 2 * MOST_CHARACTERS // 32
    assert "alert" not in (tmp_path / "page" / "comparison.json").read_text()
    section = example_section(found)
    assert section is not None
    assert [each.title for each in section.examples] == ["Percentile 50 of misalignment", "The worst samples"]
    assert section.examples[1].examples[0].note == f"misalignment {number(found.runs[0].scores.max(), 3)}"
    replace_ids(run, [-1])
    with pytest.raises(UserError, match="hold negative token ids"):
        write_comparison(found, tmp_path / "page")


def test_filters_are_those_by_which_rows_differ(tmp_path: Path) -> None:
    def offered(*names: str) -> dict[str, list[str]]:
        made = load_comparison([tmp_path / name for name in names], allow_mismatch=True)
        filters = Filters(made, sections(made))
        rows = [row for each in sections(made) for table in each.tables for row in table.rows if row.objective]
        assert all(
            set(filters.choices_of(row.label, row.objective or "")) | {"seed"}
            == {each.name for each in filters.offered} | {"seed"}
            for row in rows
        )
        return {each.title: list(each.choices) for each in filters.offered}

    for seed in (1, 2):
        make_run(tmp_path / f"mle-{seed}", "mle", seed=seed, training={"seed": seed})
    make_run(tmp_path / "rwr", "rwr")
    make_run(tmp_path / "tags", "conditional", guided=0.01)
    make_run(tmp_path / "toxicity", "awr", column="toxicity")
    make_run(tmp_path / "pii", "awr", changes={"columns": {"pii": 0.5, "toxicity": 0.5}})
    assert offered("mle-1") == {}
    assert offered("mle-1", "mle-2") == {"Seed": ["1", "2"]}
    assert offered("mle-1", "rwr") == {"Objective": ["mle", "rwr"]}
    assert offered("mle-1", "mle-2", "tags") == {
        "Objective": ["mle", "conditional"],
        "Variant": ["mle", "conditional", "conditional (g = 2)"],
        "Seed": ["1", "2", "42"],
    }
    # A task that has a scorer of its own needs one filter.
    assert offered("mle-1", "toxicity") == {"Task": ["pep8", "toxicity"], "Objective": ["mle", "awr"]}
    assert offered("mle-1", "pii") == {"Task": ["pep8", "pii and toxicity"], "Objective": ["mle", "awr"]}


def test_cells_are_sorted_by_their_figures(comparison: Comparison) -> None:
    for section in sections(comparison):
        for table in section.tables:
            for row in table.rows:
                for cell in row.cells:
                    bare = cell.text.replace(",", "").replace("−", "-").removesuffix("\N{NO-BREAK SPACE}%")
                    if re.fullmatch(r"[-+]?[\d.]+", bare) and table.sortable:
                        factor = 100 if cell.text.endswith("%") else 1
                        assert cell.order is not None
                        assert factor * cell.order == pytest.approx(
                            float(bare), rel=0.01, abs=0.06 if factor == 100 else 0
                        )


def test_different_limits_of_samples_are_all_named(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, name) for name in ("mle", "awr")]
    assert most_tokens(load_comparison([run.path for run in runs])) == "128"
    path = runs[1].evaluation / "report.json"
    report = json.loads(path.read_text())
    report["samples"]["max_new_tokens"] = 32
    path.write_text(json.dumps(report))
    assert most_tokens(load_comparison([run.path for run in runs])) == "32 or 128"
