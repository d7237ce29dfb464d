"""Score samples with the scorer that labelled the training data, or with another on request."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset.manifest import Manifest, ScorerEntry
from scorers.contract import Document, DocumentKind, Execution, Scorer, ScoringError
from scorers.errors import UserError
from scorers.registry import ScorerSpec, build, check_recorded, given_field, resolve
from scorers.sentences import document, split
from scorers.trusted_pickles import trusted_by_user

EMPTY = "empty"
NOT_APPLICABLE = "not-applicable"
NOT_A_SCORE = "not-a-score"
NO_WHOLE_LINE = "no-whole-line"


@dataclass(frozen=True)
class ScoredSamples:
    """Samples and their scores.

    Attributes:
        texts: decoded samples.
        scores: float64 [n], the mean over each sample's sentences; NaN without a score.
        sentences: int64 [n], sentences per sample that are scored.
        reasons: why a sample has no score: `empty` (no text), `no-whole-line` (see `judged_text`), or the scorer's own
            reason; None if it has one.
    """

    texts: list[str]
    scores: NDArray[np.float64]
    sentences: NDArray[np.int64]
    reasons: list[str | None] = field(repr=False)

    @property
    def scored(self) -> NDArray[np.float64]:
        """float64, the scores of the scored samples."""
        return self.scores[~np.isnan(self.scores)]

    @property
    def unscored(self) -> dict[str, int]:
        """Number of samples without a score, by reason."""
        return dict(sorted(Counter(reason for reason in self.reasons if reason is not None).items()))

    def worst(self, number: int) -> list[int]:
        """Return the indices of at most `number` samples, worst scores first, those without a score last."""
        scores = self.scores.tolist()
        return sorted(range(len(scores)), key=lambda index: (math.isnan(scores[index]), -scores[index]))[:number]


def rebuild_scorer(
    column: str, entry: ScorerEntry, *, device: str = "cpu", allow_other: bool = False
) -> tuple[Scorer, list[str]]:
    """Rebuild the scorer of a column of the training data, verified by its fingerprint.

    Args:
        column: the column's name.
        entry: the manifest's entry for it.
        device: for a scorer with a network.
        allow_other: warn instead of raising if the fingerprint differs.

    Returns:
        The scorer, and warnings for the report.

    Raises:
        UserError: it cannot be built here, or differs, so that its scores would not be comparable; or the scores came
            with the corpus, so that there is no scorer for samples.
    """
    spec = ScorerSpec(kind=entry.kind, **entry.options)
    if given_field(column, spec) is not None:
        raise UserError(
            f"The scores of {column!r} came with the corpus (scorer {entry.kind!r}): there is no scorer for samples. "
            f"Label the corpus with one that computes them, such as --scorer {column}=detoxify, and train on that."
        )
    execution = Execution(device=device)
    check_recorded(column, spec, entry.fingerprint, execution.trusted_sha256)
    scorer = build(column, spec, execution)
    if scorer.fingerprint == entry.fingerprint:
        return scorer, []
    difference = (
        f"The scorer {column!r} ({entry.kind}) here is not the one that labelled the training data: its fingerprint is "
        f"{scorer.fingerprint}, the dataset's is {entry.fingerprint}. "
    )
    if not allow_other:
        raise UserError(
            difference + "A library, a model file or the code has changed since, so scores of samples and of the data "
            "would not be comparable. Install the versions that labelled the data, label it again, or accept the "
            "difference with --allow-other-scorer."
        )
    return scorer, [difference + "Scores of samples and of the training data may not be comparable."]


def other_scorer(name: str, spec: ScorerSpec, manifest: Manifest, *, device: str = "cpu") -> tuple[Scorer, ScorerEntry]:
    """Build a scorer that did not label the training data, so that training could not optimise for it.

    Args:
        name: given by the user.
        spec: its kind and options.
        manifest: of the dataset.
        device: for a scorer with a network.

    Returns:
        The scorer, and the entry that a manifest would have for it.

    Raises:
        UserError: the dataset has a column of that name; it cannot be built here; or it computes no scores.
    """
    if name in manifest.scorers:
        raise UserError(
            f"--scorer {name}: the dataset has a column of that name. Use that with --column {name}, or give the "
            f"scorer another name, such as --scorer other_{name}={spec.kind}."
        )
    if given_field(name, spec) is not None:
        raise UserError(
            f"--scorer {name}: a scorer of kind {spec.kind!r} reads scores from a corpus; samples have none."
        )
    scorer = build(name, spec, Execution(device=device, trusted_sha256=trusted_by_user([spec.options])))
    options = resolve(name, spec).options
    return scorer, ScorerEntry(kind=spec.kind, options=options, fingerprint=scorer.fingerprint)


def judged_text(text: str, kind: DocumentKind, *, ended: bool) -> str:
    """Return the part of a sample that is judged: all of it, or of Python that was cut off, its whole lines.

    A linter counts violations where code breaks off: no newline at the end of the file (W292), or, if it breaks off
    between two blocks, a blank line there (W391). Neither is a fault of the model. So cut code is judged up to the end
    of its last whole line that is not blank; without such a line, nothing is left to judge.

    Args:
        text: the decoded sample.
        kind: of the training documents.
        ended: whether the model ended the sample itself.
    """
    if ended or kind != "python":
        return text
    ends = [0, *split(text, kind).tolist()]
    if text and text[-1] not in "\r\n":
        ends.pop()
    while len(ends) > 1 and not text[ends[-2] : ends[-1]].strip():
        ends.pop()
    return text[: ends[-1]]


def score_samples(
    ids: Sequence[Sequence[int]],
    ended: Sequence[bool],
    decode: Callable[[Sequence[int]], str],
    scorer: Scorer,
    kind: DocumentKind,
) -> ScoredSamples:
    """Decode samples, split them as the corpus was split, and score what `judged_text` leaves of them.

    Args:
        ids: token ids of each sample, with nothing stripped.
        ended: whether each sample ended by itself; the others were cut.
        decode: from ids to text, losslessly.
        scorer: see `rebuild_scorer`.
        kind: of the training documents.
    """
    return score_texts([decode(sample) for sample in ids], ended, scorer, kind)


def score_texts(texts: list[str], ended: Sequence[bool], scorer: Scorer, kind: DocumentKind) -> ScoredSamples:
    """Split texts as the corpus was split, and score them; the arguments are those of `score_samples`."""
    documents = [
        document(judged_text(text, kind, ended=by_itself), kind) for text, by_itself in zip(texts, ended, strict=True)
    ]
    reasons = [_why_not(text, each, scorer) for text, each in zip(texts, documents, strict=True)]
    wanted = [index for index, reason in enumerate(reasons) if reason is None]
    scores = np.full(len(texts), np.nan)
    for index, result in zip(wanted, scorer.score([documents[each] for each in wanted]), strict=True):
        if isinstance(result, ScoringError):
            reasons[index] = result.reason
        elif len(result) != len(documents[index].ends) or not np.isfinite(result).all():
            reasons[index] = NOT_A_SCORE
        else:
            scores[index] = result.mean(dtype=np.float64)
    return ScoredSamples(texts, scores, np.array([len(each.ends) for each in documents], dtype=np.int64), reasons)


def _why_not(text: str, judged: Document, scorer: Scorer) -> str | None:
    if not text:
        return EMPTY
    if not judged.text:
        return NO_WHOLE_LINE
    return None if scorer.applies(judged) else NOT_APPLICABLE
