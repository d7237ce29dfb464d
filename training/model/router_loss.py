"""The load-balancing loss of a mixture of experts, which keeps its router from sending all tokens to a few experts.

Each architecture in transformers computes its own from the outputs of its routers (most as Switch Transformers, arXiv
2101.03961, equations 4 to 6) if `output_router_logits` in its config is true, and weights it by a field of the config.
Here it is added to the objective, as it is to the cross-entropy there.

It counts every routed token, including those whose own loss is masked. It is not a mean over tokens: for a batch split
into micro-batches or among ranks, it is the mean of the parts' losses, as in transformers.
"""

from typing import Any

from torch import Tensor, nn

from scorers.errors import UserError

METRIC = "router_aux_loss"
# Names that models use for the weight of the loss.
_WEIGHTS = ("router_aux_loss_coef", "aux_loss_coef")


class RouterLoss:
    """The router loss of a Hugging Face causal language model, with the hidden states of the same pass.

    Attributes:
        weight: in the sum with the objective; None if the config does not enable the loss.
    """

    def __init__(self, causal: Any) -> None:
        self._causal = causal
        self._hidden: Tensor | None = None
        self._recording = False
        config = causal.config.get_text_config(decoder=True)
        self.weight = _weight(causal) if getattr(config, "output_router_logits", False) else None
        if self.weight is not None and causal.base_model is not causal:
            causal.base_model.register_forward_hook(self._keep)

    def _keep(self, _: nn.Module, __: Any, output: Any) -> None:
        if self._recording:
            self._hidden = getattr(output, "last_hidden_state", None)

    def run(self, **inputs: Any) -> tuple[Tensor, Tensor]:
        """Run the network; return the last hidden states [B, T, D] and the loss, a scalar, both with gradients."""
        # Compute only the last logits: the objective's loss computes them chunk by chunk.
        self._recording = True
        try:
            loss = self.from_output(
                self._causal(**inputs, use_cache=False, output_router_logits=True, logits_to_keep=1)
            )
        finally:
            hidden, self._hidden, self._recording = self._hidden, None, False
        if hidden is None:
            raise ValueError("the network has no last hidden state")
        return hidden, loss

    def from_output(self, output: Any) -> Tensor:
        """Return the loss in the output of a pass of the whole network.

        Raises:
            UserError: the architecture computes none, although its config enables it.
        """
        loss = getattr(output, "aux_loss", None)
        if not isinstance(loss, Tensor):
            raise UserError(
                f"The config of {type(self._causal).__name__} enables a router loss (output_router_logits), but the "
                "network computes none. Set model.overrides.output_router_logits=false."
            )
        return loss


def describe_router(model: Any) -> str:
    """Describe how the router of a `LanguageModel` with experts is trained, for the printed plan."""
    if model.router.weight is not None:
        return f"the router's own loss has weight {model.router.weight:g} ({METRIC} in the metrics)"
    text = model.causal.config.get_text_config(decoder=True)
    weight = _weight(model.causal)
    if weight is not None and hasattr(text, "output_router_logits"):
        return f"no loss balances the router (model.overrides.output_router_logits=true adds it with weight {weight:g})"
    enabled = ", although its config enables one" if getattr(text, "output_router_logits", False) else ""
    return f"no loss balances the router, as transformers has none for this architecture{enabled}"


def _weight(causal: Any) -> float | None:
    found = (getattr(causal, name, None) for name in _WEIGHTS)
    weight = next((each for each in found if isinstance(each, int | float)), None)
    return None if weight is None else float(weight)
