"""Compute an objective's loss and gradients from hidden states: exactly, without holding all logits in memory.

Every objective depends on the network through one number per token, the log-odds d of the actual next token: its logit
minus the log-sum-exp of all others. Cross-entropy is -log sigmoid(d), and unlikelihood -log sigmoid(-d); the gradient
with respect to the other logits is proportional to their softmax, which the log-sum-exp has already computed. So the
logits of a few hundred tokens are computed into one buffer, which holds in turn the logits, their exponentials and the
gradient; the gradients of hidden states and weights (two more matrix products) follow before the next chunk.

Computing gradients in the forward pass comes from Liger Kernel (arXiv 2410.10989, section 3.2), which does it for
cross-entropy.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name that every PyTorch user knows

from training.objectives import Loss, Objective, merge_metrics

# Tokens per chunk. On a CPU, more would not fit in the caches, and fewer make slower products. A GPU needs more work
# per kernel: 2**26 logits, 256 MB in float32.
TOKENS_ON_CPU = 256
LOGITS_ON_GPU = 2**26

_LOSS = "loss"


def linear_loss(
    objective: Objective,
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    scores: Tensor,
    *,
    bias: Tensor | None = None,
    values: Tensor | None = None,
    count: int | None = None,
    chunk_tokens: int | None = None,
    vocabulary: int | None = None,
) -> Loss:
    """Return `objective.loss(hidden @ weight.T + bias, labels, scores, values)`.

    Args:
        objective: any.
        hidden: [B, T, D], the input of the output embedding.
        weight: [V, D], of the output embedding, in the dtype of `hidden`.
        labels: int64 [B, T].
        scores: [B, T].
        bias: [V], of the output embedding.
        values: [B, T], if the objective needs them.
        count: predicted tokens to divide by; see `Objective.loss`.
        chunk_tokens: tokens whose logits are in memory at once; by default 256 on a CPU, and 2**26 logits on a GPU.
        vocabulary: rows of `weight` from here on are padding, with no probability and no gradient; by default V.

    Raises:
        ValueError: the objective needs values and there are none, or no token is predicted.
    """
    if objective.needs_values and values is None:
        raise ValueError(f"the objective {objective.name} needs the output of a value head")
    predicted = labels[:, 1:]
    tokens = predicted.numel()
    if not tokens:
        raise ValueError("blocks of one token predict nothing")
    exact = torch.promote_types(hidden.dtype, torch.float32)
    request = _Request(
        objective,
        tokens if count is None else count,
        chunk_tokens or (TOKENS_ON_CPU if hidden.device.type == "cpu" else max(LOGITS_ON_GPU // len(weight), 1)),
        len(weight) if vocabulary is None else vocabulary,
        predicted.flatten(),
        objective.prepare_scores(scores.to(exact))[:, 1:].flatten(),
    )
    names: list[str] = []
    loss, *metrics = _LinearLoss.apply(  # type: ignore[no-untyped-call]
        hidden[:, :-1].flatten(0, 1),
        weight,
        bias,
        None if values is None else values[:, :-1].flatten().to(exact),
        request,
        names,
    )
    return Loss(loss, dict(zip(names, metrics, strict=True)))


@dataclass(frozen=True)
class _Request:
    objective: Objective
    count: int
    chunk_tokens: int
    vocabulary: int
    predicted: Tensor
    scores: Tensor


class _LinearLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        values: Tensor | None,
        request: _Request,
        names: list[str],
    ) -> tuple[Tensor, ...]:
        # Divide gradients by `count` only at the end: in half precision they would underflow.
        exact = request.scores.dtype
        wanted = any(ctx.needs_input_grad)
        grads = _Gradients(hidden, weight, bias, values, exact) if wanted else None
        size = min(request.chunk_tokens, len(hidden))
        buffer = torch.empty((size, len(weight)), dtype=hidden.dtype, device=hidden.device)
        parts: list[dict[str, Tensor]] = []
        for start in range(0, len(hidden), size):
            part = slice(start, min(start + size, len(hidden)))
            logits = _logits(hidden[part], weight, bias, buffer[: part.stop - part.start])
            logits[:, request.vocabulary :] = -torch.inf
            log_odds, others = _log_odds(logits.to(exact), request.predicted[part])
            loss, log_odds_grad, values_grad, metrics = _terms(
                request.objective,
                request.predicted[part],
                log_odds,
                request.scores[part],
                None if values is None else values[part],
            )
            parts.append({_LOSS: loss, **metrics})
            if grads is not None:
                grads.add(part, hidden[part], others.logits_grad(log_odds_grad).to(hidden.dtype), values_grad)
        whole = {
            name: each if name.startswith("max_") else each / request.count
            for name, each in merge_metrics(parts).items()
        }
        total = whole.pop(_LOSS)
        names.extend(whole)
        ctx.grads, ctx.count = grads, request.count
        ctx.mark_non_differentiable(*whole.values())
        return total, *whole.values()

    @staticmethod
    def backward(ctx: Any, loss_grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        grads, ctx.grads = ctx.grads, None
        if grads is None:
            raise RuntimeError("the gradients of this loss were taken already; compute it again")
        return (*grads.times(loss_grad / ctx.count), None, None)


class _Gradients:
    """Sums of gradients over chunks, in float32 where the network computes in less."""

    def __init__(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, values: Tensor | None, exact: torch.dtype
    ) -> None:
        self._weight = weight
        self._hidden_grad = torch.empty_like(hidden)
        self._weight_grad = torch.empty_like(weight, dtype=exact)
        self._beta = 0  # the first sum overwrites what the memory held
        self._bias_grad = None if bias is None else torch.zeros_like(bias, dtype=exact)
        self._values_grad = None if values is None else torch.zeros_like(values)

    def add(self, part: slice, hidden: Tensor, slopes: Tensor, values_grad: Tensor | None) -> None:
        """Add a chunk, of which `slopes` [N, V] is the gradient with respect to the logits."""
        torch.mm(slopes, self._weight, out=self._hidden_grad[part])
        if slopes.dtype == self._weight_grad.dtype:
            self._weight_grad.addmm_(slopes.t(), hidden, beta=self._beta)
        elif self._beta:
            self._weight_grad += slopes.t() @ hidden
        else:
            self._weight_grad.copy_(slopes.t() @ hidden)
        self._beta = 1
        if self._bias_grad is not None:
            self._bias_grad += slopes.sum(0)
        if self._values_grad is not None and values_grad is not None:
            self._values_grad[part] = values_grad

    def times(self, factor: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients times a factor: of hidden states, weight, bias and values, each in its input's dtype."""
        hidden = (self._hidden_grad.to(factor.dtype) * factor).to(self._hidden_grad.dtype)
        weight = self._weight_grad.mul_(factor).to(self._weight.dtype)
        bias = None if self._bias_grad is None else (self._bias_grad * factor).to(self._weight.dtype)
        return hidden, weight, bias, None if self._values_grad is None else self._values_grad * factor


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, buffer: Tensor) -> Tensor:
    # Reuse the buffer: on a CPU, fresh pages for each chunk cost as much as the exponentials.
    if bias is None:
        return torch.mm(hidden, weight.t(), out=buffer)
    return torch.addmm(bias, hidden, weight.t(), out=buffer)


