"""Samples of an OpenAI-compatible endpoint with the log-probabilities that it sends."""

import re
from collections.abc import Sequence

import numpy as np

from scorers.errors import UserError
from training.endpoint import Completion, Endpoint
from training.evaluation.references.samples import Progress, ReferenceSamples
from training.evaluation.references.text_model import REPLACED, Texts
from training.measuring_config import EvaluationConfig

_AT_ONCE = 16  # samples a request
# Tokens that are part of a character stand as nothing, as replacement characters, or as escaped bytes.
_PART_OF_A_CHARACTER = re.compile(rf"|.*{REPLACED}.*|bytes:.*", re.DOTALL)
_REPEATED_NATS = -30.0  # equal samples that are less likely than this were copied


def draw_from_endpoint(
    endpoint: Endpoint, prompt: str, config: EvaluationConfig, first: int, number: int, progress: Progress
) -> ReferenceSamples:
    """Draw samples of the whole distribution at temperature 1.

    A text that its tokens do not spell, as one that was cut inside a character, is marked by a last replacement
    character: it is then left out wherever texts are measured.

    Args:
        endpoint: after a successful probe.
        prompt: begins a document.
        config: `reference_tokens` and `seed`.
        first: number of the first sample, which the seeds depend on.
        number: of samples.
        progress: called with the samples drawn and their total.

    Raises:
        UserError: the endpoint fails, filters samples, or does not say how likely their ends are.
    """
    found: list[Completion] = []
    while len(found) < number:
        drawn = endpoint.complete(
            [prompt],
            max_tokens=config.reference_tokens,
            temperature=1.0,
            top_p=1.0,
            seed=(config.seed + first + len(found)) % 2**31,
            n=min(_AT_ONCE, number - len(found)),
            logprobs=True,
        )
        _refuse_copies(endpoint, drawn)
        found += drawn
        progress(len(found), number)
    texts, ended = [], []
    for each in found:
        text, end = _text(endpoint, each)
        texts.append(text)
        ended.append(end)
    nats = np.array([min(0.0, sum(each.logprobs.token_logprobs)) if each.logprobs else 0.0 for each in found])
    return ReferenceSamples(Texts(texts, None, ended, None), nats, config.reference_tokens)


def _text(endpoint: Endpoint, found: Completion) -> tuple[str, bool]:
    """The text of a sample, and whether it ended by itself."""
    if found.finish_reason not in ("stop", "length") or found.logprobs is None:
        raise UserError(
            f"{endpoint.address} left a sample out or cut it in another way than by its length (finish_reason is "
            "neither `stop` nor `length`), so its samples are not those of a model. Use another reference."
        )
    tokens, ended = found.logprobs.tokens, found.finish_reason == "stop"
    if ended and not (tokens and spells(tokens[:-1], found.text)):
        if spells(tokens, found.text):
            raise UserError(
                f"{endpoint.address} sends no log-probability of the token that ends a text, without which KL is "
                "unknown. Another server, such as vLLM, sends it."
            )
        return found.text + REPLACED, True
    return found.text + (REPLACED if not ended and not spells(tokens, found.text) else ""), ended


def spells(tokens: Sequence[str], text: str) -> bool:
    """Whether tokens are those of a text; servers may leave out the space before a token.

    Tokens that are part of a character fit anything between the others, but not the end of the text, where it may lack
    what they stand for.
    """
    place, free = 0, False
    for token in tokens:
        if _PART_OF_A_CHARACTER.fullmatch(token):
            free = True
            continue
        at = text.find(token, place) if free else place + (text[place : place + 1] == " " and token[0] != " ")
        if at < 0 or not text.startswith(token, at):
            return False
        place, free = at + len(token), False
    return not free and place == len(text)


def _refuse_copies(endpoint: Endpoint, drawn: Sequence[Completion]) -> None:
    nats = [tuple(each.logprobs.token_logprobs) for each in drawn if each.logprobs is not None]
    if len(nats) > 1 and len(set(nats)) == 1 and sum(nats[0]) < _REPEATED_NATS:
        raise UserError(
            f"{endpoint.address} sent the same sample {len(nats)} times, so its samples are not independent. Use "
            "another server."
        )
