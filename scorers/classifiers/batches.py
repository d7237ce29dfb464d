"""The one place that decides what a network gets at once: sequences of like length, few padded positions.

The plan depends on the lengths alone, so the same documents are computed in the same shapes wherever they are scored.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

# On a CPU: from 512 to 1,024 positions a batch the matrices are large enough for the full rate of the products, and
# activations still fit the cache between two layers. A batch costs as much as 32 positions more than its positions do
# (weights are read from memory again), so that much padding in it is cheaper than another one.
CPU_TOKENS = 1024
CPU_SLACK = 32

# On a GPU: few shapes, because each is a CUDA graph of its own, and a step of at most a quarter of the length.
GPU_LENGTHS = (*range(8, 64, 8), *range(64, 128, 16), *range(128, 256, 32), *range(256, 512, 64), 512)


@dataclass(frozen=True)
class Shapes:
    """What batches may look like.

    Attributes:
        tokens: positions a batch at most, the padding included; one sequence at least.
        slack: padded positions a batch at most.
        lengths: the only lengths there are, ascending, the rows of a batch being as many as fit `tokens`; longer
            sequences get a length of their own. None for any shape.
    """

    tokens: int
    slack: int = 0
    lengths: tuple[int, ...] | None = None

    @classmethod
    def of(cls, device: str, tokens: int) -> "Shapes":
        """The shapes that suit a device, with at most `tokens` positions a batch."""
        if device == "cpu":
            return cls(min(tokens, CPU_TOKENS), CPU_SLACK)
        return cls(tokens, lengths=GPU_LENGTHS)


@dataclass(frozen=True)
class Batch:
    """Sequences that are computed together, as `rows` x `length` positions; rows beyond `indices` are padding."""

    indices: list[int]
    rows: int
    length: int

    @property
    def tokens(self) -> int:
        """Positions that are computed."""
        return self.rows * self.length


def plan(lengths: Sequence[int], shapes: Shapes) -> Iterator[Batch]:
    """Batches that hold each sequence once, the longest first.

    Args:
        lengths: tokens of each sequence.
        shapes: what a batch may look like.
    """
    longest_first = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    if shapes.lengths is None:
        yield from _snug(longest_first, lengths, shapes)
    else:
        yield from _static(longest_first, lengths, shapes.tokens, shapes.lengths)


def _snug(order: list[int], lengths: Sequence[int], shapes: Shapes) -> Iterator[Batch]:
    batch: list[int] = []
    length = padding = 0
    for index in order:
        padding += length - lengths[index]
        if batch and (padding > shapes.slack or (len(batch) + 1) * length > shapes.tokens):
            yield Batch(batch, len(batch), length)
            batch = []
        if not batch:
            length, padding = lengths[index], 0
        batch.append(index)
    if batch:
        yield Batch(batch, len(batch), length)


def _static(order: list[int], lengths: Sequence[int], tokens: int, allowed: tuple[int, ...]) -> Iterator[Batch]:
    start = 0
    while start < len(order):
        longest = lengths[order[start]]
        length = next((each for each in allowed if each >= longest), longest)
        # All but the last batch are full: sequences that would leave the next one half empty fill this one up.
        rows = max(tokens // length, 1)
        yield Batch(order[start : start + rows], rows, length)
        start += rows
