"""One run, several judges: its own column, other columns, and scorers that made no column of the dataset."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import phf
from scorers.errors import UserError
from scorers.registry import ScorerSpec, build
from scorers.sentences import document
from tests.training.real_runs import make_code_dataset, make_real_run
from training.comparison.load import load_comparison
from training.data.prepare import prepare
from training.evaluation import evaluate_run as runs
from training.evaluation.evaluate_run import evaluate_run
from training.evaluation.prepare import Judge
from training.runs.folder import RunFolder
from training.runs.report import REPORT_NAME, EvaluationReport, read_report
from training.runs.tables import HELD_OUT_NAME, SAMPLES_NAME
from training.scoring import judged_text

# Lines of these files have about a dozen characters, so that many are too long for it and few for the other.
NARROW = ScorerSpec(kind="pycodestyle", max_line_length=12)
WIDE = "wide=pycodestyle,max_line_length=100"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_code_dataset(tmp_path_factory.mktemp("data") / "labelled", others={"narrow": NARROW})


@pytest.fixture(scope="module")
def mle(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return make_real_run(dataset, tmp_path_factory.mktemp("runs") / "mle", "mle", steps=3)


@pytest.fixture(scope="module")
def quantiles(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    overrides = {"data.columns": "{pep8: 1, narrow: 0.5}", "objective.quantiles": 4}
    return make_real_run(dataset, tmp_path_factory.mktemp("runs") / "quantiles", "conditional", **overrides)


def invoke(*arguments: Any) -> Any:
    return CliRunner().invoke(phf.app, [str(each) for each in arguments])


def report_of(run: RunFolder, scorer: str | None = None) -> EvaluationReport:
    report = read_report(run, scorer)
    assert report is not None
    return report


def test_costs_of_documents_of_another_dataset_are_not_judged(tmp_path: Path) -> None:
    dataset = make_code_dataset(tmp_path / "labelled", others={"narrow": NARROW})
    run = make_real_run(dataset, tmp_path / "run", "mle", **{"data.store": "null"})
    own = evaluate_run(run)
    assert own.held_out is not None
    assert own.held_out.indices.max() >= 40
    assert not any("has changed since" in each for each in own.report.warnings)
    fewer = make_code_dataset(tmp_path / "fewer", 40, others={"narrow": NARROW})
    found = evaluate_run(run, judge=Judge("narrow"), dataset=str(fewer))
    assert found.held_out is not None
    assert found.held_out.indices.max() < 40
    assert sum("The dataset has changed since the run was trained" in each for each in found.report.warnings) == 1


@pytest.mark.parametrize("written_down", [True, False])
def test_after_a_retag_trained_columns_keep_their_thresholds_where_they_were_written_down(
    tmp_path: Path, written_down: bool
) -> None:
    dataset = make_code_dataset(tmp_path / "labelled", 30, others={"narrow": NARROW})
    columns = {"data.columns": "{pep8: 1, narrow: 0.5}", "data.held_out": 0, "evaluation.num_samples": 4}
    run = make_real_run(dataset, tmp_path / "run", "mle", **columns)
    facts = run.read_facts()
    assert {column: each.value for column, each in facts.sentence_thresholds.items()} == {"pep8": 0, "narrow": 0}
    if not written_down:
        run.write_facts(facts.model_copy(update={"sentence_thresholds": {}}))
    manifest = json.loads((dataset / "manifest.json").read_text())
    manifest["generation"] += 1
    for threshold in manifest["thresholds"].values():
        threshold.update(value=0.5, spec="0.5")
    (dataset / "manifest.json").write_text(json.dumps(manifest))
    own, other = evaluate_run(run).report, evaluate_run(run, judge=Judge("narrow")).report
    assert own.samples.hit_threshold == 0
    assert other.samples.hit_threshold == (0 if written_down else 0.5)
    which = "narrow, pep8 keep" if written_down else "pep8 keeps"
    assert any(f"here {which} the old threshold, and other columns" in each for each in own.warnings)


def test_others_judge_the_samples_that_were_drawn(mle: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    own = evaluate_run(mle)
    before = (mle.evaluation / REPORT_NAME).read_bytes()
    monkeypatch.setattr(runs, "load_model", None)  # nothing is drawn any more
    result = invoke("evaluate", mle.path, "--column", "narrow", "--scorer", WIDE, "--hit-threshold", 0.01, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["runs"]
    assert [each["column"] for each in found] == ["narrow", "wide"]
    assert (mle.evaluation / REPORT_NAME).read_bytes() == before
    samples = own.samples.ids
    decode = prepare(mle.read_config()).tokenizer.decode
    for name, spec in (("narrow", NARROW), ("wide", ScorerSpec(kind="pycodestyle", max_line_length=100))):
        report, folder = report_of(mle, name), mle.evaluation / "scorers" / name
        table = pq.read_table(folder / SAMPLES_NAME)
        assert table["ids"].to_pylist() == samples
        texts = [
            document(judged_text(decode(ids), "python", ended=ended), "python")
            for ids, ended in zip(samples, own.samples.ended, strict=True)
        ]
        scored = zip(texts, build(name, spec).score(texts), strict=True)
        expected = [float(np.mean(each)) if text.text else None for text, each in scored]  # type: ignore[arg-type]
        assert table["score"].to_pylist() == pytest.approx(expected)
        assert report.scorer.fingerprint == build(name, spec).fingerprint
        assert (report.samples.hit_threshold == 0.01) == (name == "wide")
        assert report.held_out is not None
        assert own.report.held_out is not None
        assert report.held_out.bits_per_byte.value == pytest.approx(own.report.held_out.bits_per_byte.value)
        assert report.samples.distinct_2 == own.report.samples.distinct_2
        assert sum("its notes about them apply here too" in each for each in report.warnings) == 1
        # What another column says of the held-out documents is known; what a new scorer would say is not.
        costs = pq.read_table(folder / HELD_OUT_NAME)
        assert (report.held_out.misalignment is None) == (name == "wide")
        assert np.isnan(costs["misalignment"].to_numpy()).all() == (name == "wide")
    narrow, wide = report_of(mle, "narrow").samples.misalignment, report_of(mle, "wide").samples.misalignment
    assert narrow is not None
    assert wide is not None
    assert narrow.value > wide.value


def test_other_settings_or_a_damaged_file_draw_anew(mle: RunFolder) -> None:
    evaluate_run(mle)
    drawn = pq.read_table(mle.evaluation / SAMPLES_NAME)["ids"].to_pylist()
    config = mle.read_config().evaluation.model_copy(update={"seed": 5})
    other = evaluate_run(mle, judge=Judge("narrow"), config=config)
    assert other.samples.ids != drawn
    # The newest of that name is kept, and judges that come later find the samples of either.
    again = evaluate_run(mle, judge=Judge("narrow"), config=config)
    assert again.samples.ids == other.samples.ids
    (mle.evaluation / SAMPLES_NAME).write_bytes(b"PAR1 not really")
    assert evaluate_run(mle, judge=Judge("narrow")).samples.ids == drawn
    evaluate_run(mle)


def test_quantile_tags_are_all_banned_and_the_best_is_sampled_after(quantiles: RunFolder) -> None:
    result = invoke("evaluate", quantiles.path)
    assert result.exit_code == 0, result.output
    # Trained on two columns, it is judged by both, on the same samples.
    own, other = report_of(quantiles), report_of(quantiles, "narrow")
    assert (own.column, other.column) == ("pep8", "narrow")
    assert f"{quantiles.evaluation}/scorers/narrow" in result.output.replace("\n", "")
    facts = quantiles.read_facts()
    assert facts.columns == {"pep8": 1.0, "narrow": 0.5}
    assert len(facts.tokenizer.control_ids) == len(facts.stream["tag_bounds"]) + 1 >= 3
    assert own.prompt == other.prompt == [facts.tokenizer.eos_id, facts.tokenizer.control_ids[0]]
    assert own.samples.control_tokens == 0
    assert own.leakage is not None
    assert own.leakage.samples is not None
    assert own.leakage.samples.value > 0
    assert own.held_out is not None
    assert own.held_out.swap_cost is not None
    generation = json.loads((quantiles.model / "generation_config.json").read_text())
    assert generation["suppress_tokens"] == facts.tokenizer.control_ids
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(quantiles.model)
    names = [f"<|quantile_{number}|>" for number in range(1, len(facts.tokenizer.control_ids) + 1)]
    assert tokenizer.convert_tokens_to_ids(names) == facts.tokenizer.control_ids


def test_guided_samples_are_judged_too_and_plain_ones_without_them(
    quantiles: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = quantiles.read_config().evaluation
    config = plain.model_copy(update={"guidance": 2.0})
    own = evaluate_run(quantiles, config=config)
    tokens = quantiles.read_facts().tokenizer
    assert own.guided is not None
    assert own.report.guided is not None
    assert own.report.guided.away == [tokens.eos_id, tokens.control_ids[-1]]
    with monkeypatch.context() as patch:
        patch.setattr(runs, "load_model", None)  # nothing is drawn any more
        other = evaluate_run(quantiles, judge=Judge("narrow"), config=config)
        assert other.guided == own.guided != own.samples == other.samples
        assert other.report.guided is not None
        assert other.report.guided.samples.misalignment != own.report.guided.samples.misalignment
        without = evaluate_run(quantiles, judge=Judge("narrow"), config=plain)
        assert (without.samples, without.guided, without.report.guided) == (own.samples, None, None)
    evaluate_run(quantiles)


def test_a_comparison_is_by_one_judge(mle: RunFolder, quantiles: RunFolder, tmp_path: Path) -> None:
    both = [mle.path, quantiles.path]
    for run in (mle, quantiles):
        evaluate_run(run)
    assert {run.report.column for run in load_comparison(both).runs} == {"pep8"}
    with pytest.raises(UserError, match=r"Not evaluated by style since.*--column style` \(or --scorer style="):
        load_comparison(both, scorer="style")
    result = invoke("compare", *both, "--scorer", "narrow", "--evaluate", "--output", tmp_path / "page")
    assert result.exit_code == 0, result.output
    found = load_comparison(both, scorer="narrow")
    assert {run.report.column for run in found.runs} == {"narrow"}
    assert (
        "They were trained on different score columns: pep8 (mle); pep8 and narrow (conditional)." in found.differences
    )
    page = (tmp_path / "page" / "index.html").read_text()
    assert "judged by narrow (pycodestyle); trained on pep8, pep8 and narrow" in page
    assert "&lt;|quantile_1|&gt;" in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--column", "toxicity"], "has no score column 'toxicity'; it has: pep8, narrow"),
        (["--scorer", WIDE], "needs --hit-threshold"),
        (["--scorer", "narrow=ruff", "--hit-threshold", "0"], "Use that with --column narrow"),
        (["--scorer", "x=nothing", "--hit-threshold", "0"], "nothing"),
        (["--scorer", "x=column:scores", "--hit-threshold", "0"], "samples have none"),
    ],
)
def test_judges_that_cannot_be_are_one_message(mle: RunFolder, arguments: list[str], message: str) -> None:
    result = invoke("evaluate", mle.path, *arguments)
    assert result.exit_code == 2, result.output
    assert message in result.output.replace("\n", " ")
    assert "Traceback" not in result.output
