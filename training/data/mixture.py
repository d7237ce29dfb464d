"""Mix several datasets into one sequence of blocks, with random access to the k-th block of a run."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset.hashing import combine
from training.data.batches import Batch, Batches, Blocks, block_index, permute

# Every dataset has exactly its share of each group of this many blocks.
GROUP = 4096

# Salts: independent choices from one seed.
_GROUP_ORDER = 1
_DATASET_ORDER = 2


@dataclass(frozen=True)
class MixtureSource(Batches):
    """Batches of several streams: each has its share of every 4096 blocks and its own epochs.

    Attributes:
        streams: of one context length and one tokenizer.
        names: the datasets, as the user named them.
        shares: of the blocks, adding up to 1.
        batch_size: blocks per step, over all ranks.
        seed: determines the order.
    """

    streams: tuple[Blocks, ...]
    names: tuple[str, ...]
    shares: tuple[Fraction, ...]
    batch_size: int
    seed: int

    def places(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Find the stream, and the block in that stream, for each block of the run.

        Args:
            numbers: int64 [n], blocks of the run, from 0.

        Returns:
            int64 [n], indices into `streams`, and int64 [n], blocks in them.
        """
        chosen, number = interleave(numbers, group_counts(self.shares), self.seed)
        block = np.zeros_like(number)
        for index, stream in enumerate(self.streams):
            own = chosen == index
            block[own] = block_index(number[own], stream.num_blocks, self._seed_of(index))
        return chosen, block

    def part(self, step: int, begin: int, end: int) -> Batch:
        """See `Batches`."""
        first = step * self.batch_size
        chosen, block = self.places(np.arange(first + begin, first + end))
        rows = {index: np.flatnonzero(chosen == index) for index in np.unique(chosen).tolist()}
        return _join([(own, self.streams[index].blocks(block[own])) for index, own in rows.items()])

    def origin(self, step: int) -> dict[str, Any]:
        """See `Batches`."""
        first = step * self.batch_size
        chosen, block = self.places(np.arange(first, first + self.batch_size))
        return {
            "seed": self.seed,
            "datasets": [
                {
                    "dataset": name,
                    "blocks": block[chosen == index].tolist(),
                    "dataset_rows": stream.documents_in(block[chosen == index]).tolist(),
                }
                for index, (name, stream) in enumerate(zip(self.names, self.streams, strict=True))
                if (chosen == index).any()
            ],
        }

    def _seed_of(self, index: int) -> int:
        return int(combine(self.seed, _DATASET_ORDER, index)[0]) if index else self.seed


def group_counts(shares: Sequence[Fraction]) -> tuple[int, ...]:
    """Divide 4096 blocks by shares that add up to 1, by largest remainder (Hamilton's method; ties go to the first)."""
    exact = [share * GROUP for share in shares]
    counts = [int(each) for each in exact]
    by_remainder = sorted(range(len(exact)), key=lambda index: counts[index] - exact[index])
    for index in by_remainder[: GROUP - sum(counts)]:
        counts[index] += 1
    return tuple(counts)


def interleave(
    numbers: NDArray[np.int64], counts: tuple[int, ...], seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each block of a run, find its dataset and how many earlier blocks come from the same dataset.

    Args:
        numbers: int64 [n], blocks of the run, from 0.
        counts: blocks per group from each dataset, adding up to 4096.
        seed: determines the order within the groups.

    Returns:
        Two int64 [n].
    """
    group, place = np.divmod(numbers, GROUP)
    chosen, before = np.zeros_like(numbers), np.zeros_like(numbers)
    for each in np.unique(group).tolist():
        here = group == each
        labels, ranks = _group(each, counts, seed)
        chosen[here] = labels[place[here]]
        before[here] = each * np.asarray(counts, dtype=np.int64)[chosen[here]] + ranks[place[here]]
    return chosen, before


# A rank reads one group for many steps, and rarely the next one too.
@lru_cache(maxsize=8)
def _group(number: int, counts: tuple[int, ...], seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    shuffled = permute(np.arange(GROUP), GROUP, combine(seed, _GROUP_ORDER, number))
    ends = np.cumsum(counts)
    labels = np.searchsorted(ends, shuffled, side="right").astype(np.int64)
    ranks = np.zeros(GROUP, dtype=np.int64)
    ranks[np.argsort(labels, kind="stable")] = np.arange(GROUP) - np.repeat(ends - counts, counts)
    return labels, ranks


def _join(parts: list[tuple[NDArray[np.int64], Batch]]) -> Batch:
    """Join parts, each with its rows in the result, into one batch; works on all array fields of a batch."""
    _, first = parts[0]
    size = sum(len(rows) for rows, _ in parts)
    whole: dict[str, Any] = {}
    for field in fields(first):
        value = getattr(first, field.name)
        if not isinstance(value, np.ndarray):
            continue
        whole[field.name] = np.empty((size, *value.shape[1:]), dtype=value.dtype)
        for rows, part in parts:
            whole[field.name][rows] = getattr(part, field.name)
    return replace(first, **whole)