@dataclass(frozen=True)
class _Others:
    """For each position, the tokens other than the actual one: exp(logit - their maximum), 0 for the actual; sums."""

    exponentials: Tensor
    sums: Tensor
    predicted: Tensor

    def logits_grad(self, log_odds_grad: Tensor) -> Tensor:
        """Return the gradient with respect to all logits, [N, V]; overwrites the exponentials."""
        gradient = self.exponentials.mul_((-log_odds_grad / self.sums).unsqueeze(1))
        return gradient.scatter_(1, self.predicted.unsqueeze(1), log_odds_grad.unsqueeze(1))


def _log_odds(logits: Tensor, predicted: Tensor) -> tuple[Tensor, _Others]:
    """Return the log-odds [N] of the predicted tokens from logits [N, V], which are overwritten."""
    index = predicted.unsqueeze(1)
    own = logits.gather(1, index)
    # Subtract the maximum of the others, so that their mass is exact, however improbable.
    logits.scatter_(1, index, -torch.inf)
    largest = logits.amax(1, keepdim=True)
    exponentials = logits.sub_(largest).exp_()
    sums = exponentials.sum(1)
    return (own - largest).squeeze(1) - sums.log(), _Others(exponentials, sums, predicted)


def _terms(
    objective: Objective, predicted: Tensor, log_odds: Tensor, scores: Tensor, values: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, dict[str, Tensor]]:
    """Return the summed loss, its gradients with respect to log-odds and values, and metrics: sums, and `max_…`."""
    with torch.enable_grad():
        inputs = [each.detach().requires_grad_() for each in (log_odds, values) if each is not None]
        against = -F.logsigmoid(-inputs[0]) if objective.needs_unlikelihood else None
        terms = objective.counted_terms(
            predicted, -F.logsigmoid(inputs[0]), against, scores, None if values is None else inputs[1]
        )
        loss = terms.loss.sum()
        log_odds_grad, *values_grad = torch.autograd.grad(loss, inputs, allow_unused=True)
    metrics = {name: each.detach().sum() for name, each in terms.means.items()}
    metrics.update({f"max_{name}": each.detach().max() for name, each in terms.maxima.items()})
    return loss.detach(), log_odds_grad, values_grad[0] if values_grad else None, metrics
