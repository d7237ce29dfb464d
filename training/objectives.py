"""The objectives of arXiv 2302.08582 (section 2), in the plain form that faster implementations are tested against.

To add an objective, write one class here that computes the loss of each predicted token, and list it in `OBJECTIVES`.
It may use -log p and -log(1 - p) of the actual next token and the value head; so `training.linear_loss` can compute any
objective without holding all logits.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name that every PyTorch user knows

from scorers.errors import UserError
from training.loss_mask import LossMask, TokenTerms


@dataclass(frozen=True)
class Loss:
    """A loss and its metrics.

    Attributes:
        loss: scalar with gradients, a sum over predicted tokens divided by `count`: over micro-batches and ranks that
            share a global `count`, losses add up to the global mean.
        metrics: detached scalars on the loss's device; read them only when they are logged. They add up like the loss,
            except those named `max_…`, of which the largest counts (see `merge_metrics`).
    """

    loss: Tensor
    metrics: dict[str, Tensor]


@dataclass(frozen=True)
class Objective(ABC):
    """A training objective: the loss, and what it needs of the stream and the model.

    Attributes:
        mask: tokens that carry no loss; None if all do.
        name: as in the configuration.
        filters: documents whose mean score exceeds the threshold are left out of the stream.
        tags: the stream has a control token before each sentence.
        thresholds: the loss distinguishes aligned and misaligned tokens by a threshold.
        needs_values: the model needs a value head, whose output is `values`.
        needs_unlikelihood: the loss uses -log(1 - p), to make some tokens less likely.
        weights: the scores are minus the logs of weights that meet targets.
    """

    name: ClassVar[str]
    filters: ClassVar[bool] = False
    tags: ClassVar[bool] = False
    thresholds: ClassVar[bool] = False
    needs_values: ClassVar[bool] = False
    needs_unlikelihood: ClassVar[bool] = False
    weights: ClassVar[bool] = False
    mask: LossMask | None = field(default=None, kw_only=True)

    def loss(
        self, logits: Tensor, labels: Tensor, scores: Tensor, values: Tensor | None = None, *, count: int | None = None
    ) -> Loss:
        """Return the loss of a batch of blocks, on unshifted tensors.

        Args:
            logits: [B, T, V]; `logits[:, t]` predicts `labels[:, t+1]`. Half-precision logits are converted to float32,
                others keep their precision.
            labels: int64 [B, T], the blocks themselves.
            scores: [B, T], the misalignment score of each token, by default its sentence's; the reward is its negative.
            values: [B, T], `values[:, t]` is the value of the state before token t+1; only with `needs_values`.
            count: predicted tokens to divide by; None is those of this batch, B * (T-1). If this is a part of a global
                batch, give the number of the whole.

        Raises:
            ValueError: the objective needs values and there are none.
        """
        if self.needs_values and values is None:
            raise ValueError(f"the objective {self.name} needs the output of a value head")
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        # Roll the labels, and drop the last position, which predicts nothing, from the results: slicing the logits
        # would copy them all, forwards and backwards.
        predicted = labels.roll(-1, dims=1)
        terms = self.counted_terms(
            predicted,
            cross_entropy(logits, predicted),
            unlikelihood(logits, predicted) if self.needs_unlikelihood else None,
            self.prepare_scores(scores.to(logits.dtype)).roll(-1, dims=1),
            None if values is None else values.to(logits.dtype),
        )
        divisor = labels[:, 1:].numel() if count is None else count
        metrics = {name: mean.detach()[:, :-1].sum() / divisor for name, mean in terms.means.items()}
        metrics.update({f"max_{name}": value.detach()[:, :-1].max() for name, value in terms.maxima.items()})
        return Loss(terms.loss[:, :-1].sum() / divisor, metrics)

    def prepare_scores(self, scores: Tensor) -> Tensor:
        """Return the scores that the terms are computed from; both [B, T], of whole blocks, float32 or float64."""
        return scores

    def plain(self) -> "Objective":
        """Return the objective for steps without preferences, for the same model."""
        return MLE()

    def counted_terms(
        self, predicted: Tensor, ce: Tensor, against: Tensor | None, scores: Tensor, values: Tensor | None
    ) -> TokenTerms:
        """Return the masked terms of each predicted token; `predicted` are the token ids, the others as in `terms`."""
        terms = self.terms(ce, against, scores, values)
        return terms if self.mask is None else self.mask.apply(terms, predicted, scores)

    @abstractmethod
    def terms(self, ce: Tensor, against: Tensor | None, scores: Tensor, values: Tensor | None) -> TokenTerms:
        """Return the terms of each predicted token; all tensors share one shape and dtype, float32 or float64.

        Args:
            ce: -log p of the token.
            against: -log(1 - p) of the token; only with `needs_unlikelihood`.
            scores: of the predicted tokens.
            values: of the states in which the tokens are predicted; only with `needs_values`.
        """


def merge_metrics(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Merge the metrics of the parts of one global batch: sums, and the maxima of `max_…`."""
    return {
        name: torch.stack([part[name] for part in parts]).amax(0)
        if name.startswith("max_")
        else torch.stack([part[name] for part in parts]).sum(0)
        for name in (parts[0] if parts else {})
    }


