"""Documents of a block that do not see each other: positions that begin anew at each, by which attention is cut.

transformers reads positions that do not go on by one as the beginning of another sequence, and masks attention between
sequences (`transformers.masking_utils`); Flash Attention does so in blocks that are laid end to end, by their lengths.
"""

from typing import Any

import torch
from torch import Tensor

from scorers.errors import UserError


def document_positions(input_ids: Tensor, begins_with: int) -> Tensor:
    """Positions of tokens in their documents; the first of a block may go on from another.

    Args:
        input_ids: int64 [B, T].
        begins_with: what a document begins with: EOS, or BOS, and then EOS is the end of the document before.

    Returns:
        int64 [B, T], from 0.
    """
    index = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
    begins = torch.where(input_ids == begins_with, index, 0).cummax(1).values
    return index - begins


@torch.no_grad()
def check_documents_apart(causal: Any) -> None:
    """Try whether the architecture keeps documents apart when their positions say so.

    Tried rather than known of each architecture: some have no positions, or a state that goes on.

    Raises:
        UserError: it does not.
    """
    training = causal.training
    causal.eval()
    try:
        ids = torch.tensor([[0, 1, 2, 3, 0, 1, 3]], device=next(causal.parameters()).device)
        positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2]], device=ids.device)
        together = causal(input_ids=ids, position_ids=positions, use_cache=False).logits[:, 4:]
        alone = causal(input_ids=ids[:, 4:], use_cache=False).logits
        apart = torch.allclose(together, alone, rtol=1e-3, atol=1e-4)
    except (TypeError, ValueError, RuntimeError):
        apart = False
    finally:
        causal.train(training)
    if not apart:
        raise UserError(
            f"data.document_masking: {type(causal).__name__} lets documents of a block see each other whatever their "
            "positions are. Set it to false."
        )
