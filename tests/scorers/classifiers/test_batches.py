import pytest
from hypothesis import given
from hypothesis import strategies as st

from scorers.classifiers.batches import GPU_LENGTHS, Shapes, plan

lengths = st.lists(st.integers(1, 700), max_size=300)


@given(lengths, st.integers(8, 4096), st.integers(0, 100))
def test_batches_hold_every_sequence_once_within_their_tokens_and_slack(lengths, tokens, slack):
    found = list(plan(lengths, Shapes(tokens, slack)))
    assert sorted(index for batch in found for index in batch.indices) == list(range(len(lengths)))
    for batch in found:
        assert batch.length == max(lengths[index] for index in batch.indices)
        assert batch.rows == len(batch.indices)
        assert batch.rows == 1 or batch.tokens <= tokens
        assert batch.tokens - sum(lengths[index] for index in batch.indices) <= slack


@given(lengths, st.integers(8, 20_000))
def test_static_batches_have_few_shapes(lengths, tokens):
    found = list(plan(lengths, Shapes(tokens, lengths=GPU_LENGTHS)))
    assert sorted(index for batch in found for index in batch.indices) == list(range(len(lengths)))
    for batch in found:
        assert all(lengths[index] <= batch.length for index in batch.indices)
        assert batch.rows >= len(batch.indices)
        assert batch.rows == max(tokens // batch.length, 1)
        assert batch.length in GPU_LENGTHS or batch.length in lengths


@given(lengths, st.randoms())
def test_the_shapes_do_not_depend_on_the_order(lengths, random):
    shuffled = random.sample(lengths, len(lengths))
    for shapes in (Shapes(1024, 32), Shapes(4096, lengths=GPU_LENGTHS)):
        one, other = ([(each.rows, each.length) for each in plan(some, shapes)] for some in (lengths, shuffled))
        assert one == other


@pytest.mark.parametrize(("device", "bound"), [("cpu", 1.05), ("cuda", 1.15)])
def test_batches_have_little_padding(device, bound):
    lengths = [1 + 37 * index % 500 for index in range(8192)]
    shapes = Shapes.of(device, 16_384)
    assert sum(batch.tokens for batch in plan(lengths, shapes)) < bound * sum(lengths)