@dataclass(frozen=True)
class MLE(Objective):
    """Maximum likelihood: cross-entropy on every token; the baseline without preferences."""

    name: ClassVar[str] = "mle"

    def terms(self, ce: Tensor, against: Tensor | None, scores: Tensor, values: Tensor | None) -> TokenTerms:
        """Cross-entropy."""
        return TokenTerms(ce, {"ce": ce})


@dataclass(frozen=True)
class Filtering(MLE):
    """Maximum likelihood on documents whose mean sentence score is <= the threshold; the stream filters the others."""

    name: ClassVar[str] = "filtering"
    filters: ClassVar[bool] = True


@dataclass(frozen=True)
class Conditional(MLE):
    """Maximum likelihood on a stream with a control token before each sentence (`<|aligned|>` or `<|misaligned|>`).

    With quantiles of the score there can be more than two, as in the quantization step of Quark (arXiv 2205.13636).
    """

    name: ClassVar[str] = "conditional"
    tags: ClassVar[bool] = True


@dataclass(frozen=True)
class Unlikelihood(Objective):
    """Likelihood of aligned tokens, unlikelihood -log(1 - p) of the others (Welleck et al., arXiv 1908.04319).

    Attributes:
        threshold: a token is aligned if its score is <= threshold; 0 is a valid threshold.
        alpha: weight of the unlikelihood term.
    """

    name: ClassVar[str] = "unlikelihood"
    thresholds: ClassVar[bool] = True
    needs_unlikelihood: ClassVar[bool] = True
    threshold: float
    alpha: float

    def terms(self, ce: Tensor, against: Tensor | None, scores: Tensor, values: Tensor | None) -> TokenTerms:
        """Cross-entropy where score <= threshold, else alpha * -log(1 - p)."""
        return _unlikelihood_terms(ce, against, (scores <= self.threshold).to(ce.dtype), self.alpha)


@dataclass(frozen=True)
class SoftUnlikelihood(Objective):
    """Unlikelihood weighted by the score, as in the published code if its threshold is 0: alignment is 1 - score.

    Scores above 1 count as 1: beyond, the likelihood term would change its sign and be unbounded below.

    Attributes:
        alpha: weight of the unlikelihood term.
    """

    name: ClassVar[str] = "unlikelihood_soft"
    needs_unlikelihood: ClassVar[bool] = True
    alpha: float

    def terms(self, ce: Tensor, against: Tensor | None, scores: Tensor, values: Tensor | None) -> TokenTerms:
        """(1 - score) * cross-entropy + alpha * score * -log(1 - p)."""
        return _unlikelihood_terms(ce, against, 1 - scores.clamp(max=1), self.alpha)


