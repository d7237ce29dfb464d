"""Map each step to its batch: a keyed permutation of the blocks, without an array of the epoch's order in memory."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.dataset.hashing import combine
from scorers.errors import UserError

_ROUNDS = 8


@dataclass(frozen=True)
class Batch:
    """Blocks of the stream. After prefetching, the arrays are tensors.

    Attributes:
        input_ids: int64 [B, T].
        scores: float32 [B, T], the score of each token's sentence; 0 for EOS; with findings 0 outside them,
            with credit the token's own.
    """

    input_ids: NDArray[np.int64]
    scores: NDArray[np.float32]


class Blocks(Protocol):
    """Random access to blocks, as `training.data.tagged_stream.Stream` gives it."""

    @property
    def num_blocks(self) -> int:
        """The number of blocks."""
        ...

    def blocks(self, indices: ArrayLike) -> Batch:
        """Return the blocks with these indices, in the given order."""
        ...

    def documents_in(self, indices: ArrayLike) -> NDArray[np.int64]:
        """Return the documents that these blocks contain, ascending, int64."""
        ...


class Batches(ABC):
    """Batches by step number: a pure function, so a run resumes from one integer.

    Attributes:
        batch_size: blocks per step, over all ranks.
    """

    batch_size: int

    @abstractmethod
    def part(self, step: int, begin: int, end: int) -> Batch:
        """Return blocks `begin` to `end` (exclusive) of a step's global batch; steps count from 0."""

    @abstractmethod
    def origin(self, step: int) -> dict[str, Any]:
        """Describe where a step's batch comes from: block numbers and dataset rows, from 0; never text."""

    def batch(self, step: int) -> Batch:
        """Return the global batch of a step; batches straddle epochs."""
        return self.part(step, 0, self.batch_size)

    def rank_batch(self, step: int, rank: int, world: int) -> Batch:
        """Return a rank's share of a step's batch: the rank-th of `world` equal, contiguous parts.

        Raises:
            UserError: the batch size is not divisible by the number of ranks.
        """
        if self.batch_size % world:
            raise UserError(
                f"training.batch_size={self.batch_size} cannot be divided among {world} ranks; "
                f"choose a multiple of {world}."
            )
        share = self.batch_size // world
        return self.part(step, rank * share, (rank + 1) * share)


@dataclass(frozen=True)
class BatchSource(Batches):
    """Batches of one stream, in a different order each epoch.

    Attributes:
        batch_size: blocks per step, over all ranks.
        seed: determines the order.
    """

    stream: Blocks
    batch_size: int
    seed: int

    def block_indices(self, step: int) -> NDArray[np.int64]:
        """Return the stream's blocks that a step (from 0) trains on, int64 [batch_size], in global order."""
        first = step * self.batch_size
        return block_index(np.arange(first, first + self.batch_size), self.stream.num_blocks, self.seed)

    def part(self, step: int, begin: int, end: int) -> Batch:
        """See `Batches`."""
        return self.stream.blocks(self.block_indices(step)[begin:end])

    def documents(self, step: int) -> list[int]:
        """Return the dataset rows, from 0, of the documents in a step's batch."""
        found: list[int] = self.stream.documents_in(self.block_indices(step)).tolist()
        return found

    def origin(self, step: int) -> dict[str, Any]:
        """See `Batches`."""
        return {
            "seed": self.seed,
            "blocks": self.block_indices(step).tolist(),
            "dataset_rows": self.documents(step),
        }


def block_index(k: ArrayLike, n: int, seed: int) -> NDArray[np.int64]:
    """Return `perm_e(k mod n)`, the stream's block for the k-th block of a run, in epoch `e = k div n`.

    Args:
        k: int64 [...], >= 0; a scalar counts as [1].
        n: blocks in the stream, >= 1.
        seed: determines the order.

    Returns:
        int64 [...] in [0, n).
    """
    positions = np.atleast_1d(np.asarray(k, dtype=np.int64))
    return permute(positions % n, n, combine(seed, positions // n))


def permute(x: ArrayLike, n: int, keys: ArrayLike) -> NDArray[np.int64]:
    """Apply a keyed permutation of range(n) to each x: an exact bijection for each key, O(1) in memory.

    x is written as a pair in Z_a x Z_b with a * b barely >= n, and its halves are shifted by hashes of each other in
    turn, as in a Feistel network (Black and Rogaway, 2002, "generalized Feistel"). Pairs outside range(n), about one in
    sqrt(n), are permuted again until they fall inside ("cycle walking"), which keeps it a bijection.

    Args:
        x: int64 [...] in [0, n).
        n: size of the range.
        keys: uint64, one key per x, or one for all.

    Returns:
        int64, the shape of x.
    """
    values = np.asarray(x, dtype=np.int64)
    flat = values.ravel().copy()
    keys_flat = np.broadcast_to(np.asarray(keys, dtype=np.uint64), values.shape).ravel()
    left_size = math.isqrt(n - 1) + 1 if n > 1 else 1
    right_size = -(-n // left_size)
    todo = np.arange(len(flat))
    while len(todo):
        flat[todo] = _shuffle_pairs(flat[todo], left_size, right_size, keys_flat[todo])
        todo = todo[flat[todo] >= n]
    return flat.reshape(values.shape)


def _shuffle_pairs(
    x: NDArray[np.int64], left_size: int, right_size: int, keys: NDArray[np.uint64]
) -> NDArray[np.int64]:
    left, right = (half.astype(np.uint64) for half in np.divmod(x, right_size))
    for number in range(_ROUNDS):
        if number % 2:
            right = (right + combine(keys, number, left) % np.uint64(right_size)) % np.uint64(right_size)
        else:
            left = (left + combine(keys, number, right) % np.uint64(left_size)) % np.uint64(left_size)
    return (left * np.uint64(right_size) + right).astype(np.int64)
