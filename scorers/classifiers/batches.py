"""Plan a network's batches: sequences of similar length, with little padding.

The plan depends on the lengths alone, so the same documents are computed in the same shapes wherever they are scored.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

# CPU: with 512 to 1,024 positions per batch the matrices are large enough for the full rate of the products, and
# activations still fit the cache between two layers. A batch costs as much as 32 more positions (it reads the weights
# from memory again), so padding of up to 32 positions is cheaper than another batch.
CPU_TOKENS = 1024
CPU_SLACK = 32

# GPU: few shapes, because each is a CUDA graph of its own; neighbouring lengths differ by at most a quarter.
GPU_LENGTHS = (*range(8, 64, 8), *range(64, 128, 16), *range(128, 256, 32), *range(256, 512, 64), 512)


@dataclass(frozen=True)
class Shapes:
    """The allowed shapes of batches.

    Attributes:
        tokens: most positions in a batch, padding included; a batch holds at least one sequence.
        slack: most padded positions in a batch.
        lengths: the allowed lengths, ascending; a batch has as many rows as fit `tokens`. Longer sequences get a length
            of their own. None allows any shape.
    """

    tokens: int
    slack: int = 0
    lengths: tuple[int, ...] | None = None

    @classmethod
    def of(cls, device: str, tokens: int) -> "Shapes":
        """Return the shapes that suit a device, with at most `tokens` positions per batch."""
        if device == "cpu":
            return cls(min(tokens, CPU_TOKENS), CPU_SLACK)
        return cls(tokens, lengths=GPU_LENGTHS)


@dataclass(frozen=True)
class Batch:
    """A batch of `rows` x `length` positions, holding the sequences at `indices`; further rows are padding."""

    indices: list[int]
    rows: int
    length: int

    @property
    def tokens(self) -> int:
        """The number of positions, padding included."""
        return self.rows * self.length


def plan(lengths: Sequence[int], shapes: Shapes) -> Iterator[Batch]:
    """Yield batches that together hold each sequence once, the longest first; `lengths` are in tokens."""
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
        # Fill every batch but the last, with shorter sequences too, rather than leave the next one half empty.
        rows = max(tokens // length, 1)
        yield Batch(order[start : start + rows], rows, length)
        start += rows
