"""Draw samples at temperature 1 from the whole vocabulary of text, and compute their log-probabilities under models."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipeline.dataset.hashing import combine
from training.matching.constraints import Floats
from training.matching.contexts import Context, Contexts
from training.model.sampling import Row, evaluation_mode, refuse_nan, rule_out, sample_rows

_PURPOSES = ("moments", "step", "check", "report")


@dataclass(frozen=True)
class Drawn:
    """Samples.

    Attributes:
        contexts: what each continues.
        ids: its tokens after that, without EOS.
        ended: whether EOS ended it; the others were cut.
    """

    contexts: list[Context]
    ids: list[list[int]]
    ended: list[bool]


@dataclass(frozen=True)
class Blocks:
    """Samples as rows of equal length.

    Attributes:
        input_ids: int64 [n, T], contexts and samples, then EOS as padding.
        counted: bool [n, T], the tokens of samples, with the EOS that ended them.
    """

    input_ids: torch.Tensor
    counted: torch.Tensor


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of samples; all distributions are over these alone, so that their ratios are exact.

    Attributes:
        eos_id: ends a sample, and pads blocks.
        banned_ids: tokens that are not text.
        size: ids from here on are padding.
    """

    eos_id: int
    banned_ids: tuple[int, ...]
    size: int


class Drawer:
    """Draws the samples of a run: each is a function of the model, the seed, a key and its number.

    Args:
        contexts: what samples continue.
        vocabulary: their tokens.
        max_new_tokens: of a sample, EOS among them.
        seed: of the run.
        at_once: samples drawn together, which changes only last bits.
        micro_batch: blocks in a forward pass.
    """

    def __init__(
        self, contexts: Contexts, vocabulary: Vocabulary, max_new_tokens: int, seed: int, at_once: int, micro_batch: int
    ) -> None:
        self.contexts, self.vocabulary, self.max_new_tokens = contexts, vocabulary, max_new_tokens
        self._seed, self._at_once, self._micro_batch = seed, at_once, micro_batch

    def draw(self, model: Any, key: int, first: int, last: int) -> Drawn:
        """Draw samples `first` to `last` (exclusive) of those with this key.

        Args:
            model: a Hugging Face causal language model.
            key: of the random numbers and of the order of contexts, such as a hash of the step.
            first: number of the first sample.
            last: after the last one.
        """
        every = self.contexts.every
        chosen = [every[index] for index in self.contexts.indices(key, first, last)]
        rows = [
            Row(context.ids, torch.from_numpy(np.random.default_rng(words).random(self.max_new_tokens)))
            for context, words in zip(chosen, combine(self._seed, key, np.arange(first, last)), strict=True)
        ]
        ids, ended = sample_rows(
            model,
            rows,
            eos_id=self.vocabulary.eos_id,
            banned_ids=self.vocabulary.banned_ids,
            temperature=1.0,
            top_p=1.0,
            batch_size=self._at_once,
            vocab_size=self.vocabulary.size,
        )
        return Drawn(chosen, ids, ended)

    def blocks(self, drawn: Drawn) -> Blocks:
        """Return samples as blocks, as long as the longest of them."""
        eos = self.vocabulary.eos_id
        texts = [[*ids, eos] if ended else ids for ids, ended in zip(drawn.ids, drawn.ended, strict=True)]
        length = max(len(context.ids) + len(text) for context, text in zip(drawn.contexts, texts, strict=True))
        input_ids = torch.full((len(texts), length), eos, dtype=torch.long)
        counted = torch.zeros((len(texts), length), dtype=torch.bool)
        for row, (context, text) in enumerate(zip(drawn.contexts, texts, strict=True)):
            begin, end = len(context.ids), len(context.ids) + len(text)
            input_ids[row, :end] = torch.tensor([*context.ids, *text])
            counted[row, begin:end] = True
        return Blocks(input_ids, counted)

    def log_probabilities(self, model: Any, blocks: Blocks) -> Floats:
        """Return the log-probability of each sample given its context, float64 [n], without dropout or gradients.

        Raises:
            UserError: the model's outputs are NaN.
        """
        device = next(model.parameters()).device
        banned = torch.tensor(self.vocabulary.banned_ids, dtype=torch.long, device=device)
        found = []
        with evaluation_mode(model):
            for start in range(0, len(blocks.input_ids), self._micro_batch):
                part = slice(start, start + self._micro_batch)
                ids, counted = blocks.input_ids[part].to(device), blocks.counted[part, 1:].to(device)
                logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
                rule_out(logits, banned, self.vocabulary.size)
                # Padding and prompts may be banned tokens, whose -inf must not be multiplied by 0.
                logs = logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
                found.append(logs.masked_fill(~counted, 0.0).double().sum(-1).cpu())
        total = torch.cat(found)
        refuse_nan(total)
        return np.asarray(total.numpy(), dtype=np.float64)


def key_of(purpose: str, step: int = 0) -> int:
    """Return the key of samples for a purpose at a step."""
    return int(combine(_PURPOSES.index(purpose), step)[0])
