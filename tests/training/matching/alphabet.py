"""Everything of 8 tokens and length 3: a model given by tables, whose 512 sequences are enumerated."""

import itertools

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

TOKENS, LENGTH = 8, 3
SEQUENCES = np.array(list(itertools.product(range(TOKENS), repeat=LENGTH)))
# Two scores of a sequence, as a scorer would have them of its sentences.
WORST = SEQUENCES.max(axis=1) / 10
MEAN = SEQUENCES.mean(axis=1) / 10


class Tables(torch.nn.Module):
    """An autoregressive model with a table of logits for each prefix, in float64."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.tables = torch.nn.ParameterList(
            torch.randn(TOKENS**place, TOKENS, generator=generator, dtype=torch.float64) for place in range(LENGTH)
        )

    def log_probabilities(self, sequences: NDArray[np.int64] = SEQUENCES) -> Tensor:
        """Return log p of sequences [n, 3], float64 [n] with gradients."""
        ids = torch.from_numpy(sequences)
        prefix, total = torch.zeros(len(ids), dtype=torch.long), torch.zeros(len(ids), dtype=torch.float64)
        for place, table in enumerate(self.tables):
            total = total + table.log_softmax(-1)[prefix, ids[:, place]]
            prefix = prefix * TOKENS + ids[:, place]
        return total


def numbers(model: Tables) -> NDArray[np.float64]:
    """Return log p of all sequences."""
    return model.log_probabilities().detach().numpy()
