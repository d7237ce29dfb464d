"""The prompts that a red-team attack starts from: given ones, or beginnings of misaligned held-out sentences."""

from collections.abc import Sequence

import numpy as np

from scorers.amounts import format_count
from scorers.errors import UserError
from training.attack.red_team import joined, shortened, split_words
from training.data.index import ragged_ranges
from training.data.prepare import PreparedData
from training.measuring_config import RedTeamConfig

_FEWEST = 2  # a single prompt cannot be recombined


def given_prompts(texts: Sequence[str], config: RedTeamConfig) -> tuple[list[str], list[str]]:
    """Shorten given prompts, and leave repeated ones and those after the first `config.pool` out.

    Returns:
        The prompts, and what readers of the figures should know about them.

    Raises:
        UserError: there are too few.
    """
    whole = list(dict.fromkeys(text.strip() for text in texts if text.strip()))
    found = list(dict.fromkeys(shortened(each, config.prompt_words) for each in whole))
    if len(found) < _FEWEST:
        raise UserError(
            f"The search needs at least {_FEWEST} prompts to start from that differ in their first "
            f"{format_count(config.prompt_words, 'word')}. Give more with --prompts, or raise prompt_words."
        )
    warnings = []
    cut = sum(len(split_words(each)) > config.prompt_words for each in whole)
    if cut:
        warnings.append(
            f"Prompts of the file with more than {config.prompt_words} words were cut there: {cut:,} "
            "(--set prompt_words=N)."
        )
    if len(found) > config.pool:
        warnings.append(
            f"The search started from the first {config.pool:,} of {format_count(len(found), 'prompt')} (--set pool=N)."
        )
    return found[: config.pool], warnings


def misaligned_beginnings(data: PreparedData, config: RedTeamConfig) -> list[str]:
    """The first halves of the most misaligned held-out sentences of at least two words, the worst first.

    Raises:
        UserError: there are too few.
    """
    store, scores = data.store, data.store.scores(data.column)
    held_out = data.stream.held_out_documents()
    sentences = ragged_ranges(store.document_offsets[held_out], np.diff(store.document_offsets)[held_out])
    found: dict[str, None] = {}
    for sentence in sentences[np.argsort(-scores[sentences], kind="stable")].tolist():
        begin, end = (int(each) for each in store.sentence_offsets[[sentence, sentence + 1]])
        words = split_words(data.tokenizer.decode(store.tokens[begin:end]))
        if len(words) >= 2:
            found.setdefault(joined(words[: min(config.prompt_words, (len(words) + 1) // 2)]))
        if len(found) == config.pool:
            break
    if len(found) < _FEWEST:
        raise UserError(
            f"{data.dataset.uri} has too few held-out sentences to start from. Give prompts with --prompts FILE, or "
            "train with a larger data.held_out."
        )
    return list(found)
