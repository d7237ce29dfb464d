"""Held-out figures by a metadata field: which document has which value, and figures that add up."""

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from pipeline.dataset import open_dataset
from pipeline.dataset.manifest import ScorerEntry
from scorers.errors import UserError
from scorers.registry import ScorerSpec, build, resolve
from tests.datasets import make_dataset
from tests.training.real_runs import make_real_run
from training.commands.evaluate_view import report_table
from training.evaluation.by_field import MOST_GROUPS, MetadataField, figures_by_field
from training.evaluation.evaluate_run import evaluate_run
from training.evaluation.held_out_loss import HeldOutLoss
from training.evaluation.prepare import Judge

METAS = [
    {"source": "web", "meta": {"set": "a"}},
    {"source": "books"},
    {"source": None},
    {},
    {"source": "web", "meta": {"set": "b"}, "meta.set": "exact"},
    {"source": 3},
    {"source": [1, 2]},
    {"source": "x" * 500},
]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = [f"Text {number}." for number in range(len(METAS))]
    return make_dataset(
        tmp_path_factory.mktemp("data") / "d", texts, {"mood": lambda _: 0.0}, metas=METAS, shard_rows=3
    )


def test_values_are_those_of_the_documents(dataset: Path) -> None:
    opened = open_dataset(str(dataset))
    field = MetadataField(opened, "source")
    assert field.values(np.arange(8)) == ["web", "books", None, None, "web", "3", "[1, 2]", "x" * 80]
    assert field.values(np.array([1, 4, 7])) == ["books", "web", "x" * 80]
    assert MetadataField(opened, "meta.set").values(np.array([0, 1, 4])) == ["a", None, "exact"]
    assert MetadataField(opened, "meta").values(np.array([0])) == ['{"set": "a"}']
    inputs = MetadataField(opened, "inputs")
    inputs.check()
    assert inputs.values(np.array([0, 7])) == ["corpus.jsonl"] * 2


def test_a_field_that_no_document_has_is_refused_with_those_there_are(dataset: Path, tmp_path: Path) -> None:
    opened = open_dataset(str(dataset))
    MetadataField(opened, "meta.set").check()
    with pytest.raises(UserError, match=r"evaluation\.by=origin: no document of .*They have: 'source', 'meta'"):
        MetadataField(opened, "origin").check()
    plain = open_dataset(str(make_dataset(tmp_path / "d", ["Text."], {"mood": lambda _: 0.0})))
    with pytest.raises(UserError, match="They have no metadata"):
        MetadataField(plain, "source").check()


def test_figures_are_those_of_the_documents_of_each_value() -> None:
    nats = np.array([8.0, 2.0, 6.0, 4.0]) * np.log(2)
    loss = HeldOutLoss(nats, np.array([4, 1, 2, 4]), np.array([8, 2, 4, 16]))
    facts = figures_by_field("source", ["a", None, "a", "b"], loss, np.array([0.5, 1.0, np.nan, 0.0]))
    assert facts.rest is None
    assert [(each.value, each.documents, each.bytes) for each in facts.groups] == [
        ("b", 1, 16),
        ("a", 2, 12),
        (None, 1, 2),
    ]
    b, a, missing = facts.groups
    assert [each.bits_per_byte.value for each in (a, b, missing) if each.bits_per_byte] == pytest.approx(
        [14 / 12, 4 / 16, 2 / 2]
    )
    assert a.perplexity is not None
    assert a.perplexity.value == pytest.approx(2 ** (14 / 6))
    assert a.misalignment is not None
    assert a.misalignment.value == 0.5
    assert a.bits_per_byte is not None
    assert a.bits_per_byte.low == pytest.approx(1.0)
    assert a.bits_per_byte.high == pytest.approx(1.5)
    assert b.bits_per_byte is not None
    assert b.bits_per_byte.low is None


def test_only_the_largest_values_have_figures_of_their_own() -> None:
    number = MOST_GROUPS + 5
    sizes = np.arange(1, number + 1)
    loss = HeldOutLoss(np.ones(number), sizes, sizes)
    facts = figures_by_field("id", [str(each) for each in sizes], loss, np.full(number, np.nan))
    assert [each.value for each in facts.groups] == [str(number - each) for each in range(MOST_GROUPS)]
    assert facts.rest is not None
    assert (facts.rest.value, facts.rest.documents, facts.rest.bytes) == (None, 5, 15)
    assert facts.rest.misalignment is None


def test_a_run_is_evaluated_by_a_field_with_the_samples_and_losses_of_before(tmp_path: Path) -> None:
    texts = [(f"value_{number} = {number}\n" * (2 + number % 3), "python") for number in range(40)]
    entry = ScorerEntry(
        kind="pycodestyle",
        options=resolve("pep8", ScorerSpec(kind="pycodestyle")).options,
        fingerprint=build("pep8", ScorerSpec(kind="pycodestyle")).fingerprint,
    )
    scores = {"pep8": lambda sentence: float("3" in sentence), "other": lambda sentence: float("2" in sentence)}
    metas = [{"source": "web" if number % 2 else "books"} for number in range(40)]
    dataset = make_dataset(
        tmp_path / "d", texts, scores, dict.fromkeys(scores, 0.0), scorers=dict.fromkeys(scores, entry), metas=metas
    )
    run = make_real_run(dataset, tmp_path / "run", **{"evaluation.num_samples": 4, "evaluation.leakage_samples": 0})
    plain = evaluate_run(run).report
    assert plain.by is None
    config = plain.config.model_copy(update={"by": "source"})
    # Another column of the dataset takes the samples and losses that are there.
    report = evaluate_run(run, config=config, judge=Judge("other")).report
    assert any("are those of" in warning for warning in report.warnings)
    assert report.by is not None
    assert report.held_out is not None
    assert {each.value for each in report.by.groups} == {"web", "books"}
    assert sum(each.documents for each in report.by.groups) == report.held_out.documents
    total = sum(each.bytes * each.bits_per_byte.value for each in report.by.groups if each.bits_per_byte)
    assert total / report.held_out.bytes == pytest.approx(report.held_out.bits_per_byte.value)
    shown = Console(width=120, file=io.StringIO())
    shown.print(report_table(report, "run"))
    assert "source=web" in shown.file.getvalue()  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="no document of"):
        evaluate_run(run, config=config.model_copy(update={"by": "origin"}))
