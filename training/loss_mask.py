"""Mask the loss of tokens that a model reads but does not learn: control tokens, and sentences with a high score."""

from dataclasses import dataclass, field, replace
from functools import cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenTerms:
    """An objective's terms for each predicted token, all of shape [B, T].

    Attributes:
        loss: of each token.
        means: quantities whose mean is logged, detached.
        maxima: quantities whose maximum is logged, detached.
    """

    loss: Tensor
    means: dict[str, Tensor] = field(default_factory=dict)
    maxima: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class LossMask:
    """Predicted tokens that are context only: they carry no loss, and their logged quantities are 0.

    Their loss, including awr's value term, is replaced by 0, so that it has no gradient. The loss is still divided by
    the number of all predicted tokens of the global batch: a constant, known without communication. So with a share m
    of the tokens masked, losses and gradients are 1 - m times the mean over the others, which affects gradient clipping
    but not Adam; `masked_share` is logged.

    MeCo masks metadata in this way (arXiv 2501.01956, section 2: the loss is over the document's tokens alone).
    Masking bad sentences is "masked SLUNG" (arXiv 2505.03052): the model reads them, but does not learn to write them.

    Attributes:
        ids: tokens that carry no loss.
        above: tokens whose sentence's score is greater carry none, compared as float32; None for no limit.
        between: tokens that are never masked by their score: those between documents belong to no sentence and have
            score 0, which is above a negative limit (several columns).
    """

    ids: tuple[int, ...] = ()
    above: float | None = None
    between: tuple[int, ...] = ()

    def apply(self, terms: "TokenTerms", predicted: Tensor, scores: Tensor) -> "TokenTerms":
        """Set the terms of masked tokens to 0; `predicted` and `scores` have the terms' shape."""
        masked = torch.zeros_like(predicted, dtype=torch.bool)
        for first, last in _runs(self.ids):
            masked |= (predicted >= first) & (predicted <= last)
        if self.above is not None:
            bad = scores.float() > self.above
            for each in self.between:
                bad &= predicted != each
            masked |= bad
        means = {name: each.masked_fill(masked, 0) for name, each in terms.means.items()}
        return replace(
            terms,
            loss=terms.loss.masked_fill(masked, 0),
            means={**means, "masked_share": masked.to(terms.loss.dtype)},
            maxima={name: each.masked_fill(masked, 0) for name, each in terms.maxima.items()},
        )


@cache
def _runs(ids: tuple[int, ...]) -> list[tuple[int, int]]:
    """Group ids into runs of consecutive ones, as (first, last): control tokens usually form a single run."""
    runs: list[tuple[int, int]] = []
    for each in sorted(ids):
        if runs and each <= runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], each)
        else:
            runs.append((each, each))
    return runs
