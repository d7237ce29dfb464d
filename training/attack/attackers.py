"""Attackers: one that recombines and changes prompts, and one that has a language model write them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from training.attack.red_team import joined, split_words
from training.endpoint import Endpoint
from training.evaluation.generating import Writer
from training.measuring_config import EvaluationConfig
from training.model.sampling import sample

_AT_ONCE = 16  # prompts per request to an endpoint
_LONGEST = 4096  # characters of a proposal of an endpoint
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


@dataclass(frozen=True)
class RemoteImitation:
    """Has the model of an endpoint go on with a list of examples, as `Imitation` does.

    Attributes:
        endpoint: after a successful probe.
        sampling: temperature and top-p.
        most_tokens: of a prompt.
    """

    endpoint: Endpoint
    sampling: EvaluationConfig
    most_tokens: int = 48

    def propose(self, examples: Sequence[Sequence[str]], generator: np.random.Generator) -> list[str]:
        """Write a prompt for each group of examples; an empty one where the model ends at once."""
        prompts = ["\n".join([*reversed(group), ""]) for group in examples]
        found: list[str] = []
        for start in range(0, len(prompts), _AT_ONCE):
            drawn = self.endpoint.complete(
                prompts[start : start + _AT_ONCE],
                max_tokens=self.most_tokens,
                temperature=self.sampling.temperature,
                top_p=self.sampling.top_p,
                seed=int(generator.integers(0, 2**31)),
            )
            found += [_first_line(each.text[:_LONGEST]) for each in drawn]
        return found


def _first_line(text: str) -> str:
    """The first line that is not empty, without control characters and a last character that is incomplete."""
    line = text.strip().partition("\n")[0]
    return "".join(each for each in line if each.isprintable() or each == "\t").rstrip("\ufffd").strip()
