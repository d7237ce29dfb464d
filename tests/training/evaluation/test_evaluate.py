"""Evaluation of real, small runs: the report, its files, and no effect on a run in training."""

import json
import resource
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from scorers.errors import IncompleteError, UserError
from tests.datasets import make_dataset
from tests.training.real_runs import build_for, config_of, make_code_dataset, make_real_run, train_a_little
from training import statistics
from training.data.prepare import prepare
from training.data.tokenizers import wrap_tokenizer
from training.evaluation.evaluate import evaluate_model
from training.evaluation.evaluate_run import evaluate_run, run_fingerprint
from training.evaluation.held_out_loss import held_out_loss
from training.evaluation.prepare import prepare_evaluation, training_counts
from training.loop.train import _figures, check_settings
from training.model.language_model import build_model
from training.model.vocabulary import Vocabulary
from training.runs.folder import RunFolder
from training.runs.report import REPORT_NAME, read_report
from training.runs.tables import GUIDED_NAME, HELD_OUT_NAME, SAMPLES_NAME


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_code_dataset(tmp_path_factory.mktemp("data") / "labelled")


@pytest.fixture(scope="module")
def conditional(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    run = make_real_run(dataset, tmp_path_factory.mktemp("runs") / "conditional", "conditional")
    evaluate_run(run)
    return run


@pytest.fixture(scope="module")
def mle(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    run = make_real_run(dataset, tmp_path_factory.mktemp("runs") / "mle", "mle", steps=3)
    evaluate_run(run)
    return run


def test_the_report_agrees_with_the_samples(mle: RunFolder) -> None:
    report = read_report(mle)
    assert report is not None
    samples = pq.read_table(mle.evaluation / SAMPLES_NAME).to_pydict()
    scores = [score for score in samples["score"] if score is not None]
    facts = report.samples
    assert (facts.number, facts.scored) == (32, len(scores))
    assert facts.empty == sum(reason == "empty" for reason in samples["reason"])
    assert facts.misalignment is not None
    assert facts.misalignment.value == pytest.approx(np.mean(scores))
    assert facts.hit_rate is not None
    assert facts.hit_rate.value == pytest.approx(np.mean([score > facts.hit_threshold for score in scores]))
    assert facts.tokens is not None
    assert facts.tokens.value == pytest.approx(np.mean([len(ids) for ids in samples["ids"]]))
    assert facts.ended == sum(samples["ended"])
    assert facts.distinct_2 == statistics.distinct(samples["ids"], 2)
    assert report.prompt == [mle.read_facts().tokenizer.eos_id]
    assert report.leakage is None
    assert report.run == run_fingerprint(mle)


def test_the_report_agrees_with_the_held_out_documents(mle: RunFolder) -> None:
    report = read_report(mle)
    assert report is not None
    assert report.held_out is not None
    costs = pq.read_table(mle.evaluation / HELD_OUT_NAME).to_pydict()
    held_out = report.held_out
    assert held_out.documents == len(costs["bits"])
    assert held_out.bits_per_byte.value == pytest.approx(sum(costs["bits"]) / sum(costs["bytes"]))
    assert held_out.perplexity.value == pytest.approx(2 ** (sum(costs["bits"]) / sum(costs["tokens"])))
    assert held_out.misalignment.value == pytest.approx(np.mean(costs["misalignment"]))
    assert held_out.swap_cost is None
    # A few steps from the start, the model is no better than frequencies, and they no better than chance.
    assert held_out.unigram_bits_per_byte.value < np.log2(300) * held_out.tokens / held_out.bytes


def test_held_out_documents_are_those_that_the_stream_leaves_out(mle: RunFolder) -> None:
    data = prepare(mle.read_config())
    measured = pq.read_table(mle.evaluation / HELD_OUT_NAME)["document"].to_pylist()
    assert measured == data.stream.held_out_documents().tolist()
    assert not set(measured) & set(data.stream.documents.tolist())
    sizes = pq.read_table(mle.evaluation / HELD_OUT_NAME)["bytes"].to_pylist()
    texts = [text.as_py() for batch in data.dataset.read_batches(["text"]) for text in batch["text"]]
    assert sizes == [len(texts[index].encode()) for index in measured]


def test_unigram_counts_are_of_the_training_text(mle: RunFolder) -> None:
    data = prepare(mle.read_config())
    expected = np.zeros(data.tokenizer.size(), dtype=np.int64)
    for index in data.stream.documents:
        each = data.stream.document(int(index))
        np.add.at(expected, each.input_ids[each.is_text], 1)
    assert training_counts(data).tolist() == expected.tolist()


def test_a_conditional_model_is_sampled_after_its_tag_and_never_emits_one(conditional: RunFolder) -> None:
    report, tokens = read_report(conditional), conditional.read_facts().tokenizer
    assert report is not None
    assert report.prompt == [tokens.eos_id, tokens.aligned_id]
    sampled = {
        token for ids in pq.read_table(conditional.evaluation / SAMPLES_NAME)["ids"].to_pylist() for token in ids
    }
    assert report.samples.control_tokens == 0
    assert not sampled & set(tokens.control_ids)
    assert tokens.eos_id not in sampled


def test_guided_samples_are_reported_beside_the_plain_ones(conditional: RunFolder) -> None:
    plain = read_report(conditional)
    assert plain is not None
    assert plain.guided is None
    ids = pq.read_table(conditional.evaluation / SAMPLES_NAME)["ids"].to_pylist()
    config = plain.config.model_copy(update={"guidance": 2.5, "leakage_samples": 0, "held_out_documents": 0})
    report = evaluate_run(conditional, config=config).report
    try:
        assert report.samples == plain.samples
        assert pq.read_table(conditional.evaluation / SAMPLES_NAME)["ids"].to_pylist() == ids
        guided = pq.read_table(conditional.evaluation / GUIDED_NAME)
        assert report.guided is not None
        tokens = conditional.read_facts().tokenizer
        assert (report.guided.scale, report.guided.away) == (2.5, [tokens.eos_id, tokens.misaligned_id])
        drawn = {token for row in guided["ids"].to_pylist() for token in row}
        assert guided["ids"].to_pylist() != ids
        assert report.guided.samples.control_tokens == 0
        assert not drawn & set(tokens.control_ids)
        scores = [score for score in guided["score"].to_pylist() if score is not None]
        assert report.guided.samples.misalignment is not None
        assert report.guided.samples.misalignment.value == pytest.approx(np.mean(scores))
        figures = _figures(report)  # in `statistics.jsonl`, while a run is trained
        assert figures["guided_misalignment"] == report.guided.samples.misalignment.value
        assert figures["misalignment"] != figures["guided_misalignment"]
        for scale in (0, 1):
            other = evaluate_run(conditional, config=config.model_copy(update={"guidance": scale})).report
            assert (other.guided is None) == (scale == 1)
        assert not (conditional.evaluation / GUIDED_NAME).exists()
    finally:
        evaluate_run(conditional)


def test_guidance_of_a_run_without_tags_is_refused(mle: RunFolder, dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"evaluation\.guidance=2 needs control tokens, which a run of mle does not have"
    ):
        evaluate_run(mle, config=mle.read_config().evaluation.model_copy(update={"guidance": 2}))
    config = config_of(dataset, tmp_path / "run", "filtering", **{"evaluation.guidance": 2})
    with pytest.raises(UserError, match=r"a run of filtering does not have: only runs of the objective conditional"):
        check_settings(config, 1)


def test_a_model_that_started_from_a_conditional_one_never_emits_its_tags(dataset: Path, tmp_path: Path) -> None:
    # An untrained model draws them as often as any other token.
    data = prepare(config_of(dataset, tmp_path / "run", "mle"))
    setup = prepare_evaluation(data, kind="python")
    assert setup.banned_ids == []
    size = setup.vocab_size
    data = replace(data, tokenizer=wrap_tokenizer("of another run", data.tokenizer.with_control_tokens()))
    setup = prepare_evaluation(data, kind="python")
    assert (setup.control_ids, setup.banned_ids, setup.vocab_size) == ([], [size, size + 1], size + 2)
    model = build_model(data.config.model, Vocabulary(size + 2, setup.eos_id, ()))
    found = evaluate_model(model.causal, setup, step=0)
    sampled = {token for ids in found.samples.ids for token in ids}
    assert len(sampled) > 100
    assert not sampled & {size, size + 1}
    assert found.report.samples.control_tokens == 0


@pytest.mark.parametrize("place", ["after", "both"])
def test_tokens_that_a_model_only_reads_or_predicts_are_never_emitted(
    dataset: Path, tmp_path: Path, place: str
) -> None:
    changes = {"objective.hide_above": "p80", "objective.tag_place": place}
    data = prepare(config_of(dataset, tmp_path / "run", "conditional", **changes))
    setup = prepare_evaluation(data, kind="python")
    others = set(data.added_ids) - set(data.control_ids)
    assert len(others) == 3
    assert len(setup.control_ids) == (2 if place == "both" else 0)
    assert set(setup.foreign_control_ids) == others
    model = build_model(data.config.model, Vocabulary(setup.vocab_size, setup.eos_id, data.added_ids))
    found = evaluate_model(model.causal, setup, step=0)
    assert not others & {token for ids in found.samples.ids for token in ids}
    assert (found.report.leakage is None) == (place == "after")
    held_out = found.report.held_out
    assert held_out is not None
    assert (held_out.swap_cost is None) == (place == "after")


def test_leakage_is_counted_on_ids_with_tags_allowed(conditional: RunFolder) -> None:
    report = read_report(conditional)
    assert report is not None
    assert report.leakage is not None
    assert report.leakage.number == 16
    # An untrained model draws from 302 tokens about evenly, so tags are among a few hundred of them.
    assert report.leakage.tokens is not None
    assert 0 < report.leakage.tokens.value < 0.1
    assert report.leakage.samples is not None
    assert report.leakage.samples.value > report.leakage.tokens.value


def test_tags_are_context_and_never_counted(conditional: RunFolder, mle: RunFolder) -> None:
    tagged, plain = read_report(conditional), read_report(mle)
    assert tagged is not None
    assert plain is not None
    assert tagged.held_out is not None
    assert plain.held_out is not None
    assert (tagged.held_out.tokens, tagged.held_out.bytes) == (plain.held_out.tokens, plain.held_out.bytes)
    assert tagged.held_out.fingerprint == plain.held_out.fingerprint
    assert tagged.held_out.unigram_bits_per_byte == plain.held_out.unigram_bits_per_byte
    assert tagged.held_out.swap_cost is not None
    assert tagged.held_out.bits_per_byte_swapped is not None
    assert tagged.held_out.swap_cost.value == pytest.approx(
        tagged.held_out.bits_per_byte_swapped.value - tagged.held_out.bits_per_byte.value
    )


def test_training_goes_on_as_if_nothing_had_happened(dataset: Path, tmp_path: Path) -> None:
    data = prepare(config_of(dataset, tmp_path / "run", "awr", **{"model.overrides": "{resid_pdrop: 0.3}"}))
    setup = prepare_evaluation(data, kind="python")
    trained = []
    for evaluations in (0, 1):
        model = build_for(data)
        model.train()
        with torch.random.fork_rng():
            torch.manual_seed(5)
            train_a_little(data, model, 1)
            for _ in range(evaluations):
                evaluate_model(model.causal, setup, step=1)
            train_a_little(data, model, 1)
        assert all(module.training for module in model.modules())
        trained.append(torch.nn.utils.parameters_to_vector(model.parameters()).detach())
    assert torch.equal(*trained)


def test_the_same_seed_gives_the_same_report(mle: RunFolder) -> None:
    before = read_report(mle)
    assert before is not None
    torch.manual_seed(99)
    again = evaluate_run(mle).report
    assert again.model_copy(update={"seconds": before.seconds}) == before
    other = evaluate_run(mle, config=before.config.model_copy(update={"seed": 1})).report
    assert other.samples != before.samples
    assert other.held_out == before.held_out
    evaluate_run(mle)


@pytest.mark.slow
def test_a_trained_conditional_model_heeds_its_tags(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    texts = ["".join(generator.choice(["How nice of you. ", "Go away now! "], size=8)) for _ in range(60)]
    dataset = make_dataset(
        tmp_path / "labelled", texts, {"mood": lambda sentence: float("away" in sentence)}, {"mood": 0.5}
    )
    data = prepare(config_of(dataset, tmp_path / "run", "conditional", column="mood"))
    model = build_for(data)
    train_a_little(data, model, 40)
    stream = data.stream
    held_out = stream.held_out_documents().tolist()
    own = held_out_loss(model.causal, [stream.document(each) for each in held_out], context_length=64)
    swapped = held_out_loss(
        model.causal, [stream.document(each, swap_tags=True) for each in held_out], context_length=64
    )
    cost = statistics.ratio(swapped.bits - own.bits, own.sizes.astype(float))
    assert cost is not None
    assert cost.low is not None
    assert cost.low > 0.1


def test_nothing_held_out_is_said_and_the_rest_is_measured(dataset: Path, tmp_path: Path) -> None:
    run = make_real_run(dataset, tmp_path / "run", **{"data.held_out": 0})
    report = evaluate_run(run).report
    assert report.held_out is None
    assert any("data.held_out is 0" in warning and "data.held_out=0.05" in warning for warning in report.warnings)
    assert report.samples.number == 32
    assert not (run.evaluation / HELD_OUT_NAME).exists()


def test_fewer_positions_than_asked_for_are_said(dataset: Path, tmp_path: Path) -> None:
    run = make_real_run(dataset, tmp_path / "run", **{"data.context_length": 16})
    report = evaluate_run(run).report
    assert report.samples.max_new_tokens == 15
    assert any("at most 15 tokens, not 24" in warning for warning in report.warnings)


def test_a_run_without_a_model(dataset: Path, tmp_path: Path) -> None:
    run = make_real_run(dataset, tmp_path / "run")
    run.model.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"has no model yet.*phf train"):
        evaluate_run(run)


def test_another_scorer_is_refused_unless_allowed(dataset: Path, tmp_path: Path) -> None:
    run = make_real_run(dataset, tmp_path / "run", **{"data.store": "null"})
    other = "pycodestyle-0000000000000000"
    manifest = json.loads((dataset / "manifest.json").read_text())
    right = manifest["scorers"]["pep8"]["fingerprint"]
    manifest["scorers"]["pep8"]["fingerprint"] = other
    moved = tmp_path / "relabelled"
    moved.mkdir()
    shutil.copytree(dataset / "data", moved / "data")
    (moved / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=rf"relabelled is labelled by another scorer .*{other} now.*--dataset"):
        evaluate_run(run, dataset=str(moved))

    facts = run.read_facts()
    run.write_facts(facts.model_copy(update={"scorer": facts.scorer.model_copy(update={"fingerprint": other})}))
    with pytest.raises(UserError, match="--allow-other-scorer"):
        evaluate_run(run, dataset=str(moved))
    report = evaluate_run(run, dataset=str(moved), allow_other_scorer=True).report
    assert report.scorer.fingerprint == right
    assert report.scorer.entry.fingerprint == other
    assert any("may not be comparable" in warning for warning in report.warnings)


def test_another_tokenizer_is_refused(mle: RunFolder, dataset: Path, tmp_path: Path) -> None:
    run = make_real_run(dataset, tmp_path / "run")
    facts = run.read_facts()
    run.write_facts(facts.model_copy(update={"tokenizer": facts.tokenizer.model_copy(update={"fingerprint": "other"})}))
    with pytest.raises(UserError, match=r"is not the one that .* was trained with"):
        evaluate_run(run)


@pytest.mark.parametrize("tokenizer", ["kept", "gone", "not written down"])
def test_a_tokenizer_that_was_trained_for_a_run_is_found_again(tmp_path: Path, tokenizer: str) -> None:
    labelled, settings = tmp_path / "labelled", {"data.store": "null"}
    run = make_real_run(make_code_dataset(labelled, 40), tmp_path / "run", **settings)
    trained = run.read_facts().tokenizer.fingerprint
    if tokenizer == "kept":
        # As `phf label --extend` leaves it: another dataset in the same place.
        shutil.rmtree(labelled)
        grown = make_code_dataset(labelled, 60)
        assert prepare(config_of(grown, tmp_path / "new", **settings)).tokenizer.fingerprint != trained
        evaluate_run(run)
        grown.rename(tmp_path / "moved")
        grown.with_name("labelled.tokens").rename(tmp_path / "moved.tokens")
        evaluate_run(run, dataset=str(tmp_path / "moved"))
        return
    shutil.rmtree(tmp_path / "labelled.tokens")
    if tokenizer == "not written down":
        config = run.read_config()
        run.write_config(config.model_copy(update={"data": config.data.model_copy(update={"tokenizer": None})}))
    evaluate_run(run)
    assert Path(run.read_facts().tokenizer.name).exists()


def test_a_full_disk_leaves_no_report_beside_other_samples_and_nothing_half_written(mle: RunFolder) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(IncompleteError, match=r"evaluation cannot be written: File too large\. Make room"):
            evaluate_run(mle)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not (mle.evaluation / REPORT_NAME).exists()
    assert not list(mle.evaluation.glob(".*"))
    evaluate_run(mle)


def test_a_damaged_report_is_named(mle: RunFolder) -> None:
    path = mle.evaluation / REPORT_NAME
    before = path.read_text()
    path.write_text(before.replace('"schema_version": 1', '"schema_version": 7'))
    with pytest.raises(UserError, match=r"report.json is damaged, or of another version.*schema_version.*phf evaluate"):
        read_report(mle)
    path.write_text(before)
