"""What fails outside of phf, in words for its user: memory that runs out, and a peer that is gone."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from scorers.errors import IncompleteError

_LESS = (
    "Lower training.micro_batch_size, or set training.activation_checkpointing=true or training.offload=optimizer: the "
    "run goes on from its newest checkpoint. `phf train --plan` estimates each, and ZeRO stages for a new run."
)
# As torch's allocator for the CPU says it; where the kernel has promised more than there is, it kills instead.
_NO_HOST_MEMORY = ("can't allocate memory", "not enough memory")


@contextmanager
def failures_named() -> Iterator[None]:
    """Tell what is no mistake of ours from one: libraries say it in words of their own.

    Raises:
        IncompleteError: memory ran out in the block, or another rank is gone.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise IncompleteError(f"The memory of the GPU does not suffice. {_LESS}") from error
    except RuntimeError as error:
        if isinstance(error, torch.distributed.DistError) or "gloo" in str(error):
            raise IncompleteError(
                "Another rank is gone, or cannot be reached. The same command goes on from the newest checkpoint."
            ) from error
        if any(words in str(error) for words in _NO_HOST_MEMORY):
            raise IncompleteError(f"The memory of this machine does not suffice. {_LESS}") from error
        raise
