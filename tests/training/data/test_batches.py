from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.dataset.hashing import combine, splitmix64, uniform
from scorers.errors import UserError
from training.data.batches import Batch, BatchSource, block_index, permute


class Numbers:
    """Blocks of one token, which is the block's index."""

    def __init__(self, num_blocks):
        self.num_blocks = num_blocks

    def blocks(self, indices):
        ids = np.asarray(indices, dtype=np.int64).reshape(-1, 1)
        return Batch(ids, ids.astype(np.float32))


def ids(batch):
    return batch.input_ids[:, 0].tolist()


@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
def test_the_permutation_is_a_bijection(n, key):
    assert np.array_equal(np.sort(permute(np.arange(n), n, key)), np.arange(n))


@given(st.integers(1, 10**12), st.integers(0, 2**32), st.data())
def test_the_permutation_is_evaluated_at_any_point_alone(n, key, data):
    chosen = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=20, unique=True))
    together = permute(np.array(chosen), n, key)
    assert len(set(together.tolist())) == len(chosen)
    assert together.min() >= 0
    assert together.max() < n
    assert [int(permute(np.array([x]), n, key)[0]) for x in chosen] == together.tolist()


@given(st.integers(1, 40), st.integers(1, 60), st.integers(0, 5))
def test_every_epoch_has_every_block_once_and_batches_straddle_epochs(n, batch_size, seed):
    source = BatchSource(Numbers(n), batch_size, seed)
    steps = -(-3 * n // batch_size)
    flat = [each for step in range(steps) for each in ids(source.batch(step))]
    for epoch in range(3):
        assert sorted(flat[epoch * n : (epoch + 1) * n]) == list(range(n))


def test_epochs_and_seeds_differ_and_small_ranges_are_shuffled_evenly():
    orders = {
        (seed, epoch): tuple(block_index(np.arange(100) + 100 * epoch, 100, seed))
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len(set(orders.values())) == 4
    counts = {}
    for seed in range(2400):
        order = tuple(block_index(np.arange(4), 4, seed).tolist())
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 24
    assert min(counts.values()) > 60
    assert max(counts.values()) < 150


def test_neighbouring_blocks_are_separated():
    order = block_index(np.arange(10_000), 10_000, 3)
    assert abs(np.corrcoef(np.arange(10_000), order)[0, 1]) < 0.05
    assert np.mean(np.diff(order) == 1) < 0.001


@given(st.integers(0, 50), st.sampled_from([1, 2, 3, 4, 6, 12]))
def test_ranks_share_the_global_batch(step, world):
    source = BatchSource(Numbers(17), 12, 5)
    parts = [ids(source.rank_batch(step, rank, world)) for rank in range(world)]
    assert list(chain(*parts)) == ids(source.batch(step))
    assert {len(part) for part in parts} == {12 // world}


def test_the_order_depends_on_the_position_not_on_the_batch_size():
    small, large = BatchSource(Numbers(31), 2, 9), BatchSource(Numbers(31), 10, 9)
    of_small = chain(*(ids(small.batch(step)) for step in range(20)))
    assert list(of_small) == list(chain(*(ids(large.batch(step)) for step in range(4))))


def test_a_batch_is_a_pure_function_of_the_step():
    source = BatchSource(Numbers(1000), 8, 1)
    late = ids(source.batch(10**9))
    assert late == ids(BatchSource(Numbers(1000), 8, 1).batch(10**9))
    assert late == ids(source.batch(10**9))


def test_a_batch_size_not_divisible_by_the_ranks_is_refused():
    with pytest.raises(UserError, match=r"training\.batch_size=10.*3 ranks"):
        BatchSource(Numbers(5), 10, 0).rank_batch(0, 0, 3)


def test_splitmix64_matches_the_published_outputs():
    # The first outputs of the generator seeded with 0; its state grows by the golden gamma.
    gamma = 0x9E3779B97F4A7C15
    assert splitmix64(np.array([0, gamma], dtype=np.uint64)).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]


def test_uniform_is_below_a_share_with_that_frequency():
    numbers = uniform(combine(7, np.arange(100_000)))
    assert numbers.min() >= 0
    assert numbers.max() < 1
    for share in (0.01, 0.5, 0.9):
        assert np.mean(numbers < share) == pytest.approx(share, abs=0.005)
