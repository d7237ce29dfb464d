"""Mask attention between the documents of a block, by positions that restart at each document.

Where positions do not increase by one, transformers assumes a new sequence, and masks attention between sequences
(`transformers.masking_utils`). Flash Attention does the same for a single row, by the lengths of its sequences.
"""

import torch
from torch import Tensor


def document_positions(input_ids: Tensor, begins_with: int) -> Tensor:
    """Return the positions of tokens in their documents; positions also restart with each block.

    Args:
        input_ids: int64 [B, T].
        begins_with: the first token of a document: EOS, or BOS if it has one; then EOS ends the previous document.

    Returns:
        int64 [B, T], from 0.
    """
    index = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
    begins = torch.where(input_ids == begins_with, index, 0).cummax(1).values
    return index - begins
