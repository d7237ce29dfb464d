"""What `phf credit` minimises: lists of sentences in the right order, and each sentence's score."""

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name that every PyTorch user knows


def listwise(log_odds: Tensor, order: Tensor) -> Tensor:
    """Return the negative log-likelihood of an order under the model of Plackett and Luce (ListMLE), the mean of lists.

    Args:
        log_odds: [lists, K], of the sentences.
        order: int64 [lists, K], the sentences of each list by their true scores, worst first, ties in any order.
    """
    ordered = log_odds.gather(1, order)
    # Each sentence against itself and those after it.
    rest = ordered.flip(1).logcumsumexp(1).flip(1)
    return (rest - ordered).sum(1).mean()


def calibration(log_odds: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean Huber loss between the log-odds of sentences and those of their scores, [n] each."""
    return F.smooth_l1_loss(log_odds, wanted)


def score_log_odds(scores: Tensor, scale: float, least: float) -> Tensor:
    """Return the log-odds of scores [n] as a share of `scale`, which is cut to [least, 1 - least]."""
    share = (scores.double() / scale).clamp(least, 1 - least)
    return torch.logit(share).float()
