"""KL from a reference and the likelihood of a run's samples under it: exact values, real runs, files, and failures."""

import itertools
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

import phf
from scorers.errors import UserError
from tests.training.real_runs import make_code_dataset, make_real_run
from tests.training.tiny_writer import WORDS, folder_of_words
from training.data.prepare import prepare
from training.evaluation.evaluate_run import evaluate_run
from training.evaluation.likelihood import Law, log_probabilities
from training.evaluation.references import text_model
from training.evaluation.references.compare import compare_with_reference
from training.evaluation.references.reference import find_reference
from training.evaluation.references.samples import read_samples
from training.evaluation.references.text_model import NOT_THE_TEXT, Texts, open_folder, open_run
from training.measuring_config import EvaluationConfig
from training.model.language_model import load_model
from training.runs.folder import RunFolder
from training.runs.reference_report import read_reference_report, read_reference_reports, reference_path

SMALL = {"reference_samples": 300, "reference_tokens": 12}


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PHF_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_code_dataset(tmp_path_factory.mktemp("data") / "labelled", 30)


@pytest.fixture(scope="module")
def runs(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunFolder]:
    """An mle run and a conditional one with the same tokenizer, evaluated, and one with another tokenizer."""
    folder = tmp_path_factory.mktemp("runs")
    found = {
        name: make_real_run(dataset, folder / name, name, steps=4, **{"evaluation.guidance": guidance})
        for name, guidance in (("mle", 1), ("conditional", 2))
    }
    for run in found.values():
        evaluate_run(run)
    other = {"data.vocab_size": 270, "data.store": folder / "other.store"}
    return found | {"other": make_real_run(dataset, folder / "other", "mle", steps=4, **other)}


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("words")
    return [folder_of_words(folder / f"model {seed}", seed) for seed in (1, 2)]


def invoke(*arguments: Any) -> Any:
    return CliRunner().invoke(phf.app, ["evaluate", *map(str, arguments)])


def compare(*arguments: Any) -> list[dict[str, Any]]:
    small = [each for name, value in SMALL.items() for each in ("--set", f"{name}={value}")]
    result = invoke(*arguments, *small, "--json")
    assert result.exit_code == 0, result.output
    found: list[dict[str, Any]] = json.loads(result.stdout)["runs"]
    return found


def config(**changes: Any) -> EvaluationConfig:
    return EvaluationConfig(**{**SMALL, **changes})


def test_kl_is_that_of_all_texts_of_two_words(words: list[Path]) -> None:
    reference, other = (open_folder(folder, "cpu") for folder in words)
    every = [
        [],
        *([word] for word in range(1, 1 + WORDS)),
        *map(list, itertools.product(range(1, 1 + WORDS), repeat=2)),
    ]
    ended = [len(ids) < 2 for ids in every]
    p, q = (log_probabilities(each.model, each.law, every, ended).nats for each in (reference, other))
    assert math.fsum(np.exp(p)) == pytest.approx(1)
    exact = float((np.exp(p) * (p - q)).sum())
    assert exact > 0.05
    wanted = config(reference_samples=20_000, reference_tokens=2, batch_size=5000)
    drawn = find_reference(str(words[0]), "cpu").samples(wanted, None)
    assert drawn.texts.ids is not None
    # Each sample has the probability of its text, cut ones without EOS.
    known = {(tuple(ids), end): nats for ids, end, nats in zip(every, ended, p, strict=True)}
    seen = [known[tuple(ids), end] for ids, end in zip(drawn.texts.ids, drawn.texts.ended, strict=True)]
    assert drawn.nats == pytest.approx(seen)
    measured = other.measure(drawn.texts)
    assert not measured.reencoded
    differences = drawn.nats - measured.likelihood.nats
    assert differences.mean() == pytest.approx(exact, abs=4 * differences.std() / math.sqrt(20_000))
    assert (drawn.nats == reference.measure(drawn.texts).likelihood.nats).all()