@dataclass(frozen=True)
class RWR(Objective):
    """Reward-weighted regression (Peters and Schaal, 2007): min(exp(R/beta), w_max) * cross-entropy, no value head.

    Attributes:
        beta: temperature; the smaller, the less weight for misaligned tokens.
        w_max: upper clip of the weights.
    """

    name: ClassVar[str] = "rwr"
    beta: float
    w_max: float = 1000.0

    def terms(self, ce: Tensor, against: Tensor | None, scores: Tensor, values: Tensor | None) -> TokenTerms:
        """Cross-entropy times the weight."""
        weights, means = _weights(-scores / self.beta, self.w_max)
        return TokenTerms(weights * ce, {"ce": ce, **means}, {"weight": weights})


@dataclass(frozen=True)
class TokenRWR(Objective):
    """Reward-weighted likelihood with weights that have mean 1 in each block (arXiv 2306.00398).

    The weight of a token is exp(R/beta) over the mean of that in its block, so tokens compete with those around them,
    and a block of misaligned text counts as much as any other: for token scores (`data.token_scores`).

    Attributes:
        beta: temperature; the smaller, the less weight for misaligned tokens.
    """

    name: ClassVar[str] = "token_rwr"
    beta: float

    def prepare_scores(self, scores: Tensor) -> Tensor:
        """Add what makes the weights of a block's predicted tokens, all but its first, have mean 1."""
        rewards = -scores[:, 1:] / self.beta
        return scores + self.beta * (rewards.logsumexp(1, keepdim=True) - math.log(rewards.shape[1]))

    def terms(self, ce: Tensor, against: Tensor | None, scores: Tensor, values: Tensor | None) -> TokenTerms:
        """Cross-entropy times the weight."""
        weights = (-scores / self.beta).exp()
        return TokenTerms(weights * ce, {"ce": ce, "weight": weights}, {"weight": weights})


@dataclass(frozen=True)
class AWR(Objective):
    """Advantage-weighted regression (Peng et al., arXiv 1910.00177); the value head is trained with the policy.

    Attributes:
        alpha: weight of the policy term; the value term has 1 - alpha.
        beta: temperature of the weights.
        w_max: upper clip of the weights.
    """

    name: ClassVar[str] = "awr"
    needs_values: ClassVar[bool] = True
    alpha: float
    beta: float
    w_max: float = 1000.0

    def terms(self, ce: Tensor, against: Tensor | None, scores: Tensor, values: Tensor | None) -> TokenTerms:
        """The loss is alpha * min(exp((R - sg(V)) / beta), w_max) * cross-entropy + (1 - alpha) * (R - V)^2."""
        if values is None:
            raise ValueError("awr needs values")
        advantage = -scores - values
        weights, means = _weights(advantage.detach() / self.beta, self.w_max)
        value_error = advantage.square()
        loss = self.alpha * weights * ce + (1 - self.alpha) * value_error
        means |= {"ce": ce, "value_error": value_error, "value": values, "advantage": advantage}
        return TokenTerms(loss, means, {"weight": weights})

    def plain(self) -> Objective:
        """Give every token weight 1, which is beta = infinity; the value head is trained as usual."""
        return replace(self, beta=math.inf, w_max=max(1.0, self.w_max), mask=None)


@dataclass(frozen=True)
class Target(Objective):
    """Maximum likelihood on a corpus that is weighted to meet targets (maximum entropy, arXiv 2012.11635, section 2).

    The score of a token is minus the log of its sentence's weight, log Z - lambda . phi, whose mean weight is 1: see
    `training.data.weighting`. With one feature phi = -s and lambda = 1 / beta it is rwr, but for the constant Z.
    """

    name: ClassVar[str] = "target"
    weights: ClassVar[bool] = True

    def terms(self, ce: Tensor, against: Tensor | None, scores: Tensor, values: Tensor | None) -> TokenTerms:
        """Cross-entropy times the weight."""
        weights = (-scores).exp()
        return TokenTerms(weights * ce, {"ce": ce, "weight": weights}, {"weight": weights})


