"""Documents of a block that do not see each other: positions that begin anew at each, by which attention is cut.

transformers reads positions that do not go on by one as the beginning of another sequence, and masks attention between
sequences (`transformers.masking_utils`); Flash Attention does so in blocks that are laid end to end, by their lengths.
"""

import torch
from torch import Tensor


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
