"""Choose the threshold of a run (from the flag, the preset or the dataset), and check that it divides the stream."""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Context
from fractions import Fraction
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset import Manifest
from scorers.amounts import format_count
from scorers.errors import UserError
from training.data.store import TokenStore
from training.data.tagged_stream import Stream
from training.presets import is_papers_scorer, preset_threshold

# A labelling job's default for columns without `--threshold`.
_DEFAULT_SPEC = "p50"
_DIGITS = Context(prec=6, rounding=ROUND_CEILING)
_SHOWN_PERCENTILES = (0, 1, 5, 10, 25, 50, 75, 90, 95, 99)


@dataclass(frozen=True)
class ThresholdChoice:
    """A threshold and its origin.

    Attributes:
        value: aligned means score <= value, of a sentence (filtering: of a document, by its mean).
        origin: the kind of origin.
        detail: the origin in words, for messages.
    """

    value: float
    origin: Literal["flag", "manifest", "preset", "percentile", "columns", "quantiles"]
    detail: str


def sentence_threshold(
    given: float | None, manifest: Manifest, column: str, task: str, objective: str
) -> ThresholdChoice:
    """Choose the threshold for aligned sentences.

    The preset takes precedence over the dataset only if the dataset has the default p50, which a column labelled
    without `--threshold` gets.

    Args:
        given: `objective.threshold`; None for an objective that applies it to documents.
        manifest: of the dataset, which has the column.
        column: the score column.
        task: names the preset.
        objective: its name.
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
    """Choose the threshold on document means for filtering.

    A dataset's threshold applies to sentences. Its percentile carries over to document means: the share of aligned
    sentences becomes the share of documents to keep.

    Args:
        given: `objective.threshold`.
        manifest: of the dataset, which has the column.
        column: the score column.
        task: names the preset.
        store: has the document means.
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


def check_stream(stream: Stream, objective: str, threshold: ThresholdChoice | None) -> None:
    """Refuse a stream without a whole block, or one that a threshold does not divide.

    Args:
        stream: to train on.
        objective: its name.
        threshold: the objective's; None if it uses none.

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
            f"There is nothing to train on: the stream has {format_count(stream.num_tokens, 'token')}, and a block "
            f"needs {length}. {len(stream.documents)} of {format_count(stream.store.num_documents, 'document')} are in "
            f"it{f' (left out: {reasons})' if reasons else ''}. "
            "Lower data.context_length, choose another data.column, or label more text."
        )
    if threshold is not None and not filtering:
        aligned, sentences = stream.count_aligned(threshold.value)
        _refuse_one_sided(threshold, objective, "sentence", aligned, sentences, stream)


def quantile(values: NDArray[Any], share: Fraction) -> float:
    """Return the smallest value such that at least `share` of the values are <= it (inverted CDF); [n], n >= 1."""
    return float(quantiles(values, [share])[0])


def quantiles(values: NDArray[Any], shares: Sequence[Fraction]) -> NDArray[Any]:
    """Return the `quantile` of each share, in the dtype of the values."""
    ranks = [max(1, -(-len(values) * share.numerator // share.denominator)) - 1 for share in shares]
    return np.asarray(np.partition(values, ranks)[ranks])


def _preset(manifest: Manifest, column: str, task: str, objective: str) -> ThresholdChoice | None:
    explicit = column in manifest.config.get("thresholds", {}) or manifest.thresholds[column].spec != _DEFAULT_SPEC
    value = preset_threshold(task, objective)
    if explicit or value is None or not is_papers_scorer(task, manifest.scorers[column]):
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
            "All of them have the same score: no threshold can divide them. Choose another column, or the objective "
            "mle."
        )
    raise UserError(
        f"At the threshold {threshold.value:g} ({threshold.detail}) {every} of the stream is aligned "
        f"({measure} <= {threshold.value:g}), so {objective} has nothing to distinguish. {remedy}"
    )


def _working_thresholds(values: NDArray[Any]) -> dict[str, float]:
    """Return thresholds in a form easy to type, each with its share of aligned values, which is below 1."""
    working = {}
    for percentile in _SHOWN_PERCENTILES:
        value = quantile(values, Fraction(percentile, 100))
        # Round up, because a threshold just below the value would exclude it.
        rounded = _DIGITS.create_decimal(value)
        for text in (f"{float(rounded):g}", repr(value)):
            share = float((values <= values.dtype.type(text)).mean())
            if share < 1:
                working[text] = share
                break
    return working
