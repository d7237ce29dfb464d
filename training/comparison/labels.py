"""Place labels beside points without covering other labels, points or intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

Box = tuple[float, float, float, float]  # left, bottom, right, top

_GAPS = (7.0, 14.0, 24.0, 38.0, 56.0)


@dataclass(frozen=True)
class Placed:
    """The box of a label, and whether it is so far from its point that a line must connect them."""

    box: Box
    led: bool


def place_labels(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    obstacles: Sequence[Box],
    area: Box,
    unit: float = 1.0,
) -> list[Placed]:
    """Place each label near its point, inside the area, with as little overlap as possible.

    Labels are placed greedily, those with the most close neighbours first, each where it overlaps least, and among
    equals nearest. Any unit will do, such as pixels; the y axis points up.

    Args:
        points: the labelled points.
        sizes: width and height of each label.
        obstacles: boxes that labels should not cover.
        area: where labels may be.
        unit: length of a typographic point, for the distances between labels and points.
    """
    order = sorted(range(len(points)), key=lambda index: -_crowd(points, index))
    placed: dict[int, Placed] = {}
    for index in order:
        taken = [*obstacles, *(each.box for each in placed.values())]
        best: tuple[float, float, Placed] | None = None
        for rank, (box, gap) in enumerate(_candidates(points[index], sizes[index], unit)):
            cost = sum(_overlap(box, other) for other in taken) + 4 * _outside(box, area)
            key = (round(cost, 3), float(rank))
            if best is None or key < best[:2]:
                best = (*key, Placed(box, gap > _GAPS[1]))
        if best is not None:
            placed[index] = best[2]
    return [placed[index] for index in range(len(points))]


def spread(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move positions apart as little as needed, so that neighbours are at least `gap` apart, within [low, high].

    Without enough room, they are spaced evenly.
    """
    count = len(positions)
    if count == 0:
        return []
    gap = min(gap, (high - low) / max(1, count - 1)) if count > 1 else gap
    order = sorted(range(count), key=lambda index: positions[index])

    def centre_of(members: list[int]) -> float:
        half = gap * (len(members) - 1) / 2
        return min(max(sum(positions[each] for each in members) / len(members), low + half), high - half)

    # Groups of touching labels, each centred on the mean of its members' positions.
    groups: list[list[int]] = []
    for index in order:
        groups.append([index])
        while len(groups) > 1:
            distance = centre_of(groups[-1]) - centre_of(groups[-2])
            if distance >= gap * (len(groups[-1]) + len(groups[-2])) / 2 - 1e-9:
                break
            groups[-2:] = [groups[-2] + groups[-1]]
    result = [0.0] * count
    for members in groups:
        centre = centre_of(members)
        for rank, index in enumerate(members):
            result[index] = centre + gap * (rank - (len(members) - 1) / 2)
    return result


def _candidates(point: tuple[float, float], size: tuple[float, float], unit: float) -> list[tuple[Box, float]]:
    x, y = point
    width, height = size
    found = []
    for gap in _GAPS:
        slant = gap * 0.75 * unit
        for left, bottom in (
            (x + gap * unit, y - height / 2),
            (x + slant, y + slant),
            (x + slant, y - slant - height),
            (x - gap * unit - width, y - height / 2),
            (x - slant - width, y + slant),
            (x - slant - width, y - slant - height),
            (x - width / 2, y + gap * unit),
            (x - width / 2, y - gap * unit - height),
        ):
            found.append(((left, bottom, left + width, bottom + height), gap))
    return found


def _overlap(first: Box, second: Box) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return width * height if width > 0 and height > 0 else 0.0


def _outside(box: Box, area: Box) -> float:
    whole = (box[2] - box[0]) * (box[3] - box[1])
    return whole - _overlap(box, area)


def _crowd(points: Sequence[tuple[float, float]], index: int) -> float:
    x, y = points[index]
    return sum(
        1 / (1 + (x - other[0]) ** 2 + (y - other[1]) ** 2) for each, other in enumerate(points) if each != index
    )
