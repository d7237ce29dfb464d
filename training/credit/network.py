"""The network behind `phf credit`: log-odds of each token, which add up to those of its sentence.

Preference-grounded token-level guidance (arXiv 2306.00398) learns a score per token whose aggregate over a text orders
texts as their true scores do. Here a token is judged by itself and by a few neighbours, no more: a network that sees
the whole sentence could place its score on any token, this one can only place it near the tokens that matter.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that every PyTorch user knows

Aggregate = Literal["soft-max", "mean", "soft-min"]


@dataclass(frozen=True)
class FlatSentences:
    """Sentences one after the other, with room between them, so that no token sees those of another sentence.

    Attributes:
        ids: int64 [n], token ids plus 1, and 0 in the room before and after each sentence.
        places: int64 [tokens], where in `ids` each token stands.
        sentence: int64 [tokens], the number of its sentence, ascending.
        count: number of sentences, each of at least one token.
    """

    ids: Tensor
    places: Tensor
    sentence: Tensor
    count: int

    @classmethod
    def of(cls, tokens: NDArray[Any], lengths: NDArray[np.int64], window: int) -> "FlatSentences":
        """Lay out sentences.

        Args:
            tokens: [tokens], integers, those of all sentences, concatenated.
            lengths: [sentences], tokens of each, at least 1.
            window: neighbours that a token sees on each side.
        """
        sentence = np.repeat(np.arange(len(lengths)), lengths)
        places = np.arange(len(tokens)) + (sentence + 1) * window
        ids = np.zeros(len(tokens) + (len(lengths) + 1) * window, dtype=np.int64)
        ids[places] = tokens.astype(np.int64) + 1
        return cls(torch.from_numpy(ids), torch.from_numpy(places), torch.from_numpy(sentence), len(lengths))

    def to(self, device: torch.device) -> "FlatSentences":
        """Return the same on another device."""
        return FlatSentences(self.ids.to(device), self.places.to(device), self.sentence.to(device), self.count)


class TokenCredit(nn.Module):
    """Two judgements of each token: by itself alone, and what its neighbours add to that.

    Both are trained to explain the sentence, so that neighbours only take credit for what the token itself cannot
    explain.

    Args:
        vocabulary: number of token ids.
        width: of the embeddings and the hidden layers.
        window: neighbours that a token sees on each side; 0 for none.
    """

    def __init__(self, vocabulary: int, width: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.embedding = nn.Embedding(vocabulary + 1, width, padding_idx=0)
        self.alone = nn.Linear(width, width)
        self.alone_output = nn.Linear(width, 1)
        if window:
            self.around = nn.Conv1d(width, width, 2 * window + 1)
            self.around_output = nn.Linear(width, 1)

    def start(self, seed: int, log_odds: float) -> None:
        """Draw the weights; every token then has the given log-odds."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name.endswith("output.weight") or parameter.dim() == 1:
                    parameter.zero_()
                elif name.startswith("embedding"):
                    parameter.normal_(generator=generator)
                    parameter[0] = 0
                else:
                    bound = 1 / parameter[0].numel() ** 0.5
                    parameter.uniform_(-bound, bound, generator=generator)
            self.alone_output.bias.fill_(log_odds)

    def forward(self, sentences: FlatSentences) -> tuple[Tensor, Tensor]:
        """Return the log-odds of the tokens, float32 [tokens]: by themselves, and with their neighbours."""
        embedded = self.embedding(sentences.ids)
        alone: Tensor = self.alone_output(F.gelu(self.alone(embedded[sentences.places]))).squeeze(-1)
        if not self.window:
            return alone, alone
        seen = self.around(embedded.T.unsqueeze(0))[0].T
        # The result for a token stands `window` places before it, at the first token that it sees.
        around = self.around_output(F.gelu(seen[sentences.places - self.window])).squeeze(-1)
        return alone, alone + around


def aggregate(log_odds: Tensor, sentence: Tensor, count: int, how: Aggregate) -> Tensor:
    """Return the log-odds of each sentence, [count], from those of its tokens.

    The odds of a sentence are the sum of its tokens' odds (`soft-max`: one guilty token is enough, and a token's share
    of the sum is its share of the guilt), the inverse of the sum of their inverses (`soft-min`), or their geometric
    mean (`mean`).

    Args:
        log_odds: [tokens].
        sentence: int64 [tokens], the number of each token's sentence; every sentence has a token.
        count: number of sentences.
        how: see above.
    """
    if how == "soft-min":
        return -aggregate(-log_odds, sentence, count, "soft-max")
    zeros = log_odds.new_zeros(count)
    if how == "mean":
        totals = zeros.index_add(0, sentence, log_odds)
        return totals / zeros.index_add(0, sentence, torch.ones_like(log_odds))
    highest = highest_of(log_odds.detach(), sentence, count)
    return highest + zeros.index_add(0, sentence, (log_odds - highest[sentence]).exp()).log()


def highest_of(values: Tensor, sentence: Tensor, count: int) -> Tensor:
    """Return the highest value of each sentence's tokens, [count]; the arguments are those of `aggregate`."""
    lowest = values.new_full((count,), -torch.inf)
    return lowest.scatter_reduce(0, sentence, values, "amax")
