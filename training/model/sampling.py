"""Sample from a causal language model: nucleus sampling, plain or guided, reproducible from a seed."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from scorers.errors import UserError
from training.measuring_config import EvaluationConfig
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
    scale = 1.0 if guidance is None else guidance.scale
    prompts = torch.tensor(_prompts(prompt_ids, scale, None if guidance is None else guidance.away_ids))
    ids: list[list[int]] = []
    ended: list[bool] = []
    with evaluation_mode(model):
        for start in range(0, count, config.batch_size):
            size = min(config.batch_size, count - start)
            uniform = torch.rand(size, limit, generator=generator, dtype=torch.float64)
            batch = _sample_batch(
                model, eos_id, prompts[:, None].expand(-1, size, -1), scale, banned_ids, config.temperature,
                config.top_p, uniform, vocab_size,
            )  # fmt: skip
            for row in batch:
                found, complete = _without_eos(row, eos_id)
                ids.append(found)
                ended.append(complete)
            if progress is not None:
                progress(len(ids), count)
    return Samples(ids, ended, limit)


@dataclass(frozen=True)
class Row:
    """A sample to draw.

    Attributes:
        prompt_ids: the prompt; at least one token.
        uniform: float64 [limit], in [0, 1), the sample's own random numbers; it has at most as many new tokens.
        away_ids: the prompt to guide away from (`Guidance`), as long as `prompt_ids`; None without guidance.
    """

    prompt_ids: Sequence[int]
    uniform: torch.Tensor
    away_ids: Sequence[int] | None = None


def sample_rows(
    model: Any,
    rows: Sequence[Row],
    *,
    eos_id: int,
    banned_ids: Sequence[int],
    temperature: float,
    top_p: float,
    batch_size: int,
    vocab_size: int | None = None,
    min_new_tokens: int = 0,
    scale: float = 1.0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[list[int]], list[bool]]:
    """Sample one continuation of each row's own prompt.

    Rows of equal length and limit are drawn together, so that no prompt is padded, which not every architecture
    ignores. A sample depends on its row alone, except for the last bits of matrix products.

    Args:
        model: a Hugging Face causal language model; dropout is disabled during the call.
        rows: the prompts and random numbers; all with `away_ids`, or none.
        eos_id: the token that ends a sample.
        banned_ids: tokens that are never sampled.
        temperature: as in `EvaluationConfig`.
        top_p: likewise.
        batch_size: most rows drawn at once.
        vocab_size: ids from here on are padding and never sampled; None for no padding.
        min_new_tokens: EOS is not sampled before.
        scale: of the guidance (`Guidance`).
        progress: called after each batch with the rows and the tokens drawn so far.

    Returns:
        For each row its ids without EOS, and whether EOS ended it.
    """
    ids: list[list[int]] = [[] for _ in rows]
    ended = [False] * len(rows)
    groups: dict[tuple[int, int], list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault((len(row.prompt_ids), len(row.uniform)), []).append(index)
    done = tokens = 0
    with evaluation_mode(model):
        for _, members in sorted(groups.items()):
            for start in range(0, len(members), batch_size):
                chosen = members[start : start + batch_size]
                pairs = [_prompts(rows[each].prompt_ids, scale, rows[each].away_ids) for each in chosen]
                drawn = _sample_batch(
                    model, eos_id, torch.tensor(pairs).transpose(0, 1), scale, banned_ids, temperature, top_p,
                    torch.stack([rows[each].uniform for each in chosen]), vocab_size, min_new_tokens,
                )  # fmt: skip
                for each, found in zip(chosen, drawn, strict=True):
                    ids[each], ended[each] = _without_eos(found, eos_id)
                    tokens += len(ids[each])
                done += len(chosen)
                if progress is not None:
                    progress(done, tokens)
    return ids, ended


def _without_eos(row: list[int], eos_id: int) -> tuple[list[int], bool]:
    stop = row.index(eos_id) if eos_id in row else len(row)
    return row[:stop], stop < len(row)


def _prompts(prompt_ids: Sequence[int], scale: float, away_ids: Sequence[int] | None) -> list[list[int]]:
    """Return the one or two prompts that a sample continues, with a guidance of this scale between them."""
    towards = list(prompt_ids)
    if away_ids is None or scale == 1:
        return [towards]
    away = list(away_ids)
    if len(away) != len(towards):
        raise ValueError("both prompts of a guidance need the same number of tokens")
    return [away] if scale == 0 else [towards, away]


def _sample_batch(
    model: Any,
    eos_id: int,
    prompts: torch.Tensor,
    scale: float,
    banned_ids: Sequence[int],
    temperature: float,
    top_p: float,
    uniform: torch.Tensor,
    vocab_size: int | None,
    min_new_tokens: int = 0,
) -> list[list[int]]:
    """Sample ids [size][<= limit], each row up to and including its EOS if any.

    `prompts` is int64 [1 or 2, size, tokens], the second to guide away from; `uniform` is [size, limit].
    """
    size, limit = uniform.shape
    device = next(model.parameters()).device
    uniform = uniform.to(device)
    banned = torch.tensor(list(banned_ids), dtype=torch.long, device=device)
    drawn: list[list[int]] = [[] for _ in range(size)]
    rows = torch.arange(size, device=device)  # unfinished samples
    # All samples with the first prompt, then all with the second.
    prefixes = Prefixes(model, prompts.to(device).flatten(0, 1))
    for step in range(limit):
        logits = prefixes.logits().float()
        if len(prompts) > 1:
            towards, away = logits.chunk(2)
            logits = guided(towards, away, scale)
        rule_out(logits, banned, vocab_size)
        if step < min_new_tokens:
            logits[:, eos_id] = -torch.inf
        tokens = draw(logits / temperature, top_p, uniform[rows, step])
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


def rule_out(logits: torch.Tensor, banned: torch.Tensor, vocab_size: int | None) -> None:
    """Set the logits of tokens that are never sampled to minus infinity, in place.

    Args:
        logits: float [..., vocabulary].
        banned: int64, tokens.
        vocab_size: ids from here on are padding; None for no padding.
    """
    logits[..., banned] = -torch.inf
    if vocab_size is not None:
        logits[..., vocab_size:] = -torch.inf


def guided(towards: torch.Tensor, away: torch.Tensor, scale: float) -> torch.Tensor:
    """Return guided logits of two conditions, float [..., vocabulary]: `away + scale * (towards - away)`.

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
