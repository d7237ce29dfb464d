"""Scorers in several processes."""

from collections.abc import Sequence

import numpy as np
import pytest

from pipeline.dataset.manifest import ScorerEntry
from scorers.contract import Document, Execution, ScoringError
from scorers.errors import UserError
from scorers.registry import ScorerSpec, build
from scorers.sentences import document
from training import scorer_pool
from training.scorer_pool import PooledScorer, ScorerPool, pooled

LINES = ["x = 1\n", "x=1 ;y=2\n", "def f(a,b):\n    return a\n", "if x :\n  y\n", "\n", "import os,sys\n"]


@pytest.fixture(scope="module")
def entry() -> ScorerEntry:
    return ScorerEntry(
        kind="pycodestyle", options={}, fingerprint=build("pep8", ScorerSpec(kind="pycodestyle")).fingerprint
    )


class Counted:
    """A scorer that counts the documents of each call in this process."""

    def __init__(self, entry: ScorerEntry) -> None:
        self._scorer, self.calls = build("pep8", ScorerSpec(kind=entry.kind, **entry.options)), list[int]()
        self.name, self.fingerprint, self.applies = self._scorer.name, self._scorer.fingerprint, self._scorer.applies

    def score(self, documents: Sequence[Document]) -> list[np.ndarray | ScoringError]:
        self.calls.append(len(documents))
        return self._scorer.score(documents)


def test_scores_do_not_depend_on_the_number_of_processes(entry: ScorerEntry, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [document(LINES[number % 6] * (number % 4), "python") for number in range(14)]
    expected = build("pep8", ScorerSpec(kind="pycodestyle")).score(documents)
    monkeypatch.setattr(scorer_pool, "_GROUP", 3)
    monkeypatch.setattr(scorer_pool, "usable_cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    found, calls = {}, {}
    for name, least in (("one", 1e9), ("several", -1.0)):
        monkeypatch.setattr(scorer_pool, "_LEAST_SAVED_S", least)
        counted = Counted(entry)
        found[name], calls[name] = PooledScorer(counted, entry, Execution()).score(documents), counted.calls
    assert calls == {"one": [3, 3, 3, 3, 2], "several": [3]}
    for scores in found.values():
        assert [each.tolist() for each in scores] == [each.tolist() for each in expected]


def test_a_share_of_the_cores_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorer_pool, "usable_cores", lambda: 6)
    for given, processes in (("2", 2), ("0", 6), ("many", 6), ("64", 6)):
        monkeypatch.setenv("OMP_NUM_THREADS", given)
        assert scorer_pool.usable_processes() == processes


def test_a_scorer_that_changed_meanwhile_is_not_mixed_with_this_one(entry: ScorerEntry) -> None:
    counted = Counted(entry)
    counted.fingerprint = "other"
    with ScorerPool("pep8", entry, counted, 2) as pool, pytest.raises(UserError, match="'pep8' changed while it ran"):
        pool.call("score", [[document("x = 1\n", "python")]] * 2)


def test_networks_keep_their_own_batches(entry: ScorerEntry) -> None:
    scorer = Counted(entry)
    network = ScorerEntry(kind="detoxify", options={}, fingerprint="f")
    assert pooled(scorer, network, Execution()) is scorer
    assert isinstance(pooled(scorer, entry, Execution()), PooledScorer)
