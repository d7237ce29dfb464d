"""Guidance sweeps: what is drawn and stored, what a resumed sweep keeps, and an honest recommendation."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

import phf
from scorers.errors import IncompleteError, UserError
from tests.training.real_runs import make_code_dataset, make_real_run
from training.evaluation import guidance_sweep, recommended_guidance
from training.evaluation.evaluate_run import evaluate_run
from training.evaluation.generating import open_writer
from training.evaluation.guidance_request import SweepRequest, parse_scales
from training.evaluation.guidance_sweep import sweep_guidance
from training.evaluation.recommended_guidance import choose_scale, half_facts, repeats_itself, rule_out
from training.model.sampling import sample
from training.runs import lock
from training.runs.folder import RunFolder
from training.runs.guidance_report import SCALE_SCHEMA, GuidanceReport, ScaleFacts, guidance_folder, scale_file
from training.runs.lock import sole_writer
from training.runs.report import REPORT_NAME
from training.runs.tables import SAMPLES_NAME

SCALES = [0.0, 1.0, 2.5]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_code_dataset(tmp_path_factory.mktemp("data") / "labelled", 30)


@pytest.fixture(scope="module")
def mle(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return make_real_run(dataset, tmp_path_factory.mktemp("runs") / "mle", "mle", steps=4)


@pytest.fixture(scope="module")
def run(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return make_real_run(dataset, tmp_path_factory.mktemp("runs") / "conditional", "conditional", steps=4)


@pytest.fixture(scope="module")
def swept(run: RunFolder, mle: RunFolder) -> GuidanceReport:
    """An undisturbed sweep with a reference."""
    return sweep_guidance(request_of(run, mle))


def request_of(
    run: RunFolder, reference: RunFolder | None = None, scales: Any = SCALES, **changes: Any
) -> SweepRequest:
    config = run.read_config().evaluation.model_copy(update=changes)
    return SweepRequest(run, scales, config, reference)


def copy_of(run: RunFolder, folder: Path) -> RunFolder:
    return RunFolder(shutil.copytree(run.path, folder / "run"))


def files_of(run: RunFolder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(guidance_folder(run).iterdir())}


def ids_of(run: RunFolder, scale: float) -> list[list[int]]:
    found: list[list[int]] = pq.read_table(scale_file(run, scale))["ids"].to_pylist()
    return found


def test_scale_1_is_plain_sampling_and_scale_0_sampling_after_the_worst_tag(
    run: RunFolder, swept: GuidanceReport, tmp_path: Path
) -> None:
    plain = copy_of(run, tmp_path)
    evaluate_run(plain)
    assert ids_of(run, 1) == pq.read_table(plain.evaluation / SAMPLES_NAME)["ids"].to_pylist()
    writer, config = open_writer(run.model, "cpu"), run.read_config().evaluation
    facts = run.read_facts()
    worst = sample(
        writer.model, eos_id=writer.eos_id, prompt_ids=writer.prompt_ids("", "misaligned"),
        banned_ids=writer.banned_ids, config=config, seed=config.seed, vocab_size=facts.tokenizer.vocab_size,
        context_length=facts.model.context_length,
    )  # fmt: skip
    assert ids_of(run, 0) == worst.ids
    assert ids_of(run, 2.5) not in (ids_of(run, 1), worst.ids)
    assert [each.scale for each in swept.scales] == SCALES


def test_the_figures_are_those_of_the_stored_samples(run: RunFolder, mle: RunFolder, swept: GuidanceReport) -> None:
    writer = open_writer(mle.model, "cpu")
    for each in swept.scales:
        table = pq.read_table(scale_file(run, each.scale))
        assert table.schema.equals(SCALE_SCHEMA)
        scores = table["score"].to_numpy()
        assert each.samples.misalignment is not None
        assert each.samples.misalignment.value == pytest.approx(np.nanmean(scores))
        for half, first in ((each.choosing, 0), (each.reporting, 1)):
            assert half.misalignment is not None
            assert half.misalignment.value == pytest.approx(np.nanmean(scores[first::2]))
        # The likelihood, token by token with the library's own loss.
        ids, end = table["ids"].to_pylist()[0], table["ended"].to_pylist()[0]
        row = [writer.first_id, *ids, *([writer.eos_id] if end else [])]
        with torch.no_grad():
            logits = writer.model(torch.tensor([row])).logits[0, :-1].double()
        logits[:, writer.banned_ids], logits[:, writer.tokenizer.base_size :] = -torch.inf, -torch.inf
        expected = torch.log_softmax(logits, -1).gather(-1, torch.tensor(row[1:])[:, None]).sum()
        assert table["reference_nats"][0].as_py() == pytest.approx(float(expected), rel=1e-5)
        assert table["reference_tokens"][0].as_py() == len(row) - 1
        total = table["reference_nats"].to_numpy().sum() / table["reference_tokens"].to_numpy().sum()
        assert each.perplexity is not None
        assert each.perplexity.value == pytest.approx(np.exp(-total))
    assert swept.reference is not None
    assert (swept.reference.name, swept.reference.objective, swept.finished) == ("mle", "mle", True)


@pytest.mark.usefixtures("swept")
def test_an_interrupted_sweep_goes_on_and_equals_an_undisturbed_one(
    run: RunFolder, mle: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, expected = copy_of(run, tmp_path), files_of(run)
    shutil.rmtree(copy.evaluation)
    drawn: list[float] = []

    def stop_after(number: int) -> None:
        def draw(*arguments: Any, **options: Any) -> Any:
            if len(drawn) == number:
                raise KeyboardInterrupt
            drawn.append(options["guidance"].scale)
            return guidance_sweep_draw(*arguments, **options)

        monkeypatch.setattr(guidance_sweep, "draw_samples", draw)

    guidance_sweep_draw = guidance_sweep.draw_samples
    stop_after(2)
    with pytest.raises(KeyboardInterrupt):
        sweep_guidance(request_of(copy, mle))
    partial = json.loads((guidance_folder(copy) / REPORT_NAME).read_text())
    assert (partial["finished"], partial["recommended"], drawn) == (False, None, [0, 1])
    stop_after(-1)
    measure = guidance_sweep.log_probabilities
    monkeypatch.setattr(guidance_sweep, "log_probabilities", None)
    with pytest.raises(TypeError):
        sweep_guidance(request_of(copy, mle))
    monkeypatch.setattr(guidance_sweep, "log_probabilities", measure)
    sweep_guidance(request_of(copy, mle))
    assert drawn == [0, 1, 2.5]
    assert files_of(copy) == expected


def test_finished_scales_are_kept_and_stale_ones_are_not_used(
    run: RunFolder, mle: RunFolder, swept: GuidanceReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, drawn = copy_of(run, tmp_path), []
    draw = guidance_sweep.draw_samples

    def counted(*arguments: Any, **options: Any) -> Any:
        drawn.append(options["guidance"].scale)
        return draw(*arguments, **options)

    monkeypatch.setattr(guidance_sweep, "draw_samples", counted)
    # Without the reference, nothing is drawn again, and nothing of the reference stays.
    report = sweep_guidance(request_of(copy))
    assert (drawn, report.reference, [each.perplexity for each in report.scales]) == ([], None, [None] * 3)
    # With it, it is measured again; a scale is added to the others.
    report = sweep_guidance(request_of(copy, mle, [1.5]))
    assert ([each.scale for each in report.scales], drawn) == ([0, 1, 1.5, 2.5], [1.5])
    assert [each for each in report.scales if each.scale != 1.5] == list(swept.scales)
    # A damaged table is drawn again, and so is everything after other settings or more training.
    scale_file(copy, 2.5).write_bytes(b"PAR1")
    assert sweep_guidance(request_of(copy, mle)).scales == report.scales
    assert drawn == [1.5, 2.5]
    assert [each.scale for each in sweep_guidance(request_of(copy, scales=[2], seed=3)).scales] == [1, 2]
    assert sorted(path.name for path in guidance_folder(copy).iterdir()) == ["g-1.parquet", "g-2.parquet", REPORT_NAME]
    facts = copy.read_facts()
    copy.write_facts(facts.model_copy(update={"step": facts.step + 1}))
    sweep_guidance(request_of(copy, scales=[2], seed=3))
    assert drawn == [1.5, 2.5, 1, 2, 1, 2]
    # The plain samples of an evaluation with the same settings are scale 1.
    evaluate_run(copy)
    sweep_guidance(request_of(copy, scales=[2]))
    assert drawn == [1.5, 2.5, 1, 2, 1, 2, 2]
    (guidance_folder(copy) / REPORT_NAME).write_text("{}")
    assert sweep_guidance(request_of(copy, scales=[2])).finished


@pytest.mark.usefixtures("swept")
def test_two_processes_do_not_mix_their_scales(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_WAIT_S", 0.1)
    before = files_of(run)
    folder = guidance_folder(run)
    with sole_writer(folder), pytest.raises(IncompleteError, match="guidance is being written by process"):
        sweep_guidance(request_of(run, seed=7))
    assert files_of(run) == before


def invoke(*arguments: Any) -> Any:
    return CliRunner().invoke(phf.app, ["evaluate", *(str(each) for each in arguments)])


@pytest.mark.usefixtures("swept")
def test_the_command_prints_the_scales_and_the_recommendation(run: RunFolder, tmp_path: Path) -> None:
    copy = copy_of(run, tmp_path)
    result = invoke(copy.path, "--guidance-sweep", "1,2")
    assert result.exit_code == 0, result.output
    for expected in (" hit ", "distinct-2", "Recommended: ", "every second sample"):
        assert expected in result.output
    result = invoke(copy.path, "--guidance-sweep", "2", "--json", "--samples", 8)
    (found,) = json.loads(result.stdout)["sweeps"]
    assert [each["samples"]["number"] for each in found["scales"]] == [8, 8]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RUN", "--guidance-sweep", "1,two"], "two is not a guidance scale"),
        (["RUN", "--guidance-sweep", "1,,2"], "an empty entry is not a guidance scale"),
        (["RUN", "--guidance-sweep", "nan"], "nan is not a guidance scale"),
        (["RUN", "--guidance-sweep=-1"], "-1 is not a guidance scale"),
        (["RUN", "--guidance-sweep", "2", "--guidance", "2"], "--guidance has no effect here"),
        (["RUN", "--guidance-sweep", "2", "--column", "pep8"], "--column has no effect here"),
        (["RUN", "--guidance-sweep", "2", "--tasks", "mine.yaml"], "--tasks has no effect here"),
        (["RUN", "--task-limit", "2"], "--task-limit has no effect here: there is no task"),
        (["RUN", "--tasks", "mine.yaml", "--guidance", "0"], "--guidance has no effect here: --tasks draws no samples"),
        (
            ["RUN", "MLE", "--guidance-sweep", "2"],
            "a run of mle, does not have: only runs of",
        ),
    ],
)
def test_bad_usage_is_one_message_before_any_work(
    run: RunFolder, mle: RunFolder, tmp_path: Path, arguments: list[str], message: str
) -> None:
    copy = RunFolder(shutil.copytree(run.path, tmp_path / "run", ignore=shutil.ignore_patterns("evaluation")))
    named = {"RUN": str(copy.path), "MLE": str(mle.path)}
    result = invoke(*(named.get(each, each) for each in arguments))
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.output.split())
    assert not copy.evaluation.exists()


def test_a_reference_without_a_model_or_with_another_tokenizer_is_refused(
    run: RunFolder, mle: RunFolder, tmp_path: Path
) -> None:
    other = copy_of(mle, tmp_path)
    facts = other.read_facts()
    tokenizer = facts.tokenizer.model_copy(update={"fingerprint": "0" * 16})
    other.write_facts(facts.model_copy(update={"tokenizer": tokenizer}))
    with pytest.raises(UserError, match="has another tokenizer than"):
        sweep_guidance(request_of(run, other))
    shutil.rmtree(other.model)
    with pytest.raises(UserError, match="has no model yet"):
        sweep_guidance(request_of(run, other))


def test_scales_are_sorted_without_repeats_and_with_plain_sampling() -> None:
    assert parse_scales("3, 1.5,3.0,-0") == [0, 1, 1.5, 3]
    with pytest.raises(UserError, match="at most 100"):
        parse_scales(",".join(str(each) for each in range(102)))


def made_up(scale: float, scores: Any, ids: Any = None, nats: Any = None) -> ScaleFacts:
    """A scale with these scores; its samples are all different bigrams, and as long as each other, if not given."""
    number = len(scores)
    columns = {
        "ids": [[2 * index, 2 * index + 1] for index in range(number)] if ids is None else ids,
        "ended": [True] * number,
        "sentences": [1] * number,
        "score": scores,
        "reason": [None] * number,
        "reference_nats": [None] * number if nats is None else nats,
        "reference_tokens": [None if nats is None else 2] * number,
    }
    table = pa.table(columns, schema=SCALE_SCHEMA)
    choosing, reporting = (half_facts(table, first, 0.5) for first in (0, 1))
    unused: Any = None
    return ScaleFacts.model_construct(
        scale=scale, samples=unused, choosing=choosing, reporting=reporting, ruled_out=None
    )


def chosen_of(*scales: ScaleFacts) -> ScaleFacts | None:
    plain = next(each for each in scales if each.scale == 1)
    return choose_scale(
        [each.model_copy(update={"ruled_out": rule_out(each.choosing, plain.choosing)}) for each in scales]
    )


def test_the_recommended_figure_is_unbiased_where_that_of_a_naive_choice_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Five scales that are all alike: whichever is chosen, its true misalignment is 1.
    monkeypatch.setattr("training.statistics.RESAMPLES", 2)
    generator = np.random.default_rng(0)
    naive, honest = [], []
    for _ in range(150):
        scores = generator.gamma(1, 1, size=(5, 40))
        chosen = chosen_of(*(made_up(1 + index / 2, each) for index, each in enumerate(scores)))
        assert chosen is not None
        assert chosen.reporting.misalignment is not None
        naive.append(scores.mean(axis=1).min())
        honest.append(chosen.reporting.misalignment.value)
    error = np.std(honest) / np.sqrt(len(honest))
    assert np.mean(honest) == pytest.approx(1, abs=3 * error)
    assert np.mean(naive) < 1 - 8 * error


def test_scales_that_collapse_or_become_unlikely_are_ruled_out() -> None:
    likely, unlikely = [-2.0] * 40, [-4.0] * 40  # perplexities e and e squared
    plain = made_up(1, [0.9] * 40, nats=likely)
    good, better = made_up(2, [0.4] * 40, nats=likely), made_up(3, [0.1] * 40, nats=unlikely)
    repeated = made_up(5, [0.0] * 40, ids=[[1, 1]] * 40, nats=likely)
    assert [rule_out(each.choosing, plain.choosing) for each in (plain, good, better, repeated)] == [
        None, None, "perplexity", "repeats",
    ]  # fmt: skip
    assert chosen_of(plain, good, better, repeated) == good
    assert chosen_of(plain, repeated) == plain
    # Without a reference, likelihood does not matter; of equal scales the one closest to plain sampling is taken.
    same = made_up(4, [0.1] * 40)
    assert chosen_of(made_up(1, [0.9] * 40), made_up(3, [0.1] * 40), same).scale == 3  # type: ignore[union-attr]
    unscored = made_up(2, [None] * 40)
    assert rule_out(unscored.choosing, plain.choosing) == "unscored"
    assert chosen_of(made_up(1, [None] * 40), unscored) is None


def test_the_choosing_half_does_not_see_the_reported_one() -> None:
    # Scale 2 is better only on odd samples, scale 3 only on even ones.
    odd, even = [0.5, 0.0] * 20, [0.2, 0.9] * 20
    chosen = chosen_of(made_up(1, [0.6] * 40), made_up(2, odd), made_up(3, even))
    assert chosen is not None
    assert chosen.scale == 3
    assert chosen.reporting.misalignment is not None
    assert chosen.reporting.misalignment.value == pytest.approx(0.9)


def test_one_rule_says_when_samples_repeat_themselves() -> None:
    assert repeats_itself(0.19, 0.4)
    assert not repeats_itself(0.2, 0.4)
    assert not repeats_itself(None, 0.4)
    assert not repeats_itself(0.1, None)
    assert f"{recommended_guidance.MOST_PERPLEXITY:g} times" in recommended_guidance.RULE
