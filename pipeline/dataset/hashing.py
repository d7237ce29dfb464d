"""Seeded hashes of whole arrays, for every choice that must not depend on order, ranks or workers."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Hashes = NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def splitmix64(values: ArrayLike) -> Hashes:
    """Apply the output function of SplitMix64 (Steele, Lea, Flood, 2014), a bijection of 64-bit words, to each value.

    Args:
        values: integers of any shape, taken modulo 2^64.

    Returns:
        uint64, of the same shape, at least [1].
    """
    words = np.atleast_1d(np.asarray(values)).astype(np.uint64, copy=True)
    words += _GOLDEN
    words ^= words >> np.uint64(30)
    words *= _FIRST
    words ^= words >> np.uint64(27)
    words *= _SECOND
    words ^= words >> np.uint64(31)
    return words


def combine(*parts: ArrayLike) -> Hashes:
    """Hash several integers into one, depending on their order; arrays are broadcast against each other."""
    state = splitmix64(parts[0])
    for part in parts[1:]:
        state = splitmix64(state ^ np.asarray(part).astype(np.uint64))
    return state


def uniform(hashes: Hashes) -> NDArray[np.float64]:
    """Map hashes to [0, 1): `uniform(h) < share` holds for that share of all h, for none at 0, for all at 1."""
    return (hashes >> np.uint64(11)).astype(np.float64) * 2.0**-53