def test_runs_are_compared_in_one_go_and_the_reference_with_itself(runs: dict[str, RunFolder]) -> None:
    mle, conditional = runs["mle"], runs["conditional"]
    found = compare(mle.path, conditional.path, "--reference", mle.path)
    assert [each["path"] for each in found] == [str(mle.path), str(conditional.path)]
    own, other = found
    assert own["divergence"]["kl"] == {"value": 0, "low": None, "high": None}
    assert other["divergence"]["kl"]["low"] > 0
    assert other["prompt"] == [0, conditional.read_facts().tokenizer.aligned_id]
    assert set(other["under_reference"]) == {"samples", "guided"}
    assert set(own["under_reference"]) == {"samples"}
    for each in found:
        assert each["reference"]["kind"] == "run"
        assert each["divergence"]["texts"] == SMALL["reference_samples"]
        assert not each["divergence"]["reencoded"]
        assert each["warnings"] == []
    reports = read_reference_reports(conditional)
    assert list(reports) == ["mle"]
    assert reports["mle"].model_dump(mode="json") == {name: each for name, each in other.items() if name != "path"}
    shown = invoke(
        conditional.path, "--reference", mle.path, *(f"--set={name}={value}" for name, value in SMALL.items())
    )
    assert "KL from the reference, nats per text" in shown.output
    assert "guided samples: perplexity under the reference" in shown.output


def test_likelihood_under_mle_is_that_of_single_passes(runs: dict[str, RunFolder]) -> None:
    mle, conditional = runs["mle"], runs["conditional"]
    compare(conditional.path, "--reference", mle.path)
    report = read_reference_report(conditional, "mle")
    assert report is not None
    table = pq.read_table(conditional.evaluation / "samples.parquet")
    data, model = prepare(mle.read_config()), load_model(mle.model).causal.eval()
    nats, tokens, size = 0.0, 0, 0
    for ids, ended in zip(table["ids"].to_pylist(), table["ended"].to_pylist(), strict=True):
        row = [data.tokenizer.eos_id, *ids, *([data.tokenizer.eos_id] if ended else [])]
        with torch.no_grad():
            logits = model(torch.tensor([row])).logits[0, :-1].double()
        nats += float(torch.nn.functional.cross_entropy(logits, torch.tensor(row[1:]), reduction="sum"))
        tokens, size = tokens + len(row) - 1, size + len(data.tokenizer.decode(ids).encode())
    under = report.under_reference["samples"]
    assert (under.texts, under.tokens) == (table.num_rows, tokens)
    assert under.perplexity.value == pytest.approx(math.exp(nats / tokens), rel=1e-5)
    assert under.bits_per_byte is not None
    assert under.bits_per_byte.value == pytest.approx(nats / math.log(2) / size, rel=1e-5)


def test_a_guidance_sweep_measures_likelihood_under_the_reference(runs: dict[str, RunFolder]) -> None:
    words = ["--guidance-sweep", "1,2", "--reference", runs["mle"].path, "--samples", "8", "--json"]
    result = invoke(runs["conditional"].path, *words)
    assert result.exit_code == 0, result.output
    (found,) = json.loads(result.stdout)["sweeps"]
    assert found["reference"]["name"] == "mle"


