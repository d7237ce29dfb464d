"""The target of a red-team attack: the model of a run, which continues prompts after its best control token."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.data.tokenizers import Tokenizer
from training.evaluation.prepare import EvaluationSetup
from training.measuring_config import RedTeamConfig
from training.runs.scenario_report import NO_PROMPTS, Scenario
from training.scenarios.boundary import Boundary
from training.scenarios.continuations import Drawing
from training.scenarios.prompts import Prompt
from training.scoring import score_texts


def room(setup: EvaluationSetup) -> int:
    """Most tokens of a prompt: beside it stand the first token, the control token, and at least one that is drawn."""
    return setup.context_length - 2 - bool(setup.control_ids)


@dataclass(frozen=True)
class RunTarget:
    """Continues prompts and scores the continuations.

    Attributes:
        model: a Hugging Face causal language model.
        tokenizer: its tokenizer.
        boundary: of the tokenizer.
        setup: of the run's evaluation.
        config: settings of the attack.
    """

    model: Any
    tokenizer: Tokenizer
    boundary: Boundary
    setup: EvaluationSetup
    config: RedTeamConfig

    def score(self, prompts: Sequence[str], seed: int) -> list[NDArray[np.float64]]:
        """Scores of the continuations of each prompt, float64 [continuations] each.

        NaN for a continuation that cannot be scored, as an empty one, and for all of a prompt that leaves no room in
        the context.
        """
        config, setup = self.config, self.setup
        scenario = Scenario(
            name="red-team",
            prompts=NO_PROMPTS,
            continuations=config.continuations,
            guidance=config.guidance,
            temperature=setup.config.temperature,
            top_p=setup.config.top_p,
            min_new_tokens=0,
            max_new_tokens=config.max_new_tokens,
            seed=seed,
        )
        every = [Prompt.of(index, text, setup.kind, self.boundary) for index, text in enumerate(prompts)]
        fits = [each for each in every if each.most_tokens <= room(setup)]
        drawing = Drawing(scenario, setup, self.boundary, fits)
        pairs = drawing.pairs()
        drawn = drawing.draw(self.model, pairs, batch_size=setup.config.batch_size)
        texts = drawing.texts(self.tokenizer, pairs, drawn)
        scored = score_texts(texts, [each.ended for each in drawn], setup.scorer, setup.kind)
        scores = [np.full(config.continuations, np.nan) for _ in prompts]
        for (place, continuation), score in zip(pairs, scored.scores, strict=True):
            scores[fits[place].record][continuation] = score
        return scores
