"""Tokens that a model reads and does not learn: control tokens, and what is too bad."""

from dataclasses import dataclass, field, replace
from functools import cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenTerms:
    """What an objective says of each predicted token, all of shape [B, T].

    Attributes:
        loss: what the token loses.
        means: quantities to log the mean of, detached.
        maxima: quantities to log the maximum of, detached.
    """

    loss: Tensor
    means: dict[str, Tensor] = field(default_factory=dict)
    maxima: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class LossMask:
    """Predicted tokens that are context only: they carry no loss, and what is logged of them is 0.

    What they lose, by awr's value head too, is replaced by 0, so that no gradient comes of it whatever it was. The
    divisor of the loss stays the number of all predicted tokens of the global batch: a constant, known without asking
    any rank. So with a share m of the tokens masked, losses and gradients are 1 - m times the mean over the others,
    which Adam does not see and gradient clipping does; `masked_share` is logged to tell.

    Masking tags is MeCo's treatment of metadata (arXiv 2501.01956, section 2: the loss is over the document's tokens
    alone). Masking what is bad is "masked SLUNG" (arXiv 2505.03052): the model reads it, and never learns to write it.

    Attributes:
        ids: tokens that carry no loss.
        above: tokens whose sentence's score is above it carry none, compared as float32; None for all scores.
        between: tokens that are not masked by their score: those between documents belong to no sentence and score 0,
            which is above the limit where that is a margin below 0 (several columns).
    """

    ids: tuple[int, ...] = ()
    above: float | None = None
    between: tuple[int, ...] = ()

    def apply(self, terms: "TokenTerms", predicted: Tensor, scores: Tensor) -> "TokenTerms":
        """The terms of the tokens that carry loss, 0 for the others; `predicted` and `scores` are of their shape."""
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
    """First and last of runs of consecutive ids: control tokens are mostly one, however many there are."""
    runs: list[tuple[int, int]] = []
    for each in sorted(ids):
        if runs and each <= runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], each)
        else:
            runs.append((each, each))
    return runs
