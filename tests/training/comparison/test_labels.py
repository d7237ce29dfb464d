"""Labels beside points and at the ends of curves."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from training.comparison.labels import place_labels, spread

AREA = (0.0, 0.0, 1000.0, 800.0)
places = st.tuples(st.floats(150, 850), st.floats(100, 700))


@given(st.lists(places, min_size=1, max_size=7))
def test_labels_stay_inside_and_off_each_other(points: list[tuple[float, float]]) -> None:
    placed = place_labels(points, [(90.0, 14.0)] * len(points), [], AREA)
    for index, each in enumerate(placed):
        left, bottom, right, top = each.box
        assert left >= 0
        assert bottom >= 0
        assert right <= 1000
        assert top <= 800
        for other in placed[:index]:
            apart = right <= other.box[0] or other.box[2] <= left or top <= other.box[1] or other.box[3] <= bottom
            assert apart


def test_a_lone_label_is_beside_its_point() -> None:
    (placed,) = place_labels([(500, 400)], [(90.0, 14.0)], [(495, 395, 505, 405)], AREA)
    assert not placed.led
    assert 500 < placed.box[0] < 515


@given(st.lists(st.floats(-50, 150), min_size=1, max_size=12), st.floats(1, 30))
def test_spread_keeps_order_distance_and_bounds(positions: list[float], gap: float) -> None:
    moved = spread(positions, gap, 0, 100)
    fits = min(gap, 100 / max(1, len(positions) - 1))
    ordered = [moved[index] for index in sorted(range(len(positions)), key=lambda each: positions[each])]
    assert all(later - earlier >= fits - 1e-6 for earlier, later in itertools.pairwise(ordered))
    assert min(moved) >= -1e-6
    assert max(moved) <= 100 + 1e-6


def test_spread_leaves_alone_what_is_apart() -> None:
    assert spread([10, 50, 30], 5, 0, 100) == [10, 50, 30]
    assert spread([], 5, 0, 100) == []
