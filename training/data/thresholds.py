"""Which threshold a run uses (the flag's, else the dataset's, else the preset's), and whether it divides the stream."""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Context
from fractions import Fraction
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset import Manifest
from scorers.amounts import count_of
from scorers.errors import UserError
from training.data.store import TokenStore
from training.data.stream import Stream
from training.presets import is_papers_scorer, preset_threshold

# What a labelling job takes for a column that nobody gave a threshold for.
_DEFAULT_SPEC = "p50"
_DIGITS = Context(prec=6, rounding=ROUND_CEILING)
_SHOWN_PERCENTILES = (0, 1, 5, 10, 25, 50, 75, 90, 95, 99)


@dataclass(frozen=True)
class ThresholdChoice:
    """A threshold and why it was taken.

    Attributes:
        value: aligned means score <= value, of a sentence (filtering: of a document, by its mean).
        origin: where it is from.
        detail: the origin in words, for people.
    """

    value: float
    origin: Literal["flag", "manifest", "preset", "percentile", "columns", "quantiles"]
    detail: str


def sentence_threshold(
    given: float | None, manifest: Manifest, column: str, task: str, objective: str
) -> ThresholdChoice:
    """The threshold that tells aligned sentences from the others.

    The preset's goes before the dataset's only where nobody asked for the dataset's: a column that is labelled
    without `--threshold` gets p50.

    Args:
        given: `objective.threshold`, unless the objective means documents by it.
        manifest: of the dataset, which has the column.
        column: the score column.
        task: whose preset.
        objective: the name of the objective.
    """
    if given is not None:
        return ThresholdChoice(given, "flag", "objective.threshold")
    threshold = manifest.thresholds[column]
    papers = _preset(manifest, column, task, objective)
    if papers is not None:
        return papers
    return ThresholdChoice(threshold.value, "manifest", f"the dataset's {column}={threshold.spec}")


def document_threshold(
    given: float | None, manifest: Manifest, column: str, task: str, store: TokenStore
) -> ThresholdChoice:
    """The threshold on document means that filtering keeps documents by.

    A dataset's threshold is one on sentences. What carries over to document means is its percentile: the share of
    sentences that it calls aligned is the share of documents that are kept.

    Args:
        given: `objective.threshold`.
        manifest: of the dataset, which has the column.
        column: the score column.
        task: whose preset.
        store: with the document means.
    """
    if given is not None:
        return ThresholdChoice(given, "flag", "objective.threshold")
    papers = _preset(manifest, column, task, "filtering")
    if papers is not None:
        return papers
    threshold = manifest.thresholds[column]
    share = (
        Fraction(threshold.spec[1:]) / 100
        if threshold.spec.startswith("p")
        else Fraction(threshold.aligned, max(1, threshold.sentences))
    )
    means = store.document_means(column)
    means = means[~np.isnan(means) & (np.diff(store.document_offsets) > 0)]
    value = quantile(means, share) if len(means) else 0.0
    detail = f"the dataset's {column}={threshold.spec} as a percentile of document means ({float(share):.1%})"
    return ThresholdChoice(value, "percentile", detail)


def document_limit(threshold: float) -> float:
    """What document means, float64, are compared with: a score that equals the threshold as float32 is aligned.

    Else a document of one sentence, of score float32(0.1), would be misaligned by 0.1 as a document and aligned as a
    sentence.
    """
    return max(threshold, float(np.float32(threshold)))


def check_stream(stream: Stream, objective: str, threshold: ThresholdChoice | None) -> None:
    """Refuse a stream that holds no block, or that a threshold does not divide.

    Args:
        stream: to be trained on.
        objective: its name.
        threshold: what the objective tells aligned from misaligned by; None if it does not.

    Raises:
        UserError: nothing to train on, or everything is on one side of the threshold; names thresholds that would work.
    """
    filtering = objective == "filtering"
    left_out = stream.statistics["documents_left_out"]
    if threshold is not None and filtering:
        kept = len(stream.documents)
        _refuse_one_sided(threshold, objective, "document", kept, kept + left_out["filtered"], stream)
    if not stream.num_blocks:
        length = stream.options.context_length
        reasons = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in left_out.items() if count)
        raise UserError(
            f"There is nothing to train on: the stream has {count_of(stream.num_tokens, 'token')}, and a block "
            f"{length}. {len(stream.documents)} of {count_of(stream.store.num_documents, 'document')} are in it"
            f"{f' (left out: {reasons})' if reasons else ''}. "
            "Lower data.context_length, choose another data.column, or label more text."
        )
    if threshold is not None and not filtering:
        aligned, sentences = stream.count_aligned(threshold.value)
        _refuse_one_sided(threshold, objective, "sentence", aligned, sentences, stream)


def quantile(values: NDArray[Any], share: Fraction) -> float:
    """The smallest value such that at least `share` of the values are <= it (inverted CDF); values [n], n >= 1."""
    return float(quantiles(values, [share])[0])


def quantiles(values: NDArray[Any], shares: Sequence[Fraction]) -> NDArray[Any]:
    """The same for several shares at once, in the dtype of the values."""
    ranks = [max(1, -(-len(values) * share.numerator // share.denominator)) - 1 for share in shares]
    return np.asarray(np.partition(values, ranks)[ranks])


def _preset(manifest: Manifest, column: str, task: str, objective: str) -> ThresholdChoice | None:
    asked_for = column in manifest.config.get("thresholds", {}) or manifest.thresholds[column].spec != _DEFAULT_SPEC
    value = preset_threshold(task, objective)
    if asked_for or value is None or not is_papers_scorer(task, manifest.scorers[column]):
        return None
    return ThresholdChoice(value, "preset", f"the paper's for {objective} on {task}")


def _refuse_one_sided(
    threshold: ThresholdChoice, objective: str, what: str, aligned: int, total: int, stream: Stream
) -> None:
    if 0 < aligned < total or not total:
        return
    every = f"every {what}" if aligned else f"no {what}"
    measure = "mean score" if what == "document" else "score"
    working = _working_thresholds(stream.document_means() if what == "document" else stream.sentence_scores())
    if threshold.origin == "columns":
        remedy = "Set other objective.thresholds, or leave a column out of data.columns."
    elif working:
        options = ", ".join(f"{value} ({share:.1%} aligned)" for value, share in working.items())
        remedy = f"Thresholds that would work: {options}. Set --set objective.threshold=NUMBER."
    else:
        remedy = (
            "All of them have the same score: no threshold can divide them. Choose another column, or objective mle."
        )
    raise UserError(
        f"At the threshold {threshold.value:g} ({threshold.detail}) {every} of the stream is aligned "
        f"({measure} <= {threshold.value:g}), so {objective} has nothing to tell apart. {remedy}"
    )


def _working_thresholds(values: NDArray[Any]) -> dict[str, float]:
    """Thresholds as a person can type them, each with the share of values that it calls aligned, below all of them."""
    working = {}
    for percentile in _SHOWN_PERCENTILES:
        value = quantile(values, Fraction(percentile, 100))
        # Rounded up, because a threshold just below the value would leave the value out.
        rounded = _DIGITS.create_decimal(value)
        for text in (f"{float(rounded):g}", repr(value)):
            share = float((values <= values.dtype.type(text)).mean())
            if share < 1:
                working[text] = share
                break
    return working