def test_finished_work_is_reused_and_stale_work_is_not(
    runs: dict[str, RunFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(Path(shutil.copytree(runs["mle"].path, tmp_path / "copy")))
    reference = find_reference(str(runs["mle"].path), "cpu")
    first = compare_with_reference(run, reference, config(), device="cpu")
    stored = reference_path(run, "mle").read_bytes()
    opened: list[Path] = []
    original = text_model.open_writer
    monkeypatch.setattr(
        text_model, "open_writer", lambda folder, device: opened.append(folder) or original(folder, device)
    )
    assert compare_with_reference(run, reference, config(), device="cpu") == first
    assert reference_path(run, "mle").read_bytes() == stored
    assert opened == []
    # Other settings, a damaged report, and a run that was trained further.
    assert compare_with_reference(run, reference, config(seed=1), device="cpu") != first
    reference_path(run, "mle").write_text("{}")
    again = compare_with_reference(run, reference, config(), device="cpu")
    assert again.divergence == first.divergence
    run.write_facts(run.read_facts().model_copy(update={"seconds": 1.5}))
    later = compare_with_reference(run, reference, config(), device="cpu")
    assert later.run != first.run
    # Its samples are those of an earlier state.
    assert later.under_reference == {}
    assert any("run `phf evaluate " in each for each in later.warnings)
    assert len(opened) > 0


def test_samples_of_a_reference_are_drawn_once(
    runs: dict[str, RunFolder], own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, wanted = str(runs["conditional"].path), config(seed=7, batch_size=11, reference_samples=60)
    before = set((own_cache / "references").glob("*"))
    first = find_reference(place, "cpu").samples(wanted, None)
    (file,) = set((own_cache / "references").glob("*")) - before
    with monkeypatch.context() as patch:
        patch.setattr(text_model, "open_writer", None)
        again = find_reference(place, "cpu").samples(config(seed=7, reference_samples=60), None)
    assert again.texts == first.texts
    assert (again.nats == first.nats).all()
    for damage in ("cut", "without metadata"):
        if damage == "cut":
            file.write_bytes(file.read_bytes()[:200])
        else:
            pq.write_table(pq.read_table(file).replace_schema_metadata(None), file)
        anew = find_reference(place, "cpu").samples(config(seed=7, reference_samples=60), None)
        assert anew.texts == first.texts
        assert anew.nats == pytest.approx(first.nats)
    tags = set(runs["conditional"].read_facts().tokenizer.control_ids)
    assert first.texts.ids is not None
    assert not any(tags & set(ids) for ids in first.texts.ids)


def test_other_tokenizers_read_the_same_text(runs: dict[str, RunFolder]) -> None:
    (found,) = compare(runs["other"].path, "--reference", runs["mle"].path)
    divergence = found["divergence"]
    assert divergence["reencoded"]
    left_out = divergence["left_out"].get(NOT_THE_TEXT, 0)
    assert divergence["texts"] + left_out == SMALL["reference_samples"]
    assert any("approximate" in each for each in found["warnings"])
    model, tokenizer = open_run(runs["other"], "cpu"), prepare(runs["other"].read_config()).tokenizer
    text = "value_1 = 2\nvalue_1=3 ;x=1\n"
    texts = Texts([text, "cut \ufffd", ""], None, [True, False, True], None)
    measured = model.measure(texts)
    assert measured.chosen.tolist() == [0, 2]
    assert measured.left_out == {NOT_THE_TEXT: 1}
    # Each line alone, as in training.
    ids = [int(each) for line in text.splitlines(keepends=True) for each in tokenizer.encode([line])[0]]
    law = Law((0,), 0, (), tokenizer.size(), 64)
    assert measured.likelihood.nats == pytest.approx(log_probabilities(model.model, law, [ids, []], [True, True]).nats)


def test_a_file_of_samples_is_a_reference(runs: dict[str, RunFolder], tmp_path: Path) -> None:
    records = [
        {"text": "value_1 = 2\n", "log_prob": -9.5, "ended": True},
        {"text": "value_2=3 ;x=1\n", "log_prob": -20, "note": "ignored"},
    ]
    lines, parquet = tmp_path / "gpt 3.jsonl", tmp_path / "gpt.parquet"
    lines.write_text("".join(json.dumps(each) + "\n\n" for each in records))
    table = pa.table({name: [each.get(name) for each in records] for name in ("text", "log_prob", "ended")})
    pq.write_table(table.set_column(1, "log_prob", table["log_prob"].cast(pa.float64())), parquet)
    mle = runs["mle"]
    by_lines, by_parquet = compare(mle.path, "--reference", lines, "--reference", parquet)
    assert by_lines["divergence"] == by_parquet["divergence"]
    assert [each["name"] for each in (by_lines, by_parquet)] == ["gpt-3.jsonl", "gpt.parquet"]
    assert by_lines["under_reference"] == {}
    texts = Texts([each["text"] for each in records], None, [True, False], None)
    nats = open_run(mle, "cpu").measure(texts).likelihood.nats
    assert by_lines["divergence"]["kl"]["value"] == pytest.approx((-9.5 - nats[0] - 20 - nats[1]) / 2)
    assert by_lines["drawn"]["max_tokens"] is None
    assert "The reference has 2 samples, not 300." in by_lines["warnings"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "secret", "log_prob": -1}\n{"text": "secret"', "line 2: not valid JSON"),
        ('{"text": "secret", "log_prob": -1}\n\n{"text": "secret"}', r"line 3: log_prob"),
        ('{"text": "secret", "log_prob": 0.5}', r"line 1: log_prob"),
        ('{"text": "secret", "log_prob": NaN}', "line 1: not valid JSON"),
        ('["secret"]', "line 1"),
        ('{"text": "secret", "log_prob": -1e308}', r"line 1: log_prob: Input should be greater than"),
        ('{"text": "\\ud800secret", "log_prob": -1}', "line 1: half of a surrogate pair"),
        ('{"text": "secret", "log_prob": -1}', "has 1 sample; an estimate needs at least 2"),
    ],
)
def test_a_broken_file_is_refused_without_its_text(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "reference.jsonl"
    file.write_text(content)
    with pytest.raises(UserError, match=message) as failure:
        read_samples(file, 10)
    assert "secret" not in str(failure.value)


def test_a_small_parquet_file_cannot_expand(tmp_path: Path) -> None:
    file = tmp_path / "reference.parquet"
    pq.write_table(pa.table({"text": ["x" * 10_000] * 1000, "log_prob": [-1.0] * 1000}), file)
    assert len(read_samples(file, 10_000).texts) == 1000
    pq.write_table(pa.table({"text": ["x" * 400_000] * 1000, "log_prob": [-1.0] * 1000}), file)
    with pytest.raises(UserError, match="more than 268,435,456 bytes"):
        read_samples(file, 10_000)
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(UserError, match="not a whole PARQUET file"):
        read_samples(file, 10)


def test_what_cannot_be_compared_is_refused_before_any_work(
    runs: dict[str, RunFolder], tmp_path: Path, words: list[Path]
) -> None:
    mle = runs["mle"].path
    without = Path(shutil.copytree(mle, tmp_path / "mle", ignore=shutil.ignore_patterns("model")))
    link = Path(shutil.copytree(words[0], tmp_path / "linked"))
    (link / "weights").symlink_to("/dev/zero")
    for arguments, message in (
        ([mle, "--reference", tmp_path / "nothing"], "there is no such run or model"),
        ([mle, "--reference", tmp_path], "there is no such run or model"),
        ([mle, "--reference", without], "has no model yet"),
        ([without, "--reference", mle], "has no model yet"),
        ([mle, "--reference", link], "neither a file nor a folder"),
        ([mle, "--reference", mle, "--reference", mle], "Two references are named mle"),
        ([mle, "--reference", mle, "--tasks", "one"], "--tasks has no effect here: --reference draws samples"),
        ([mle, "--reference", mle, "--reference", words[0], "--guidance-sweep", "1,2"], "under one --reference"),
        ([mle, "--reference", mle, "--samples", "3"], "--samples has no effect here"),
        ([mle, "--reference", mle, "--task-limit", "3"], "--task-limit has no effect here"),
    ):
        result = invoke(*arguments)
        assert result.exit_code == 2, result.output
        assert message in " ".join(result.output.split()), result.output


def test_a_token_that_the_run_never_draws_makes_kl_infinite(words: list[Path]) -> None:
    model = open_folder(words[0], "cpu")
    banned = text_model.replace(model, law=text_model.replace(model.law, banned_ids=(3,)))
    texts = Texts(model.decode([[1], [3]]), [[1], [3]], [True, True], model.vocabulary)
    measured = banned.measure(texts)
    assert measured.left_out == {text_model.NEVER_DRAWN: 1}
    assert measured.chosen.tolist() == [0]
    with pytest.raises(UserError, match="token ids that the tokenizer"):
        model.decode([[1, 99]])
