"""Every dataset of a mixture has its exact share and its own epochs, at any position."""

from fractions import Fraction
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scorers.errors import UserError
from training.data.batches import Batch
from training.data.mixture import GROUP, MixtureSource, group_counts, interleave

OFFSET = 10**6

WEIGHTS = st.lists(st.integers(10, 999), min_size=2, max_size=5)


class Numbers:
    """Blocks of two tokens that encode dataset and block in one number."""

    def __init__(self, dataset, num_blocks):
        self.dataset = dataset
        self.num_blocks = num_blocks

    def blocks(self, indices):
        ids = np.repeat(np.asarray(indices, dtype=np.int64).reshape(-1, 1) + OFFSET * self.dataset, 2, axis=1)
        return Batch(ids, ids.astype(np.float32))

    def documents_in(self, indices):
        return np.unique(np.asarray(indices) // 10)


def make_shares(weights):
    return tuple(Fraction(weight, sum(weights)) for weight in weights)


def make_source(sizes, shares, batch_size=8, seed=3):
    streams = tuple(Numbers(number, size) for number, size in enumerate(sizes))
    return MixtureSource(streams, tuple("abcdefg"[: len(sizes)]), shares, batch_size, seed)


def ids(batch):
    assert np.array_equal(batch.scores, batch.input_ids.astype(np.float32))
    return batch.input_ids[:, 0].tolist()


@given(WEIGHTS)
def test_group_counts_match_the_shares_to_the_block(weights):
    shares = make_shares(weights)
    counts = group_counts(shares)
    assert sum(counts) == GROUP
    assert all(abs(count - share * GROUP) < 1 for count, share in zip(counts, shares, strict=True))


def test_leftover_blocks_go_to_the_largest_remainders():
    third = Fraction(1, 3)
    assert group_counts((third, third, third)) == (1366, 1365, 1365)
    assert group_counts((Fraction(7, 10), Fraction(3, 10))) == (2867, 1229)


@given(WEIGHTS, st.integers(0, 2**32), st.integers(0, 10**9))
@settings(max_examples=30)
def test_every_group_has_its_counts_and_numbers_each_dataset_without_gaps(weights, seed, first_group):
    counts = group_counts(make_shares(weights))
    numbers = np.arange(first_group * GROUP, (first_group + 2) * GROUP)
    chosen, before = interleave(numbers, counts, seed)
    for group in (0, 1):
        assert np.bincount(chosen[group * GROUP : (group + 1) * GROUP], minlength=len(counts)).tolist() == list(counts)
    for dataset, count in enumerate(counts):
        assert np.array_equal(before[chosen == dataset], np.arange(first_group * count, (first_group + 2) * count))


@given(WEIGHTS, st.integers(0, 2**32), st.lists(st.integers(0, 10**12), min_size=1, max_size=20))
@settings(max_examples=30)
def test_a_block_depends_only_on_its_number(weights, seed, numbers):
    source = make_source([7 + weight for weight in weights], make_shares(weights), seed=seed)
    chosen, block = source.places(np.array(numbers))
    for number, dataset, index in zip(numbers, chosen.tolist(), block.tolist(), strict=True):
        one = make_source([7 + weight for weight in weights], make_shares(weights), seed=seed)
        assert [each.tolist() for each in one.places(np.array([number]))] == [[dataset], [index]]


@given(st.lists(st.integers(1, 900), min_size=2, max_size=4), st.data())
@settings(max_examples=30)
def test_each_epoch_reads_every_block_of_a_dataset_once(sizes, data):
    weights = data.draw(st.lists(st.integers(10, 99), min_size=len(sizes), max_size=len(sizes)))
    chosen, block = make_source(sizes, make_shares(weights)).places(np.arange(2 * GROUP))
    for dataset, size in enumerate(sizes):
        own = block[chosen == dataset]
        for start in range(0, len(own) - size + 1, size):
            assert np.array_equal(np.sort(own[start : start + size]), np.arange(size))


@given(st.integers(0, 2000), st.sampled_from([1, 2, 3, 4, 6, 12]))
@settings(max_examples=50)
def test_ranks_share_the_global_batch(step, world):
    source = make_source([17, 5, 40], (Fraction(1, 2), Fraction(1, 5), Fraction(3, 10)), batch_size=12)
    parts = [ids(source.rank_batch(step, rank, world)) for rank in range(world)]
    assert list(chain(*parts)) == ids(source.batch(step))


def test_the_order_does_not_depend_on_the_batch_size():
    shares = (Fraction(3, 5), Fraction(2, 5))
    small, large = make_source([31, 20], shares, batch_size=2), make_source([31, 20], shares, batch_size=10)
    of_small = chain(*(ids(small.batch(step)) for step in range(3000)))
    assert list(of_small) == list(chain(*(ids(large.batch(step)) for step in range(600))))


def test_any_window_has_nearly_the_shares_and_equal_datasets_differ_in_order():
    source = make_source([5000, 5000], (Fraction(1, 2), Fraction(1, 2)))
    chosen, block = source.places(np.arange(2 * GROUP))
    of_256 = chosen.reshape(-1, 256).mean(axis=1)
    assert 0.35 < of_256.min() < of_256.max() < 0.65
    assert not np.array_equal(chosen[:GROUP], chosen[GROUP:])
    assert np.mean(block[chosen == 0] == block[chosen == 1]) < 0.01


def test_origin_lists_blocks_and_rows_by_dataset():
    source = make_source([50, 30], (Fraction(3, 4), Fraction(1, 4)), batch_size=16)
    origin = source.origin(7)
    assert [each["dataset"] for each in origin["datasets"]] == ["a", "b"]
    every = [each + OFFSET * number for number, part in enumerate(origin["datasets"]) for each in part["blocks"]]
    assert sorted(every) == sorted(ids(source.batch(7)))
    for part in origin["datasets"]:
        assert part["dataset_rows"] == sorted({each // 10 for each in part["blocks"]})


def test_a_batch_size_not_divisible_by_the_ranks_is_refused():
    with pytest.raises(UserError, match=r"training\.batch_size=8.*3 ranks"):
        make_source([5, 5], (Fraction(1, 2), Fraction(1, 2))).rank_batch(0, 0, 3)