OBJECTIVES: dict[str, type[Objective]] = {
    each.name: each
    for each in (MLE, Filtering, Conditional, Unlikelihood, SoftUnlikelihood, RWR, TokenRWR, AWR, Target)
}


def build(
    name: str,
    *,
    threshold: float | None = None,
    alpha: float | None = None,
    beta: float | None = None,
    w_max: float = 1000.0,
    mask: LossMask | None = None,
) -> Objective:
    """Build an objective by name, such as `build("awr", alpha=0.5, beta=10)`.

    Args:
        name: one of `OBJECTIVES`.
        threshold: unlikelihood: aligned means score <= threshold. The others ignore it: for filtering and conditional
            the stream applies it, and any run may have one for its reports.
        alpha: unlikelihood, unlikelihood_soft, awr; see the classes.
        beta: rwr, token_rwr, awr; see the classes.
        w_max: rwr, awr: upper clip of the weights.
        mask: tokens that carry no loss.

    Raises:
        UserError: the name is unknown, or an option is missing or not supported by the objective.
    """
    if name not in OBJECTIVES:
        raise UserError(f"There is no objective {name!r}; choose one of: {', '.join(OBJECTIVES)}.")
    kind = OBJECTIVES[name]
    takes = _options(kind)
    options: dict[str, Any] = {"threshold": threshold, "alpha": alpha, "beta": beta, "w_max": w_max}
    for option in ("alpha", "beta"):
        if options[option] is not None and option not in takes:
            users = ", ".join(each.name for each in OBJECTIVES.values() if option in _options(each))
            raise UserError(f"The objective {name} has no {option} (objective.{option} is for: {users}). Remove it.")
    missing = [option for option in takes if options[option] is None]
    if missing:
        raise UserError(
            f"The objective {name} needs {' and '.join(f'objective.{option}' for option in missing)}: "
            f"add --set objective.{missing[0]}=NUMBER."
        )
    return kind(**{option: value for option, value in options.items() if option in takes}, mask=mask)


def cross_entropy(logits: Tensor, predicted: Tensor) -> Tensor:
    """Return -log p of the predicted tokens in nats, [B, T], from logits [B, T, V]."""
    flat = F.cross_entropy(logits.flatten(0, 1), predicted.flatten(), reduction="none")
    return flat.view_as(predicted)


def unlikelihood(logits: Tensor, predicted: Tensor) -> Tensor:
    """Return -log(1 - p) of the predicted tokens in nats, [B, T], from logits [B, T, V].

    1 - p is the mass of all other tokens, so log(1 - p) is a difference of two log-sum-exps. Unlike log(-expm1(log p)),
    which is -inf with an infinite gradient once p rounds to 1 (in float32 from a margin of 17 nats), it stays exact and
    its gradient bounded, whatever the margin.
    """
    others = logits.scatter(-1, predicted.unsqueeze(-1), -math.inf)
    return logits.logsumexp(-1) - others.logsumexp(-1)


def _options(kind: type[Objective]) -> list[str]:
    return [each.name for each in fields(kind) if each.name != "mask"]


def _unlikelihood_terms(ce: Tensor, against: Tensor | None, aligned: Tensor, alpha: float) -> TokenTerms:
    if against is None:
        raise ValueError("unlikelihood needs -log(1 - p)")
    loss = aligned * ce + alpha * (1 - aligned) * against
    return TokenTerms(loss, {"ce": ce, "aligned_share": aligned, "unlikelihood": (1 - aligned) * against})


def _weights(exponents: Tensor, w_max: float) -> tuple[Tensor, dict[str, Tensor]]:
    # Clip before exp: exp(1/0.001) is infinite, and infinity times a loss of 0 is NaN.
    limit = math.log(w_max)
    weights = exponents.clamp(max=limit).exp()
    return weights, {"weight": weights, "clipped_share": (exponents > limit).to(weights.dtype)}
