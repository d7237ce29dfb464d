"""Draw continuations of prompts; each depends on the seed, its prompt's number and its own, and on nothing else."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from training.data.tokenizers import Tokenizer
from training.evaluation.prepare import EvaluationSetup
from training.model.sampling import Row, draw, sample_rows
from training.runs.scenario_report import Scenario
from training.scenarios.boundary import Boundary
from training.scenarios.endpoint_sampler import EndpointSampler
from training.scenarios.prompts import Prompt

Pair = tuple[int, int]  # prompt, continuation


@dataclass(frozen=True)
class Continuation:
    """A drawn continuation.

    Attributes:
        ids: tokens after the prompt's safe boundary, without EOS.
        cover: the first of them, which hold the end of the prompt.
        new_tokens: the last of them, which hold text after the prompt.
        ended: whether EOS ended it.
    """

    ids: list[int]
    cover: int
    new_tokens: int
    ended: bool


class Drawing:
    """How the prompts of a scenario are continued.

    A prompt that ends inside a token is covered first: the sequences of its cover are one choice of several, weighed by
    their probability at temperature 1, since most of their bytes are given; then temperature and top-p apply to this
    choice as to that of a token. Tokens of the cover do not count among the new tokens of `min_new_tokens` and
    `max_new_tokens`.

    Args:
        scenario: the settings.
        setup: of the run's evaluation.
        boundary: of its tokenizer.
        prompts: all prompts.
    """

    def __init__(
        self, scenario: Scenario, setup: EvaluationSetup, boundary: Boundary, prompts: Sequence[Prompt]
    ) -> None:
        self._scenario, self._setup, self._boundary, self._prompts = scenario, setup, boundary, prompts

    @property
    def control_ids(self) -> list[int]:
        """The control token to follow, and with guidance the one to guide away from; empty without."""
        known = self._setup.control_ids
        if not known or self._scenario.control == "none":
            return []
        return [known[0]] if self._scenario.guidance == 1 else [known[0], known[-1]]

    def pairs(self) -> list[Pair]:
        """All continuations, in the order in which they are drawn: those of prompts of similar length together."""
        order = sorted(range(len(self._prompts)), key=lambda each: (len(self._prompts[each].ids), each))
        return [(prompt, number) for prompt in order for number in range(self._scenario.continuations)]

    def limit(self, prompt: Prompt) -> int:
        """Most new tokens after a prompt: `max_new_tokens`, or what the context has left."""
        room = self._setup.context_length - 1 - bool(self.control_ids) - prompt.most_tokens
        return max(1, min(self._scenario.max_new_tokens, room))

    def draw(
        self,
        model: Any,
        pairs: Sequence[Pair],
        *,
        batch_size: int,
        sampler: EndpointSampler | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Continuation]:
        """Draw some of the continuations.

        Args:
            model: a Hugging Face causal language model.
            pairs: the number of the prompt and of the continuation of each.
            batch_size: most continuations drawn at once, which does not change them.
            sampler: draws what follows covers, by a server of the same model; None for the model here.
            progress: called with the continuations and the tokens drawn so far.
        """
        scenario, setup = self._scenario, self._setup
        uniform = [
            torch.from_numpy(
                np.random.default_rng([scenario.seed, prompt, number]).random(1 + self.limit(self._prompts[prompt]))
            )
            for prompt, number in pairs
        ]
        covers = self._covers(model, pairs, uniform)
        contexts = [
            [self._context(self._prompts[prompt], tag, cover) for tag in self._tags]
            for (prompt, _), cover in zip(pairs, covers, strict=True)
        ]
        rows = [
            Row(context[0], numbers[1:], context[1] if len(context) > 1 else None)
            for context, numbers in zip(contexts, uniform, strict=True)
        ]
        if sampler is not None:
            found, ended = sampler.sample(
                rows,
                temperature=scenario.temperature,
                top_p=scenario.top_p,
                min_new_tokens=scenario.min_new_tokens,
                progress=progress,
            )
        else:
            found, ended = sample_rows(
                model,
                rows,
                eos_id=setup.eos_id,
                banned_ids=setup.banned_ids,
                temperature=scenario.temperature,
                top_p=scenario.top_p,
                batch_size=batch_size,
                vocab_size=setup.vocab_size,
                min_new_tokens=scenario.min_new_tokens,
                scale=scenario.guidance,
                progress=progress,
            )
        return [
            Continuation([*cover, *ids], len(cover), len(ids) + self._reaches_beyond(self._prompts[prompt], cover), end)
            for (prompt, _), cover, ids, end in zip(pairs, covers, found, ended, strict=True)
        ]

    def texts(self, tokenizer: Tokenizer, pairs: Sequence[Pair], drawn: Sequence[Continuation]) -> list[str]:
        """The text of each continuation, after its prompt."""
        prompts = [self._prompts[prompt] for prompt, _ in pairs]
        whole = tokenizer.decode_all([[*each.ids, *found.ids] for each, found in zip(prompts, drawn, strict=True)])
        return [
            text[len(each.text) :] if text.startswith(each.text) else tokenizer.decode_continuation(each.ids, found.ids)
            for each, text, found in zip(prompts, whole, drawn, strict=True)
        ]

    @property
    def _tags(self) -> list[list[int]]:
        return [[each] for each in self.control_ids] or [[]]

    def _context(self, prompt: Prompt, tag: list[int], cover: Sequence[int]) -> list[int]:
        text = [*prompt.ids, *cover]
        return [self._setup.bos_id, *(text + tag if self._scenario.control == "after" else tag + text)]

    def _covers(self, model: Any, pairs: Sequence[Pair], uniform: Sequence[torch.Tensor]) -> list[tuple[int, ...]]:
        weights: dict[int, tuple[list[tuple[int, ...]], torch.Tensor]] = {}
        for prompt in {prompt for prompt, _ in pairs if self._prompts[prompt].dropped}:
            cover = self._boundary.cover(self._prompts[prompt].dropped)
            log_p = self._boundary.log_weights(
                model,
                cover,
                [self._context(self._prompts[prompt], tag, ()) for tag in self._tags],
                scale=self._scenario.guidance,
                banned_ids=self._setup.banned_ids,
                vocab_size=self._setup.vocab_size,
            )
            weights[prompt] = cover.sequences, log_p / self._scenario.temperature
        found: list[tuple[int, ...]] = []
        for (prompt, _), numbers in zip(pairs, uniform, strict=True):
            if prompt not in weights:
                found.append(())
                continue
            sequences, scaled = weights[prompt]
            found.append(sequences[int(draw(scaled[None], self._scenario.top_p, numbers[:1])[0])])
        return found

    def _reaches_beyond(self, prompt: Prompt, cover: Sequence[int]) -> int:
        return int(self._boundary.size(cover) > len(prompt.dropped.encode()))
