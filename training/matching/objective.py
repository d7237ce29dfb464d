"""The loss of a matching step: the log-probability of each sample, times its weight."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from training.loss_mask import TokenTerms
from training.model.sampling import rule_out
from training.objectives import Loss, Objective


@dataclass(frozen=True)
class WeightedLikelihood(Objective):
    """The mean over samples of -A log pi(x), where A is the weight of the sample, and pi never writes banned tokens.

    The `scores` of a block hold A at the tokens of the sample, and 0 at its prompt and its padding, which carry no
    loss.

    Attributes:
        banned_ids: tokens that are never sampled.
        vocab_size: ids from here on are padding.
        eos_id: any token that is not banned.
    """

    name: ClassVar[str] = "match"
    banned_ids: tuple[int, ...]
    vocab_size: int
    eos_id: int

    def loss(
        self, logits: Tensor, labels: Tensor, scores: Tensor, values: Tensor | None = None, *, count: int | None = None
    ) -> Loss:
        """See `Objective.loss`; the distribution is that over tokens which can be sampled."""
        ruled = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        out = torch.zeros(ruled.shape[-1], dtype=ruled.dtype, device=ruled.device)
        rule_out(out, torch.tensor(self.banned_ids, dtype=torch.long, device=ruled.device), self.vocab_size)
        # A control token in the prompt has an infinite cost, which no weight of 0 would undo.
        labels = torch.where(scores == 0, self.eos_id, labels)
        return super().loss(ruled + out, labels, scores, values, count=count)

    def terms(self, ce: Tensor, against: Tensor | None, scores: Tensor, values: Tensor | None) -> TokenTerms:
        """The weight of the sample times -log p."""
        return TokenTerms(scores * ce, {})
