"""A copy of a state equals what saving and loading would return, and does not change with the original."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.loop.snapshot import Snapshot

SHAPES = st.lists(st.integers(0, 3), max_size=3)
LEAVES = st.one_of(
    st.builds(
        lambda shape, dtype: torch.randint(0, 9, shape).to(dtype),
        SHAPES,
        st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool]),
    ),
    st.integers(),
    st.text(max_size=3),
    st.none(),
)
STATES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
)


def same(found, expected):
    if isinstance(expected, torch.Tensor):
        return found.dtype == expected.dtype and found.shape == expected.shape and torch.equal(found, expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(same, found, expected))
    if isinstance(expected, dict):
        return list(found) == list(expected) and all(same(found[key], expected[key]) for key in expected)
    return found == expected


@settings(max_examples=60)
@given(states=st.lists(STATES, min_size=1, max_size=3))
def test_any_states_are_copied_one_after_the_other(states):
    snapshot = Snapshot()
    for _ in range(2):
        snapshot.begin()
        copies = [snapshot.copy(state) for state in states]
        assert all(map(same, copies, states))


def test_what_happens_to_the_original_does_not_reach_the_copy():
    weight = torch.nn.Parameter(torch.ones(3))
    state = {"weight": weight, "facts": {"steps": [1]}}
    copied = Snapshot().copy(state)
    with torch.no_grad():
        weight.zero_()
    state["facts"]["steps"].append(2)
    assert copied["weight"].tolist() == [1, 1, 1]
    assert isinstance(copied["weight"], torch.nn.Parameter)
    assert copied["facts"] == {"steps": [1]}


def test_views_and_shared_weights_stay_so():
    flat = torch.arange(12.0)
    copied = Snapshot().copy({"a": flat[2:8].view(2, 3).t(), "b": flat, "tied": flat})
    assert copied["a"].tolist() == flat[2:8].view(2, 3).t().tolist()
    assert copied["a"].stride() == (1, 3)
    copied["b"][2] = 100
    assert copied["a"][0, 0] == copied["tied"][2] == 100
    assert flat[2] == 2


def test_the_memory_of_the_copy_before_is_used_again_and_never_while_it_is_needed():
    snapshot = Snapshot()
    first = snapshot.copy(torch.ones(1000))
    second = snapshot.copy(torch.zeros(1000))
    assert first.sum() == 1000
    places = {first.data_ptr(), second.data_ptr()}
    snapshot.begin()
    assert {snapshot.copy(torch.ones(1000)).data_ptr() for _ in range(2)} == places
    snapshot.begin()
    assert snapshot.copy(torch.ones(2000)).sum() == 2000


def test_a_copy_is_saved_as_small_as_the_original(tmp_path):
    flat = torch.randn(100_000)
    state = {
        name: flat[start : start + 10_000] for name, start in zip("abcdefghij", range(0, 100_000, 10_000), strict=True)
    }
    torch.save(state, tmp_path / "original.pt")
    torch.save(Snapshot().copy(state), tmp_path / "copy.pt")
    sizes = [(tmp_path / name).stat().st_size for name in ("original.pt", "copy.pt")]
    assert abs(sizes[0] - sizes[1]) < 200
