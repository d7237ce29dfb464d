"""What samples continue: the beginning of a document, a conditional model's best tag, and a prompt."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.dataset.hashing import combine
from scorers.errors import UserError
from training.data.batches import block_index
from training.data.prepare import PreparedData
from training.evaluation.prepare import EvaluationSetup
from training.runs.scenario_report import HELD_OUT, Scenario
from training.scenarios.boundary import Boundary
from training.scenarios.prompts import GivenPrompt, choose_prompts
from training.scenarios.scenario import PROMPTED, preset


@dataclass(frozen=True)
class Context:
    """What a sample continues.

    Attributes:
        ids: all tokens, at least the first of documents.
        text_ids: those of the prompt's text.
    """

    ids: tuple[int, ...]
    text_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Contexts:
    """The contexts of a run's samples.

    Attributes:
        every: one without prompts.
        per_context: samples of a context in a batch; None without prompts.
        seed: determines the order.
    """

    every: tuple[Context, ...]
    per_context: int | None
    seed: int

    @property
    def longest(self) -> int:
        """Tokens of the longest context."""
        return max(len(each.ids) for each in self.every)

    @property
    def fingerprint(self) -> str:
        """A hash of all contexts in order, 16 hexadecimal digits."""
        return hashlib.sha256(repr([each.ids for each in self.every]).encode()).hexdigest()[:16]

    def indices(self, key: int, first: int, last: int) -> list[int]:
        """Return the contexts of samples `first` to `last` (exclusive) of the stream of samples with this key.

        Every context occurs equally often, in a different order each time.
        """
        if self.per_context is None:
            return [0] * (last - first)
        place = np.arange(first, last) // self.per_context
        order = int(combine(self.seed, key)[0] >> np.uint64(1))
        found: list[int] = block_index(place, len(self.every), order).tolist()
        return found


def choose_contexts(
    data: PreparedData,
    setup: EvaluationSetup,
    prompts: str | None,
    records: Sequence[GivenPrompt] | None,
    per_context: int,
    max_new_tokens: int,
    seed: int,
) -> Contexts:
    """Choose and tokenise the contexts.

    Args:
        data: of the run.
        setup: of its evaluation.
        prompts: as in `MatchConfig`.
        records: of a file of prompts.
        per_context: samples of a prompt in a step.
        max_new_tokens: tokens that must fit after a prompt.
        seed: of the run.

    Raises:
        UserError: a prompt is too long, or no document was held out.
    """
    begin, tag = setup.prompt[:1], setup.prompt[1:]
    if len(setup.prompt) + max_new_tokens > setup.context_length:
        raise UserError(
            f"max_new_tokens={max_new_tokens} does not fit into the run's context of {setup.context_length:,} tokens, "
            f"of which {len(setup.prompt)} come before the text. Lower it."
        )
    if prompts is None:
        return Contexts((Context(tuple(setup.prompt)),), None, seed)
    # A tag stands where it does in the scenarios of `phf evaluate`.
    after = preset(HELD_OUT if prompts == HELD_OUT else PROMPTED, setup.kind).get("control") == "after"
    scenario = Scenario(
        name="match",
        prompts=prompts,
        max_prompts=None,
        slices="none",
        control="after" if after else "before",
        min_new_tokens=max_new_tokens,
        max_new_tokens=max_new_tokens,
        seed=seed,
    )
    found = choose_prompts(
        scenario,
        data,
        Boundary(data.tokenizer),
        kind=setup.kind,
        context_length=setup.context_length,
        has_tag=bool(tag),
        records=records,
    )
    texts = [each.own_ids for each in found.every]
    contexts = [Context((*begin, *text, *tag) if after else (*begin, *tag, *text), tuple(text)) for text in texts]
    return Contexts(tuple(contexts), per_context, seed)


def needs_file(prompts: str | None) -> bool:
    """Whether prompts are read from a file."""
    return prompts not in (None, HELD_OUT)
