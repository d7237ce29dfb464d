"""Rows of the embeddings: those of control tokens, and padding to a round number."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scorers.errors import UserError

CONTROL_NOISE = 0.1  # of the embeddings' own standard deviation
_ROWS = 128


@dataclass(frozen=True)
class Vocabulary:
    """What a model needs to know about the tokenizer.

    Attributes:
        size: entries, including the control tokens.
        eos_id: ends a document.
        control_ids: the control tokens.
        base_size: size without the control tokens that were added to the tokenizer; None if unknown.
        bos_id: begins a document; None if `eos_id` does.
        pad_id: a token that no text contains, by which some networks count positions; None if the tokenizer has none.
    """

    size: int
    eos_id: int
    control_ids: tuple[int, ...] = ()
    base_size: int | None = None
    bos_id: int | None = None
    pad_id: int | None = None

    @property
    def begins_with(self) -> int:
        """The token that a document begins with."""
        return self.eos_id if self.bos_id is None else self.bos_id

    def set_bos_and_eos(self, config: Any) -> None:
        """Set the tokens that begin and end a text in a Hugging Face config."""
        for holder in (config, config.get_text_config()):
            holder.bos_token_id, holder.eos_token_id = self.begins_with, self.eos_id


def padding_id(tokenizer: Any) -> int | None:
    """Return the padding token of a Hugging Face tokenizer; None if it has none besides EOS."""
    own = tokenizer.pad_token_id
    return None if own is None or own == tokenizer.eos_token_id else int(own)


@torch.no_grad()
def initialise_control_rows(causal: Any, control_ids: tuple[int, ...]) -> None:
    """Initialise the rows of new control tokens to the mean of all others plus small noise."""
    if not control_ids:
        return
    source, output = causal.get_input_embeddings().weight, causal.get_output_embeddings().weight
    for weight in [source] if output is source else [source, output]:
        others = torch.ones(len(weight), dtype=torch.bool, device=weight.device)
        others[list(control_ids)] = False
        known = weight[others]
        noise = torch.randn(len(control_ids), weight.shape[1], device=weight.device) * known.std() * CONTROL_NOISE
        weight[list(control_ids)] = known.mean(dim=0) + noise


class Padding:
    """Append rows of zeros to the embeddings, so that the largest matrix product of a small model has an aligned shape.

    Only that product sees them: the output embedding returns the logits of the vocabulary alone, the loss excludes
    theirs (`training.linear_loss`), and `remove` takes them out of an export. Their gradient is zero, so they stay
    zero. The config's `vocab_size` excludes them.

    Source: nanoGPT's GPTConfig, which pads GPT-2's 50,257 rows to 50,304 for efficiency.

    Args:
        causal: a Hugging Face causal language model whose embeddings have no padding yet.
        multiple: the number of rows becomes a multiple of this; 1 adds none, None is 128 if the architecture allows it.

    Attributes:
        size: rows without the padding.
        rows: rows with the padding.
        parameters: values in the padding, those of shared tables once.

    Raises:
        UserError: the architecture's logits are not the output of its output embedding.
    """

    def __init__(self, causal: Any, multiple: int | None) -> None:
        embedding, head = causal.get_input_embeddings(), causal.get_output_embeddings()
        self.size = int(embedding.num_embeddings)
        possible = isinstance(head, nn.Linear) and isinstance(embedding, nn.Embedding)
        if multiple is None:
            multiple = _ROWS if possible else 1
        self.rows = -(-self.size // multiple) * multiple
        self.parameters = 0
        self._names: set[str] = set()
        if self.rows == self.size:
            return
        if not possible or head.out_features != self.size:
            raise _not_padded(causal)
        tied = head.weight is embedding.weight
        embedding.weight = self._padded(embedding.weight)
        embedding.num_embeddings = self.rows
        head.weight = embedding.weight if tied else self._padded(head.weight)
        if head.bias is not None:
            head.bias = self._padded(head.bias)
        head.out_features = self.rows
        head.register_forward_hook(lambda _, __, logits: logits[..., : self.size])
        for name, module in causal.named_modules(remove_duplicate=False):
            if module is embedding or module is head:
                self._names |= {f"{name}.{each}" for each, _ in module.named_parameters(recurse=False)}

    @torch.no_grad()
    def check(self, causal: Any) -> None:
        """Check that the model's logits have no padding.

        Raises:
            UserError: they do.
        """
        if self.rows > self.size:
            ids = torch.zeros((1, 2), dtype=torch.long, device=causal.get_input_embeddings().weight.device)
            if causal(input_ids=ids, use_cache=False).logits.shape[-1] != self.size:
                raise _not_padded(causal)

    def remove(self, weights: Mapping[str, Tensor], *, prefix: str = "") -> dict[str, Tensor]:
        """Return whole weights by name without padding; tables that share memory still do.

        Args:
            weights: of the causal model; others are returned unchanged.
            prefix: of the causal model's names.
        """
        names = {prefix + name for name in self._names}
        cut = {each.data_ptr(): each[: self.size].clone() for name, each in weights.items() if name in names}
        return {name: cut[each.data_ptr()] if name in names else each for name, each in weights.items()}

    def _padded(self, weight: Tensor) -> nn.Parameter:
        zeros = weight.new_zeros((self.rows - self.size, *weight.shape[1:]))
        self.parameters += zeros.numel()
        return nn.Parameter(torch.cat([weight.detach(), zeros]), requires_grad=weight.requires_grad)


def _not_padded(causal: Any) -> UserError:
    return UserError(f"model.pad_vocab_to: the embeddings of {type(causal).__name__} cannot be padded. Set it to 1.")
