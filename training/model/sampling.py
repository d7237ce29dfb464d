"""Sample from a causal language model: nucleus sampling, plain or guided, reproducible from a seed."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from scorers.errors import UserError
from training.config import EvaluationConfig
from training.model.prefixes import Prefixes

_CANDIDATES = 1024  # likeliest tokens to try before sorting the whole vocabulary


@dataclass(frozen=True)
class Samples:
    """Sampled continuations.

    Attributes:
        ids: token ids of each sample, without the prompt and the final EOS.
        ended: whether each sample ended with EOS; the others were cut at `max_new_tokens`.
        max_new_tokens: the effective limit, below the configured one if the model's context is shorter.
    """

    ids: list[list[int]]
    ended: list[bool]
    max_new_tokens: int


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance: away from the same model's predictions after another prompt.

    Logits are `away + scale * (towards - away)` before temperature and top-p, where `towards` follows the sampled
    prompt. Scale 1 is plain sampling, 0 samples after the other prompt, above 1 exaggerates the difference.

    Source: Ho and Salimans (arXiv 2207.12598); Sanchez et al. (arXiv 2306.17806) for text.

    Attributes:
        scale: strength of the guidance.
        away_ids: the other prompt, of the same length; for a conditional model the one with the worst control token.
    """

    scale: float
    away_ids: Sequence[int]


@contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """Disable dropout and gradients in the block; afterwards restore the mode of every module."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def sample(
    model: Any,
    *,
    eos_id: int,
    prompt_ids: Sequence[int],
    banned_ids: Sequence[int],
    config: EvaluationConfig,
    seed: int,
    vocab_size: int | None = None,
    context_length: int | None = None,
    num_samples: int | None = None,
    guidance: Guidance | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Samples:
    """Sample continuations of one prompt.

    Every sample has its own uniform numbers from a private generator: torch's global state does not change, and a
    sample does not depend on the batch size, except for the last bits of matrix products.

    Args:
        model: a Hugging Face causal language model; dropout is disabled during the call.
        eos_id: the token that ends a sample.
        prompt_ids: the prompt, such as EOS and `<|aligned|>`; at least one token.
        banned_ids: tokens that are never sampled.
        config: `max_new_tokens`, `temperature`, `top_p`, `batch_size` and `num_samples`.
        seed: of the uniform numbers.
        vocab_size: ids from here on are padding and never sampled; None for no padding.
        context_length: the longest context that the model was trained on, which prompt and sample must not exceed (one
            new token is always drawn); None for no limit.
        num_samples: overrides the configured number.
        guidance: None for plain sampling. Both prompts are read in one batch of twice as many rows.
        progress: called with the samples drawn and the total.

    Returns:
        The samples, in an order that depends on the seed alone.
    """
    count = config.num_samples if num_samples is None else num_samples
    limit = config.max_new_tokens
    if context_length is not None:
        limit = max(1, min(limit, context_length - len(prompt_ids)))
    generator = torch.Generator().manual_seed(seed)
    prompts, scale = _prompts(prompt_ids, guidance)
    ids: list[list[int]] = []
    ended: list[bool] = []
    with evaluation_mode(model):
        for start in range(0, count, config.batch_size):
            size = min(config.batch_size, count - start)
            uniform = torch.rand(size, limit, generator=generator, dtype=torch.float64)
            batch = _sample_batch(model, eos_id, prompts, scale, banned_ids, config, uniform, vocab_size)
            for row in batch:
                stop = row.index(eos_id) if eos_id in row else len(row)
                ids.append(row[:stop])
                ended.append(stop < len(row))
            if progress is not None:
                progress(len(ids), count)
    return Samples(ids, ended, limit)


def _prompts(prompt_ids: Sequence[int], guidance: Guidance | None) -> tuple[list[list[int]], float]:
    """Return the one or two prompts that every sample continues, and the scale of the guidance between them."""
    towards = list(prompt_ids)
    if guidance is None or guidance.scale == 1:
        return [towards], 1.0
    away = list(guidance.away_ids)
    if len(away) != len(towards):
        raise ValueError("both prompts of a guidance need the same number of tokens")
    return [away] if guidance.scale == 0 else [towards, away], guidance.scale


def _sample_batch(
    model: Any,
    eos_id: int,
    prompts: list[list[int]],
    scale: float,
    banned_ids: Sequence[int],
    config: EvaluationConfig,
    uniform: torch.Tensor,
    vocab_size: int | None,
) -> list[list[int]]:
    """Sample ids [size][<= limit], each row up to and including its EOS if any; `uniform` is [size, limit]."""
    size, limit = uniform.shape
    device = next(model.parameters()).device
    uniform = uniform.to(device)
    banned = torch.tensor(list(banned_ids), dtype=torch.long, device=device)
    drawn: list[list[int]] = [[] for _ in range(size)]
    rows = torch.arange(size, device=device)  # unfinished samples
    # All samples with the first prompt, then all with the second.
    prefixes = Prefixes(model, torch.tensor(prompts, device=device).repeat_interleave(size, dim=0))
    for step in range(limit):
        logits = prefixes.logits().float()
        if len(prompts) > 1:
            towards, away = logits.chunk(2)
            logits = guided(towards, away, scale)
        logits[:, banned] = -torch.inf
        if vocab_size is not None:
            logits[:, vocab_size:] = -torch.inf
        tokens = draw(logits / config.temperature, config.top_p, uniform[rows, step])
        for row, token in zip(rows.tolist(), tokens.tolist(), strict=True):
            drawn[row].append(token)
        going = (tokens != eos_id).nonzero().squeeze(-1)
        if len(going) == 0:
            break
        if len(going) < len(rows):
            prefixes.keep(torch.cat([going + copy * len(rows) for copy in range(len(prompts))]))
            rows, tokens = rows[going], tokens[going]
        prefixes.append(tokens.repeat(len(prompts)))
    return drawn


def guided(towards: torch.Tensor, away: torch.Tensor, scale: float) -> torch.Tensor:
    """Return guided logits of two conditions, float [rows, vocabulary]: `away + scale * (towards - away)`.

    A token that either condition rules out, by a logit of minus infinity, stays ruled out.
    """
    ruled_out = torch.isneginf(towards) | torch.isneginf(away)
    return torch.lerp(away, towards, scale).masked_fill(ruled_out, -torch.inf)


def draw(logits: torch.Tensor, top_p: float, uniform: torch.Tensor) -> torch.Tensor:
    """Draw one token per row from the smallest set of likeliest tokens whose probability reaches `top_p`.

    Args:
        logits: float [rows, vocabulary], already divided by the temperature.
        top_p: in (0, 1]; 1 keeps every token.
        uniform: float64 [rows], in [0, 1): the position in the cumulative distribution.

    Returns:
        int64 [rows].

    Raises:
        UserError: a row of logits contains NaN.
    """
    probabilities = torch.softmax(logits, dim=-1)
    refuse_nan(probabilities)
    size = logits.shape[-1]
    # Sorting a whole vocabulary costs more than a small model's forward pass, and the nucleus is nearly always small.
    tokens, complete = _draw_from_likeliest(probabilities, min(size, _CANDIDATES), top_p, uniform)
    if not complete.all():
        rest = ~complete
        tokens[rest], _ = _draw_from_likeliest(probabilities[rest], size, top_p, uniform[rest])
    return tokens


def refuse_nan(values: torch.Tensor) -> None:
    """Refuse probabilities, or their logarithms, of a model that has diverged.

    Raises:
        UserError: one is NaN.
    """
    if bool(values.isnan().any()):
        raise UserError(
            "The model's outputs are NaN: it has diverged, or its weights are damaged. Export an earlier checkpoint "
            "(phf export-model RUN --step N), or train again with a lower training.learning_rate."
        )


def _draw_from_likeliest(
    probabilities: torch.Tensor, candidates: int, top_p: float, uniform: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw a token per row, int64 [rows]; also return whether the candidates contain the nucleus, bool [rows]."""
    likeliest, order = probabilities.topk(candidates, dim=-1)
    likeliest = likeliest.double()
    cumulated = likeliest.cumsum(dim=-1)
    # Keep a token if those before it do not reach top_p yet; so the first is always kept.
    kept = ((cumulated - likeliest) < top_p) & (likeliest > 0)
    last = kept.sum(dim=-1, keepdim=True) - 1
    target = uniform[:, None] * cumulated.gather(-1, last)
    index = torch.searchsorted(cumulated, target, right=True).minimum(last)
    complete = cumulated[:, -1] >= top_p
    if candidates == probabilities.shape[-1]:
        complete = torch.ones_like(complete)  # the sum may fall just short of top_p by rounding
    return order.gather(-1, index).squeeze(-1), complete
