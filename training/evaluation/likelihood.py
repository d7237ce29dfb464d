"""Log-probabilities of given texts under a model: exactly the law that plain sampling draws from at temperature 1."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training import statistics
from training.evaluation.held_out_loss import Window, batches_of, windows
from training.model.sampling import evaluation_mode, refuse_nan

_POSITIONS_AT_ONCE = 512  # of logits in float64; with a vocabulary of 50,000 they take 0.2 GB


@dataclass(frozen=True)
class Law:
    """Which continuations a model draws, and after what: the arguments of `training.model.sampling.sample`.

    p(x) is the product, over the tokens of x and the EOS that ends it, of the softmax over the tokens that may be
    drawn: those of the vocabulary that are not banned, EOS among them. The prompt itself is not counted. A text that
    was cut has no EOS, and p is the probability that a text begins so. There is no temperature and no nucleus.

    Attributes:
        prompt_ids: what texts continue, such as EOS and `<|aligned|>`; at least one token.
        eos_id: ends a text.
        banned_ids: tokens that are never drawn, such as control tokens.
        vocab_size: ids from here on are padding and never drawn; None for no padding.
        context_length: tokens that the model reads at once; None for no limit. The tokens of a longer text are
            predicted as in held-out text, from windows that advance by half of it.
    """

    prompt_ids: tuple[int, ...]
    eos_id: int
    banned_ids: tuple[int, ...] = ()
    vocab_size: int | None = None
    context_length: int | None = None


@dataclass(frozen=True)
class Likelihood:
    """Log-probabilities of texts.

    Attributes:
        nats: float64 [n], natural logarithms of p, at most 0; minus infinity for a text with a token that is never
            drawn.
        tokens: int64 [n], predicted tokens: those of the text, and EOS if it ended.
    """

    nats: NDArray[np.float64]
    tokens: NDArray[np.int64]

    def perplexity(self) -> statistics.Estimate | None:
        """The exponential of the mean cost of a token, with a bootstrap interval over texts; None without tokens.

        Texts of another model that this one would often write have a low one.
        """
        return statistics.perplexity(-self.nats, self.tokens)

    def bits_per_byte(self, sizes: NDArray[np.int64]) -> statistics.Estimate | None:
        """The cost of a byte, which models of different tokenizers share; None without bytes.

        Args:
            sizes: int64 [n], UTF-8 bytes of each text.
        """
        return statistics.ratio(-self.nats / math.log(2), sizes.astype(np.float64))


def log_probabilities(
    model: Any,
    law: Law,
    continuations: Sequence[Sequence[int]],
    ended: Sequence[bool],
    *,
    tokens_at_once: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Likelihood:
    """Measure the probability of each continuation.

    Texts of similar length share a forward pass; how they are batched changes only the last bits.

    Args:
        model: a Hugging Face causal language model; dropout is disabled during the call.
        law: what it may draw, and after which prompt.
        continuations: token ids of each text, without the prompt and the final EOS.
        ended: whether EOS follows; the others were cut.
        tokens_at_once: tokens of a forward pass, with padding; None for as many as held-out text.
        progress: called with the texts measured and the total.

    Raises:
        UserError: the model's outputs are not numbers.
    """
    prompt = list(law.prompt_ids)
    rows = [
        np.array([*prompt, *ids, *([law.eos_id] if end else [])], dtype=np.int64)
        for ids, end in zip(continuations, ended, strict=True)
    ]
    # A window's last token is only predicted, never read.
    longest = (law.context_length or max(map(len, rows), default=1)) + 1
    every = [_after(each, len(prompt)) for index, row in enumerate(rows) for each in windows(index, len(row), longest)]
    nats, done = np.zeros(len(rows)), 0
    with evaluation_mode(model):
        for batch in batches_of([each for each in every if each.first < each.stop], tokens_at_once):
            read = [rows[each.document][each.start : each.stop] for each in batch]
            # Positions before `first` are the prompt, or were predicted in the window before.
            counted = [each.first - each.start - 1 for each in batch]
            for window, found in zip(batch, _predict(model, law, read, counted), strict=True):
                nats[window.document] += found
                done += window.stop == len(rows[window.document])
            if progress is not None:
                progress(done, len(rows))
    if progress is not None:
        progress(len(rows), len(rows))
    return Likelihood(nats, np.array([len(row) - len(prompt) for row in rows], dtype=np.int64))


def _after(window: Window, prompt: int) -> Window:
    """The window without predictions of the prompt."""
    return Window(window.document, window.start, max(window.first, prompt), window.stop)


def _predict(model: Any, law: Law, rows: list[NDArray[np.int64]], counted: list[int]) -> list[float]:
    """The sum of the log-probabilities of each row's tokens from position `counted` + 1 on, in float64."""
    device = next(model.parameters()).device
    padded = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    chosen = torch.zeros(len(rows), padded.shape[1] - 1, dtype=torch.bool)
    for index, (row, first) in enumerate(zip(rows, counted, strict=True)):
        padded[index, : len(row)] = torch.from_numpy(row)
        chosen[index, first : len(row) - 1] = True
    padded, chosen = padded.to(device), chosen.to(device)
    # Padding is at the end, where a causal model cannot see it from any counted position.
    logits = model(input_ids=padded[:, :-1], use_cache=False).logits[chosen]
    targets = padded[:, 1:][chosen]
    starts = range(0, len(targets), _POSITIONS_AT_ONCE)
    parts = [slice(start, start + _POSITIONS_AT_ONCE) for start in starts]
    found = torch.cat([_of_targets(logits[part], targets[part], law) for part in parts])
    values = np.split(found.cpu().numpy(), np.cumsum(chosen.sum(dim=1).tolist())[:-1])
    return [float(each.sum()) for each in values]


def _of_targets(logits: Tensor, targets: Tensor, law: Law) -> Tensor:
    """Log-probabilities float64 [n] of `targets` int64 [n] under logits [n, vocabulary], over what may be drawn."""
    allowed = logits.double()
    allowed[:, list(law.banned_ids)] = -torch.inf
    if law.vocab_size is not None:
        allowed[:, law.vocab_size :] = -torch.inf
    found = torch.log_softmax(allowed, dim=-1).gather(-1, targets[:, None]).squeeze(-1)
    refuse_nan(found)
    return found
