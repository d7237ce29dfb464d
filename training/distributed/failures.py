"""Turn failures outside phf into messages for the user: memory that runs out, and ranks that are gone."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from scorers.errors import IncompleteError, UserError
from training.distributed.errors import RankError

_LESS = (
    "Lower training.micro_batch_size, or set training.activation_checkpointing=true or training.offload=optimizer: the "
    "run continues from its newest checkpoint. `phf train --plan` estimates each, and ZeRO stages for a new run."
)
# Messages of torch's CPU allocator. Where the kernel overcommits memory, it kills the process instead.
_NO_HOST_MEMORY = ("can't allocate memory", "not enough memory")


@contextmanager
def failures_named() -> Iterator[None]:
    """Replace errors of libraries about memory and peers by errors of phf; other errors pass unchanged.

    Raises:
        IncompleteError: memory ran out in the block, or another rank is gone.
        RankError: memory ran out on this rank, which is not 0. It reports it itself, as the others only see it gone.
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise _no_memory("the GPU") from error
        if _is_of_a_peer(error):
            raise IncompleteError(
                "Another rank is gone, or cannot be reached. The same command continues from the newest checkpoint."
            ) from error
        if _is_of_memory(error):
            raise _no_memory("this machine") from error
        raise


def is_failure(error: Exception) -> bool:
    """Whether torch raised the error because of a machine or a peer, and not because of its input."""
    return isinstance(error, torch.OutOfMemoryError | torch.AcceleratorError) or (
        isinstance(error, RuntimeError) and (_is_of_a_peer(error) or _is_of_memory(error))
    )


def _is_of_a_peer(error: RuntimeError) -> bool:
    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error)


def _is_of_memory(error: RuntimeError) -> bool:
    return any(words in str(error) for words in _NO_HOST_MEMORY)


def _no_memory(where: str) -> UserError:
    problem, rank = f"The memory of {where} is not enough. {_LESS}", os.environ.get("RANK", "0")
    if rank == "0":
        return IncompleteError(problem)
    return RankError(f"on rank {rank} ({socket.gethostname()}): {problem}", IncompleteError.exit_code)
