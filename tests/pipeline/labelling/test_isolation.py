"""Blaming records for lost child processes, and labelling a unit in real child processes without Ray."""

import json
import sys
from pathlib import Path

import pytest

from pipeline.config import LabelConfig
from pipeline.corpus.cut_units import make_plan
from pipeline.labelling.resolve import ResolvedJob, groups_of, resolve_config
from pipeline.labelling.workers.isolation import IsolationError, Phase, Step, _Findings, _Loss, label_isolated
from scorers import registry
from tests.pipeline import probe


def loss(index: int, column: str = "pii", phase: Phase = Phase.RECORD) -> _Loss:
    return _Loss(Step(phase, index, "corpus.jsonl", 100 * index, column, 9), "worker-died", "SIGSEGV")


def test_a_record_is_poison_once_its_attempts_are_used_up() -> None:
    findings = _Findings(attempts=3)
    findings.add(loss(4))
    findings.add(loss(4, "pep8"))
    findings.add(loss(4))
    assert findings.known_errors == {}
    assert findings.first == 4
    findings.add(loss(4))
    (reasons,) = findings.known_errors.values()
    assert {column: (error.reason, error.detail) for column, error in reasons.items()} == {
        "pii": ("worker-died", "SIGSEGV, 3 times")
    }
    assert list(findings.known_errors) == [("corpus.jsonl", 400)]


def test_a_leaking_scorer_makes_progress_with_fresh_memory() -> None:
    findings = _Findings(attempts=2)
    for index in (100, 200, 300):
        findings.add(loss(index))
        findings.add(loss(index + 50, "", Phase.READ))
    assert findings.first == 350
    assert findings.known_errors == {}


@pytest.mark.parametrize(
    ("phase", "message"),
    [
        (Phase.START, "cannot score even a short test text"),
        (Phase.READ, "record 4 of the unit cannot be read"),
    ],
)
def test_a_loss_that_no_record_caused_finally_fails_the_unit(phase: Phase, message: str) -> None:
    findings = _Findings(attempts=2)
    findings.add(loss(4, "", phase))
    with pytest.raises(IsolationError, match=message):
        findings.add(loss(4, "", phase))


def test_a_unit_that_dies_only_as_a_whole_fails_at_once() -> None:
    with pytest.raises(IsolationError, match=r"each record can be scored alone, but not all together.*memory_limit"):
        _Findings(attempts=3).add(loss(0, "", Phase.TOGETHER))


def test_ten_poisoned_records_in_a_row_are_the_scorers_fault() -> None:
    findings = _Findings(attempts=1)
    for index in (0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13):
        findings.add(loss(index))
    with pytest.raises(IsolationError, match="10 records in a row"):
        findings.add(loss(14))


@pytest.mark.slow
def test_other_columns_get_the_text_of_a_record_that_kills_one_scorer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe.install(tmp_path / "packages")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "packages")])
    registry._plugins.cache_clear()
    monkeypatch.setenv(probe.LOG, str(tmp_path / "log"))
    texts = ["One. Two.", f"Three. {probe.EXIT}", "Four."]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    config = LabelConfig.model_validate(
        {
            "inputs": [str(tmp_path / "corpus.jsonl")],
            "output": str(tmp_path / "labelled"),
            "scorers": {"bad": {"kind": "poison_probe"}, "good": {"kind": "probe"}},
            "execution": {"attempts": 1},
        }
    )
    config = resolve_config(config)
    plan = make_plan(config)
    job = ResolvedJob(config, plan, groups_of(config), {})
    (unit,) = plan.units
    result = label_isolated(job, "cpu", unit, "staging/1.parquet")
    assert (result.rows, result.records, result.staged) == (2, 3, "staging/1.parquet")
    ((reason, detail),) = [(each.reason, each.detail) for each in result.quarantined]
    assert (reason, detail) == ("worker-died", "bad: exit status 3, once")
    # The other scorer got the whole text, alone and together with the others.
    assert (tmp_path / "log").read_text().split().count(probe.key(texts[1])) >= 2
