"""The order of training: block k of the run, for any k, without an array of the epoch's order in memory."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scorers.errors import UserError
from training.data.hashing import combine

_ROUNDS = 8


@dataclass(frozen=True)
class Batch:
    """Blocks of the stream. After prefetching its arrays are tensors.

    Attributes:
        input_ids: int64 [B, T].
        scores: float32 [B, T], of each token's own sentence, or with findings 0 outside them; 0 for EOS.
    """

    input_ids: NDArray[np.int64]
    scores: NDArray[np.float32]


class Blocks(Protocol):
    """What can be put in order: `training.data.stream.Stream`."""

    @property
    def num_blocks(self) -> int:
        """How many blocks there are."""
        ...

    def blocks(self, indices: ArrayLike) -> Batch:
        """The blocks of these indices, in their order."""
        ...

    def documents_in(self, indices: ArrayLike) -> NDArray[np.int64]:
        """The documents that these blocks are cut from, ascending, int64."""
        ...


class Batches(ABC):
    """Batches by step number: a pure function, so a run resumes from one integer.

    Attributes:
        batch_size: blocks a step, over all ranks.
    """

    batch_size: int

    @abstractmethod
    def part(self, step: int, begin: int, end: int) -> Batch:
        """Blocks `begin` to `end` (exclusive) of the global batch of a step, steps counted from 0."""

    @abstractmethod
    def origin(self, step: int) -> dict[str, Any]:
        """What a step's batch is made of, for people: numbers of blocks, and rows of datasets from 0; never text."""

    def batch(self, step: int) -> Batch:
        """The global batch of a step; batches straddle epochs."""
        return self.part(step, 0, self.batch_size)

    def rank_batch(self, step: int, rank: int, world: int) -> Batch:
        """The part of a step's batch that a rank computes: the rank-th of `world` equal, contiguous parts.

        Raises:
            UserError: the batch cannot be divided among the ranks.
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
    """Batches of one stream, each epoch in another order.

    Attributes:
        stream: the blocks.
        batch_size: blocks a step, over all ranks.
        seed: of the order.
    """

    stream: Blocks
    batch_size: int
    seed: int

    def block_indices(self, step: int) -> NDArray[np.int64]:
        """Which blocks of the stream step number `step` (from 0) trains on, int64 [batch_size], in global order."""
        first = step * self.batch_size
        return block_index(np.arange(first, first + self.batch_size), self.stream.num_blocks, self.seed)

    def part(self, step: int, begin: int, end: int) -> Batch:
        """See `Batches`."""
        return self.stream.blocks(self.block_indices(step)[begin:end])

    def documents(self, step: int) -> list[int]:
        """The documents of a step's batch, by their row in the dataset, from 0."""
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
    """Block number `perm_e(k mod n)` for the k-th block of a run, in epoch `e = k div n`.

    Args:
        k: int64 [...], >= 0; a number counts as [1].
        n: blocks of the stream, >= 1.
        seed: of the order.

    Returns:
        int64 [...] in [0, n).
    """
    positions = np.atleast_1d(np.asarray(k, dtype=np.int64))
    return permute(positions % n, n, combine(seed, positions // n))


def permute(x: ArrayLike, n: int, keys: ArrayLike) -> NDArray[np.int64]:
    """A keyed permutation of range(n) at each x: for one key an exact bijection, O(1) in memory.

    x is written as a pair in Z_a x Z_b with a * b barely >= n, and its halves are shifted by hashes of each other in
    turn, as in a Feistel network (Black and Rogaway, 2002, "generalized Feistel"). Pairs outside range(n), about one in
    sqrt(n), are permuted again until they fall inside ("cycle walking"), which keeps it a bijection.

    Args:
        x: int64 [...] in [0, n).
        n: size of the range.
        keys: uint64, a key for each x, or one for all.

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
