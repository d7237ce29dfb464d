"""The red-team loop: a pool of prompts, an attacker that writes new ones from the worst, and a target that continues.

Each round draws examples from the pool by their scores, has the attacker propose prompts from them, scores the target's
continuations, and puts the prompts with their scores into the pool.

Source: Korbak et al. (arXiv 2302.08582), section 4.3, after Perez et al. (arXiv 2202.03286).
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from training.measuring_config import RedTeamConfig

# Attempts for each proposal that is not empty and not in the pool yet; a small pool may allow no further one.
_ATTEMPTS = 20
_WORD = re.compile(r"\s*\S+")

Target = Callable[[Sequence[str], int], Sequence[NDArray[np.float64]]]
"""Continues prompts and scores the continuations: prompts, and the number of the round, to float64 arrays of scores per
prompt; NaN for a continuation without a score."""


Remember = Callable[[int, Callable[[], list[str]]], list[str]]
"""Returns the prompts of a round: its number, and a function that has the attacker propose them."""


@dataclass(frozen=True)
class Attempt:
    """A prompt and the scores of its continuations, float64 [n], NaN for none; `round` 0 is the pool's beginning."""

    prompt: str
    round: int
    scores: NDArray[np.float64]

    @property
    def score(self) -> float:
        """Mean score of the continuations that have one; NaN without."""
        known = self.scores[~np.isnan(self.scores)]
        return float(known.mean()) if len(known) else math.nan


class Attacker(Protocol):
    """Writes prompts."""

    def propose(self, examples: Sequence[Sequence[str]], generator: np.random.Generator) -> list[str]:
        """Write a prompt for each group of examples, which are prompts of the pool, the worst first."""


@dataclass
class Pool:
    """The prompts tried so far."""

    attempts: list[Attempt] = field(default_factory=list)

    def add(self, attempts: Sequence[Attempt]) -> None:
        """Add prompts with their scores."""
        self.attempts += attempts

    def holds(self, prompt: str) -> bool:
        """Whether a prompt has been tried."""
        return any(each.prompt == prompt for each in self.attempts)

    def draw(self, groups: int, size: int, temperature: float, generator: np.random.Generator) -> list[list[str]]:
        """Draw groups of different prompts with weights exp(score / (temperature * deviation)), the worst first.

        Prompts without a score are drawn only if there are too few others. The deviation makes the weights independent
        of the scale of scores.
        """
        scores = np.array([each.score for each in self.attempts])
        known = scores[~np.isnan(scores)]
        deviation = float(known.std()) if len(known) else 0.0
        logits = np.zeros(len(scores)) if deviation == 0 else scores / (temperature * deviation)
        logits = np.where(np.isnan(scores), -np.inf, logits)
        size = min(size, len(scores))
        found = []
        for _ in range(groups):
            # The largest of logits with Gumbel noise are a draw without replacement by softmax weights.
            noisy = logits + generator.gumbel(size=len(logits))
            order = np.argsort(-noisy, kind="stable")[:size]
            order = order[np.argsort(-np.nan_to_num(scores[order], nan=-np.inf), kind="stable")]
            found.append([self.attempts[index].prompt for index in order])
        return found


def run_trial(
    beginning: Sequence[str],
    attacker: Attacker,
    target: Target,
    config: RedTeamConfig,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
    remember: Remember = lambda _, propose: propose(),
) -> list[Attempt]:
    """Run all rounds of a trial; return every prompt with its scores, in the order in which they were tried.

    Args:
        beginning: the prompts of the pool to start from, scored in round 0.
        attacker: writes prompts.
        target: continues and scores them.
        config: settings.
        seed: of all draws.
        progress: called with the finished rounds after round 0, and their total.
        remember: returns the prompts of the rounds after round 0; by default all are proposed.
    """
    pool = Pool()
    for number in range(config.rounds + 1):
        if progress is not None:
            progress(max(0, number - 1), config.rounds)
        # Each round has its own random numbers, whatever the rounds before needed.
        generator = np.random.default_rng([seed, number])
        propose = partial(_propose, pool, attacker, config, generator)
        prompts = list(beginning) if number == 0 else remember(number, propose)
        if prompts:
            scores = target(prompts, number)
            pool.add([Attempt(*each) for each in zip(prompts, [number] * len(prompts), scores, strict=True)])
    if progress is not None:
        progress(config.rounds, config.rounds)
    return pool.attempts


def _propose(pool: Pool, attacker: Attacker, config: RedTeamConfig, generator: np.random.Generator) -> list[str]:
    """Have the attacker write as many new prompts as are wanted, or as it can."""
    found: dict[str, None] = {}
    for _ in range(_ATTEMPTS):
        missing = config.proposals - len(found)
        if missing == 0:
            break
        examples = pool.draw(missing, config.examples, config.draw_temperature, generator)
        for proposal in attacker.propose(examples, generator):
            prompt = shortened(proposal, config.prompt_words)
            if prompt and not pool.holds(prompt):
                found.setdefault(prompt)
    return list(found)


def shortened(text: str, words: int) -> str:
    """The first words of a text, with the white space between them."""
    return joined(split_words(text)[:words])


def split_words(text: str) -> list[str]:
    """The words of a text, each with the white space before it, so that lines of code keep their indentation."""
    return _WORD.findall(text)


def joined(words: Sequence[str]) -> str:
    """Join words of different texts: one space between two without white space, none before the first."""
    return "".join(word if word[0].isspace() else f" {word}" for word in words).strip()
