"""Samples are scored by the scorer of the corpus, or not at all."""

from collections.abc import Sequence

import numpy as np
import pytest

from pipeline.dataset.manifest import ScorerEntry
from scorers.contract import Execution, Scorer
from scorers.errors import UserError
from scorers.registry import ScorerSpec, build, resolve
from scorers.sentences import document
from training.scoring import judged_text, rebuild_scorer, score_samples

TEXTS = ["import os,sys\nx=1\n", "", "x = 1\n", "y = 2", "def f(:\n", "\n\n"]


def decode(ids: Sequence[int]) -> str:
    return bytes(ids).decode()


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return build("pep8", ScorerSpec(kind="pycodestyle"))


def entry(scorer: Scorer) -> ScorerEntry:
    options = resolve("pep8", ScorerSpec(kind="pycodestyle")).options
    return ScorerEntry(kind="pycodestyle", options=options, fingerprint=scorer.fingerprint)


def test_a_samples_score_is_the_mean_over_its_sentences(scorer: Scorer) -> None:
    scored = score_samples([list(text.encode()) for text in TEXTS], [True] * len(TEXTS), decode, scorer, "python")
    assert scored.texts == TEXTS
    for text, score, sentences in zip(TEXTS, scored.scores, scored.sentences, strict=True):
        each = document(text, "python")
        assert sentences == len(each.ends)
        if text:
            (expected,) = scorer.score([each])
            assert isinstance(expected, np.ndarray)
            assert score == pytest.approx(expected.mean())
    assert scored.scores[0] > 0
    assert scored.scores[2] == 0


def test_an_empty_sample_has_no_score(scorer: Scorer) -> None:
    scored = score_samples([[], list(b"x = 1\n"), []], [True] * 3, decode, scorer, "python")
    assert np.isnan(scored.scores[[0, 2]]).all()
    assert scored.scored.tolist() == [0.0]
    assert scored.unscored == {"empty": 2}


def test_samples_that_the_scorer_does_not_apply_to(scorer: Scorer) -> None:
    scored = score_samples([list(b"Some prose.")], [False], decode, scorer, "prose")
    assert scored.unscored == {"not-applicable": 1}
    assert len(scored.scored) == 0


def test_a_scorers_failure_is_counted_by_its_reason() -> None:
    deep = build("pep8", ScorerSpec(kind="pycodestyle"), Execution())
    scored = score_samples(
        [list(b"x = 1\n"), list(b"x = " + b"-" * 100_000 + b"1\n")], [True] * 2, decode, deep, "python"
    )
    assert scored.unscored == {"too-deep": 1}
    assert scored.scores[0] == 0


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_code_that_was_cut_is_judged_by_its_whole_lines(scorer: Scorer, line_end: str) -> None:
    whole = line_end.join(["x = 1", "y = 2", ""])
    broken_off = [whole + "z", whole + "z = (", whole + line_end + " " + line_end, whole]
    for text in broken_off:
        assert judged_text(text, "python", ended=False) == whole
        assert judged_text(text, "python", ended=True) == judged_text(text, "prose", ended=False) == text
    samples = [list(text.encode()) for text in broken_off]
    cut = score_samples(samples, [False] * 4, decode, scorer, "python")
    assert cut.scores.tolist() == [0.0] * 4
    assert cut.sentences.tolist() == [2] * 4
    assert cut.texts == broken_off
    # A model that ends its file there breaks PEP 8.
    ended = score_samples(samples, [True] * 4, decode, scorer, "python")
    assert (ended.scores > 0).tolist() == [True, True, True, False]


def test_code_that_was_cut_in_its_first_line_has_no_score(scorer: Scorer) -> None:
    samples = [list(text) for text in (b"import os", b"\n\n  import", b"\n", b"")]
    scored = score_samples(samples, [False] * 4, decode, scorer, "python")
    assert scored.reasons == ["no-whole-line"] * 3 + ["empty"]
    assert np.isnan(scored.scores).all()
    assert scored.sentences.tolist() == [0] * 4
    # Its only whole line breaks PEP 8, which no cut excuses.
    assert score_samples([list(b"x=1\ny")], [False], decode, scorer, "python").scores[0] > 0


def test_no_samples(scorer: Scorer) -> None:
    scored = score_samples([], [], decode, scorer, "python")
    assert scored.unscored == {}
    assert len(scored.scored) == 0


def test_the_same_scorer_is_rebuilt(scorer: Scorer) -> None:
    rebuilt, warnings = rebuild_scorer("pep8", entry(scorer))
    assert rebuilt.fingerprint == scorer.fingerprint
    assert warnings == []


def test_another_scorer_is_refused_unless_allowed(scorer: Scorer) -> None:
    other = entry(scorer).model_copy(update={"fingerprint": "pycodestyle-0000"})
    with pytest.raises(UserError, match=r"'pep8'.*pycodestyle-0000.*--allow-other-scorer"):
        rebuild_scorer("pep8", other)
    rebuilt, warnings = rebuild_scorer("pep8", other, allow_other=True)
    assert rebuilt.fingerprint == scorer.fingerprint
    assert len(warnings) == 1
    assert "pycodestyle-0000" in warnings[0]


def test_other_options_are_another_scorer(scorer: Scorer) -> None:
    changed = entry(scorer)
    changed = changed.model_copy(update={"options": {**changed.options, "max_line_length": 100}})
    with pytest.raises(UserError, match="not the one that labelled"):
        rebuild_scorer("pep8", changed)


def test_scores_that_came_with_the_corpus_have_no_scorer_for_samples() -> None:
    given = ScorerEntry(kind="column", options={"field": "scores"}, fingerprint="column-x")
    with pytest.raises(UserError, match=r"'toxicity' came with the corpus.*--scorer toxicity=detoxify"):
        rebuild_scorer("toxicity", given, allow_other=True)
