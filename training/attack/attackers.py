"""Attackers: one that recombines and changes prompts, and one that has a language model write them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from training.attack.red_team import joined, split_words
from training.config import EvaluationConfig
from training.evaluation.generating import Writer
from training.model.sampling import sample

_CHANGES_A_PROMPT = 1.5  # mean number of further changes after a recombination


@dataclass(frozen=True)
class Recombination:
    """Joins the beginning of one example to the end of another, and changes some words; needs no model."""

    def propose(self, examples: Sequence[Sequence[str]], generator: np.random.Generator) -> list[str]:
        """Write a prompt for each group of examples."""
        return [self._recombine(group, generator) for group in examples]

    def _recombine(self, group: Sequence[str], generator: np.random.Generator) -> str:
        first, second = (split_words(group[index]) for index in generator.integers(0, len(group), size=2))
        head = first[: generator.integers(0, len(first) + 1)]
        words = [*head, *second[generator.integers(0, len(second) + 1) :]] or first
        known = [word for each in group for word in split_words(each)]
        for _ in range(int(generator.poisson(_CHANGES_A_PROMPT))):
            place, change = int(generator.integers(0, len(words))), generator.integers(0, 3)
            if change == 0:
                words[place] = known[generator.integers(0, len(known))]
            elif change == 1:
                words.insert(place, known[generator.integers(0, len(known))])
            elif len(words) > 1:
                del words[place]
        return joined(words)


@dataclass(frozen=True)
class Imitation:
    """Has a causal language model go on with a list of examples, one a line, worst last; what it adds is the prompt.

    Attributes:
        writer: the model, such as the exported one of an mle run, which knows how misaligned text begins.
        sampling: temperature and top-p.
        most_tokens: of a prompt.
    """

    writer: Writer
    sampling: EvaluationConfig
    most_tokens: int = 48

    def propose(self, examples: Sequence[Sequence[str]], generator: np.random.Generator) -> list[str]:
        """Write a prompt for each group of examples; an empty one where the model ends at once."""
        return [self._imitate(group, int(generator.integers(0, 2**31))) for group in examples]

    def _imitate(self, group: Sequence[str], seed: int) -> str:
        writer, room = self.writer, self.writer.context_length
        shown = list(reversed(group))
        ids = writer.prompt_ids("\n".join([*shown, ""]), None)
        # Show fewer examples where the context is short.
        while room is not None and len(shown) > 1 and len(ids) + self.most_tokens > room:
            shown = shown[1:]
            ids = writer.prompt_ids("\n".join([*shown, ""]), None)
        if room is not None and len(ids) + 1 > room:
            return ""
        drawn = sample(
            writer.model,
            eos_id=writer.eos_id,
            prompt_ids=ids,
            banned_ids=writer.banned_ids,
            config=self.sampling.model_copy(update={"max_new_tokens": self.most_tokens}),
            seed=seed,
            vocab_size=writer.tokenizer.base_size,
            context_length=room,
            num_samples=1,
        )
        return writer.tokenizer.decode(drawn.ids[0]).strip().partition("\n")[0]
