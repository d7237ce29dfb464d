"""Turn preference settings into a score column, thresholds, quantile bounds and loss masks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from scorers.errors import UserError
from training.config import DataConfig, MixtureConfig, ObjectiveConfig, ResolvedConfig
from training.data.combined import Combination, CombinedStore, Formula
from training.data.datasets import Source
from training.data.index import StreamOptions
from training.data.store import TokenStore
from training.data.tagged_stream import Stream
from training.data.thresholds import (
    ThresholdChoice,
    check_stream,
    document_threshold,
    quantile,
    quantiles,
    sentence_threshold,
)
from training.data.tokenizers import Tokenizer
from training.loss_mask import LossMask
from training.objectives import MLE, OBJECTIVES


@dataclass(frozen=True)
class Scale:
    """The score column of a stream, and its threshold.

    Attributes:
        store: has the column, also if it combines several.
        column: its name in the store.
        threshold: aligned means score <= value (filtering: mean); None for an objective without one.
        parts: the threshold of each combined column; empty for a single column, or without thresholds.
    """

    store: TokenStore
    column: str
    threshold: ThresholdChoice | None
    parts: Mapping[str, ThresholdChoice]


def check_preference(data: DataConfig, objective: ObjectiveConfig) -> None:
    """Refuse conflicting settings before any work is done.

    Raises:
        UserError: names the setting to change.
    """
    name, kind = objective.name, OBJECTIVES[objective.name]
    if not kind.tags:
        for setting, what, given in (
            ("drop_tags", "tags to drop", objective.drop_tags is not None),
            ("quantiles", "tags to give by quantiles", objective.quantiles is not None),
            ("tag_place", "tags to place", objective.tag_place != "before"),
            ("mask_control_tokens", "control tokens to mask", objective.mask_control_tokens),
        ):
            if given:
                raise UserError(f"The objective {name} has no {what}. Remove objective.{setting}.")
    _check_targets(data, objective)
    if objective.mask_control_tokens and objective.tag_place == "after":
        raise UserError(
            "objective.mask_control_tokens masks control tokens before sentences, and objective.tag_place=after has "
            "none. Remove one of them."
        )
    if objective.quantiles is not None and (objective.threshold is not None or objective.thresholds):
        raise UserError(
            "objective.quantiles takes the place of a threshold: remove it, or objective.threshold and "
            "objective.thresholds."
        )
    if data.columns and data.column is not None and data.column not in data.columns:
        raise UserError(
            f"data.column={data.column} is not one of data.columns ({', '.join(data.columns)}). It names the column "
            "that reports are about: add it to data.columns, or choose one of them."
        )
    if data.columns and objective.threshold is not None:
        raise UserError(
            "One objective.threshold cannot serve several columns. Set one for each column: "
            f"--set objective.thresholds.{next(iter(data.columns))}=NUMBER."
        )
    for entry in data.mixture:
        _check_mixed(entry, data, quantiles=objective.quantiles is not None)
    if data.token_scores and data.columns:
        raise UserError("data.token_scores needs a single score column. Set it to false, or remove data.columns.")
    unmasked = objective.mask_above is None and objective.hide_above is None
    if data.token_scores and issubclass(kind, MLE) and unmasked:
        raise UserError(
            f"data.token_scores has no effect on the objective {name}, whose loss does not depend on the scores of "
            "tokens. Set objective.mask_above or hide_above, choose unlikelihood, rwr or awr, or set data.token_scores "
            "to false."
        )
    if name == "token_rwr" and objective.mask_above is not None:
        raise UserError(
            "objective.mask_above is not for token_rwr, whose weights are relative to those of the other tokens of a "
            "block. Remove it, or choose the objective rwr."
        )
    others = [column for column in objective.thresholds if column not in data.columns]
    if others:
        raise UserError(
            f"objective.thresholds.{others[0]}: data.columns has no such column"
            + (
                f"; it has: {', '.join(data.columns)}."
                if data.columns
                else ". For one column, set objective.threshold."
            )
        )


def _check_targets(data: DataConfig, objective: ObjectiveConfig) -> None:
    if not OBJECTIVES[objective.name].weights:
        if objective.targets:
            raise UserError(
                f"The objective {objective.name} has no targets to meet. Remove objective.targets, or choose the "
                "objective target."
            )
        return
    if any(weight != 1 for weight in data.columns.values()):
        raise UserError("The objective target takes weights from objective.targets. Remove those of data.columns.")
    if data.token_scores:
        raise UserError("The objective target weights whole sentences. Set data.token_scores to false.")
    for setting in ("mask_above", "hide_above"):
        if getattr(objective, setting) is not None:
            raise UserError(
                f"The objective target weights sentences by several scores, of which objective.{setting} would not "
                "know which to take. Remove it; a target such as 'toxicity<=0.9: 1' leaves sentences out."
            )
    others = [entry for entry in data.mixture if entry.column not in (None, data.column)]
    if others:
        raise UserError(
            f"objective.targets apply to {others[0].dataset} too: remove its own column from data.mixture (or --mix)."
        )


def _check_mixed(entry: MixtureConfig, data: DataConfig, *, quantiles: bool) -> None:
    columns = data.columns
    if quantiles and (entry.threshold is not None or entry.thresholds):
        raise UserError(
            f"objective.quantiles takes the place of thresholds: remove it, or the threshold of {entry.dataset} in "
            "data.mixture."
        )
    if columns and (entry.column not in (None, data.column) or entry.threshold is not None):
        raise UserError(
            f"data.columns apply to {entry.dataset} too: remove its own column from data.mixture (or --mix), and "
            "give its thresholds by column (thresholds)."
        )
    others = [column for column in entry.thresholds if column not in columns]
    if others:
        raise UserError(
            f"The thresholds of {entry.dataset} in data.mixture are for data.columns, which has no {others[0]!r}. "
            + (f"It has: {', '.join(columns)}." if columns else "For one column, set threshold.")
        )


def report_threshold(config: ResolvedConfig, source: Source, column: str | None = None) -> ThresholdChoice:
    """Choose the sentence threshold for reports, whatever the objective: the one that conditional would use.

    Args:
        config: of the run, with its column filled in.
        source: the dataset.
        column: that the report is about; None for the dataset's own.
    """
    own, name = source.column, config.objective.name
    column = column or own
    given = source.thresholds.get(column, source.threshold if column == own else None)
    task = source.task if column == own and not config.data.columns else column
    return sentence_threshold(None if OBJECTIVES[name].filters else given, source.manifest, column, task, "conditional")


def loss_threshold(config: ResolvedConfig, source: Source) -> float:
    """Return the threshold on token scores for an objective that uses one in its loss, from the main dataset."""
    if config.data.columns:
        # The combined score is <= 0 exactly where every column is aligned.
        return 0.0
    return sentence_threshold(
        source.threshold, source.manifest, source.column, source.task, config.objective.name
    ).value


def choose_scale(config: ResolvedConfig, source: Source, store: TokenStore, weighting: Formula | None = None) -> Scale:
    """Choose the score column to train on, and its threshold.

    Several columns are combined. For an objective with a threshold, the combined score is above 0 where any column is
    above its threshold; for the others, which use the scores themselves (quantiles too), it is the weighted sum.

    Args:
        config: with its column filled in, checked by `check_preference`.
        source: the dataset, which has the columns.
        store: its tokens.
        weighting: weights of sentences to train on instead; None for none.
    """
    if weighting is not None:
        return Scale(CombinedStore(store, weighting), weighting.name, None, {})
    objective, columns = config.objective, config.data.columns
    kind = OBJECTIVES[objective.name]
    divides = kind.filters or ((kind.tags or kind.thresholds) and objective.quantiles is None)

    def choose(column: str, task: str, given: float | None) -> ThresholdChoice:
        if kind.filters:
            return document_threshold(given, source.manifest, column, task, store)
        return sentence_threshold(given, source.manifest, column, task, objective.name)

    if not columns:
        threshold = choose(source.column, source.task, source.threshold) if divides else None
        return Scale(store, source.column, threshold, {})
    if not divides:
        combination = Combination.of(columns)
        return Scale(CombinedStore(store, combination), combination.name, None, {})
    parts = {column: choose(column, column, source.thresholds.get(column)) for column in columns}
    combination = Combination.of(columns, {column: part.value for column, part in parts.items()})
    each = ", ".join(f"{column} <= {part.value:g} ({part.detail})" for column, part in parts.items())
    threshold = ThresholdChoice(0.0, "columns", f"the greatest excess of a column over its threshold: {each}")
    return Scale(CombinedStore(store, combination), combination.name, threshold, parts)


def tag(
    scale: Scale, options: StreamOptions, objective: ObjectiveConfig, tokenizer: Tokenizer
) -> tuple[StreamOptions, ThresholdChoice]:
    """Add control tokens to a stream's options; return them and the threshold of the best class.

    The bounds are the objective's quantiles of the stream without tags, else the scale's threshold.

    Raises:
        UserError: the stream is empty, or quantiles do not divide it.
    """
    threshold = scale.threshold
    if objective.quantiles is None:
        if threshold is None:
            raise ValueError("tags without quantiles need a threshold")
        bounds: Sequence[float] = [threshold.value]
    else:
        plain = Stream(scale.store, scale.column, options)
        check_stream(plain, objective.name, None)
        bounds = quantile_bounds(_scores(plain), objective.quantiles)
        threshold = _best_class(bounds, objective.quantiles)
    before, after = ((len(bounds) + 1) * (objective.tag_place in (place, "both")) for place in ("before", "after"))
    tagged = replace(
        options,
        tag_bounds=tuple(bounds),
        tag_ids=tokenizer.control_ids(before),
        after_ids=tokenizer.after_ids(before, after),
        drop_tags=objective.drop_tags or 0.0,
    )
    return tagged, threshold


def quantile_bounds(scores: NDArray[np.float32], classes: int) -> list[float]:
    """Return the upper bounds of all classes but the last, ascending: class i has scores in (bounds[i-1], bounds[i]].

    They are the k/classes quantiles (inverted CDF). Equal scores share a class, so where many are equal some quantiles
    coincide and there are fewer classes; none is empty.

    Args:
        scores: [n], n >= 1.
        classes: the number requested, >= 2.

    Raises:
        UserError: all scores are equal.
    """
    found = np.unique(quantiles(scores, [Fraction(number, classes) for number in range(1, classes)]))
    found = found[found < scores.max()]
    if not len(found):
        raise UserError(
            f"objective.quantiles={classes}: so many of the stream's sentences have the highest score, "
            f"{scores.max():g}, that one class would hold nearly all. Set more quantiles, set objective.threshold "
            "instead, or choose another column."
        )
    return [float(each) for each in found]


def loss_mask(objective: ObjectiveConfig, stream: Stream, threshold: ThresholdChoice | None) -> LossMask | None:
    """Build the loss mask, or return None if every token carries loss.

    Args:
        objective: the settings.
        stream: whose sentences a percentile refers to.
        threshold: the objective's, if it uses one.

    Raises:
        UserError: the mask covers no sentence or every sentence, or all tokens that the objective would push down.
    """
    limit = _limit("mask_above", "masks", objective, stream, threshold)
    ids = stream.options.tag_ids if objective.mask_control_tokens else ()
    hidden = stream.options.hidden_id
    if hidden is not None:
        ids = (*ids, hidden)
    return None if limit is None and not ids else LossMask(ids, limit, stream.options.between)


def hiding_limit(objective: ObjectiveConfig, stream: Stream, threshold: ThresholdChoice | None) -> float | None:
    """Return the score above which tokens are hidden, or None if none are.

    Args:
        objective: the settings.
        stream: whose sentences a percentile refers to.
        threshold: the objective's, if it uses one.

    Raises:
        UserError: no sentence or every sentence would be hidden, or all tokens that the objective would push down, or
            all that `mask_above` would mask.
    """
    limit = _limit("hide_above", "hides", objective, stream, threshold)
    masked = _limit("mask_above", "masks", objective, stream, threshold)
    if limit is not None and masked is not None and limit <= masked:
        raise UserError(
            f"objective.hide_above={objective.hide_above} ({limit:g}) hides every token that objective.mask_above="
            f"{objective.mask_above} ({masked:g}) would mask. Set it higher, or remove one of them."
        )
    return limit


def _limit(
    setting: str, does: str, objective: ObjectiveConfig, stream: Stream, threshold: ThresholdChoice | None
) -> float | None:
    """Return the limit that a setting gives, a score or a percentile of the stream's sentences; None if not set."""
    above: float | str | None = getattr(objective, setting)
    if above is None:
        return None
    limit = quantile(_scores(stream), Fraction(above[1:]) / 100) if isinstance(above, str) else float(np.float32(above))
    shown = f"objective.{setting}={above}" + (f" ({limit:g})" if isinstance(above, str) else "")
    kept, sentences = stream.count_aligned(limit)
    if kept in (0, sentences):
        shares = (Fraction(number, 100) for number in (50, 75, 90, 95, 99))
        values = ", ".join(f"p{100 * share} = {quantile(_scores(stream), share):g}" for share in shares)
        raise UserError(
            f"{shown} {does} {'no sentence' if kept else 'every sentence'} of the stream. Its scores: {values}. "
            "Set another value, or remove it."
        )
    if OBJECTIVES[objective.name].thresholds and threshold is not None and limit <= np.float32(threshold.value):
        raise UserError(
            f"{shown} {does} every token that {objective.name} would push down (score > {threshold.value:g}). "
            "Set it above the threshold, or choose the objective mle."
        )
    return limit


def _scores(stream: Stream) -> NDArray[np.float32]:
    scores = stream.sentence_scores()
    if not len(scores):
        raise UserError("No document of the stream has a sentence, so there are no scores to take percentiles of.")
    return scores


def _best_class(bounds: Sequence[float], requested: int) -> ThresholdChoice:
    classes = len(bounds) + 1
    fewer = "" if classes == requested else f" of {requested} requested, as many scores are equal"
    limits = ", ".join(f"{bound:g}" for bound in bounds)
    return ThresholdChoice(bounds[0], "quantiles", f"{classes} classes{fewer}, up to {limits} and above")
