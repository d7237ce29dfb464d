"""The loss that keeps the router of a mixture of experts from sending all tokens to the same few.

Each architecture of transformers computes its own from what its routers gave (most as Switch Transformers, arXiv
2101.03961, equations 4 to 6), where `output_router_logits` of its config is true, and weighs it by a field of the
config. Here it is added to the objective, as there to the cross-entropy.

It counts every token that is routed, one whose own loss is masked too. It is no mean over tokens: that of a batch which
is cut into micro-batches, or shared among ranks, is the mean of the losses of the parts, as in transformers.
"""

from typing import Any

from torch import Tensor, nn

from scorers.errors import UserError

METRIC = "router_aux_loss"
# What the models call the weight of the loss.
_WEIGHTS = ("router_aux_loss_coef", "aux_loss_coef")


class RouterLoss:
    """The loss of the routers of a Hugging Face causal language model, with the hidden states of the same pass.

    Attributes:
        weight: by which it is added to the objective; None where the config does not ask for it.
    """

    def __init__(self, causal: Any) -> None:
        self._causal = causal
        self._hidden: Tensor | None = None
        self._listens = False
        config = causal.config.get_text_config(decoder=True)
        self.weight = _weight(causal) if getattr(config, "output_router_logits", False) else None
        if self.weight is not None and causal.base_model is not causal:
            causal.base_model.register_forward_hook(self._keep)

    def _keep(self, _: nn.Module, __: Any, output: Any) -> None:
        if self._listens:
            self._hidden = getattr(output, "last_hidden_state", None)

    def run(self, **inputs: Any) -> tuple[Tensor, Tensor]:
        """The last hidden states [B, T, D], and the loss, a scalar, both with gradients.

        Args:
            inputs: of the network.
        """
        # Of the logits only the last: the loss of the objective takes them chunk by chunk.
        self._listens = True
        try:
            loss = self.of(self._causal(**inputs, use_cache=False, output_router_logits=True, logits_to_keep=1))
        finally:
            hidden, self._hidden, self._listens = self._hidden, None, False
        if hidden is None:
            raise ValueError("the network has no last hidden state")
        return hidden, loss

    def of(self, output: Any) -> Tensor:
        """The loss by the output of a pass of the whole network.

        Raises:
            UserError: the architecture computes none, though its config asks for one.
        """
        loss = getattr(output, "aux_loss", None)
        if not isinstance(loss, Tensor):
            raise UserError(
                f"The config of {type(self._causal).__name__} asks for a loss of its router (output_router_logits), "
                "and the network gives none. Set model.overrides.output_router_logits=false."
            )
        return loss


def describe_router(model: Any) -> str:
    """How the router is trained, for the printed plan.

    Args:
        model: a `training.model.language_model.LanguageModel` with experts.
    """
    if model.router.weight is not None:
        return f"the router's own loss has weight {model.router.weight:g} ({METRIC} in the metrics)"
    text = model.causal.config.get_text_config(decoder=True)
    weight = _weight(model.causal)
    if weight is not None and hasattr(text, "output_router_logits"):
        return f"no loss balances the router (model.overrides.output_router_logits=true adds it with weight {weight:g})"
    asked = ", though its config asks for one" if getattr(text, "output_router_logits", False) else ""
    return f"no loss balances the router, as transformers has none for this architecture{asked}"


def _weight(causal: Any) -> float | None:
    found = (getattr(causal, name, None) for name in _WEIGHTS)
    weight = next((each for each in found if isinstance(each, int | float)), None)
    return None if weight is None else float(weight)
