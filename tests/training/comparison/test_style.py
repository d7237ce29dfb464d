"""Readers with colour blindness can distinguish runs in figures, by colours and without them."""

import itertools

import numpy as np
import pytest

from training.comparison.style import COLOURS, Look
from training.config import TrainConfig

OBJECTIVES = TrainConfig.model_fields["objective"].annotation.model_fields["name"].annotation.__args__
# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB.
SIGHT = {
    "normal": np.eye(3),
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def linear(colour):
    values = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    x, y, z = np.cbrt(TO_XYZ @ rgb / [0.9505, 1, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("sight", SIGHT)
@pytest.mark.parametrize("dark", [False, True])
def test_colours_are_told_apart(dark, sight):
    seen = [lab(np.clip(np.array(SIGHT[sight]) @ linear(COLOURS[each][dark]), 0, 1)) for each in OBJECTIVES]
    assert len(seen) == 9
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 20


@pytest.mark.parametrize("dark", [False, True])
def test_colours_stand_out_from_their_ground(dark):
    ground, *colours = (float(TO_XYZ[1] @ linear(COLOURS[each][dark])) for each in ("ground", *OBJECTIVES))
    contrast = [(max(each, ground) + 0.05) / (min(each, ground) + 0.05) for each in colours]
    assert min(contrast) >= 3  # WCAG 2.2, 1.4.11: of graphical objects


def test_lines_are_told_apart_without_colours():
    lines = Look().lines([*OBJECTIVES, "conditional", "conditional", "mle", "of-a-plugin"])
    assert len({line["marker"] for line in lines[:9]}) == len({str(line["linestyle"]) for line in lines[:9]}) == 9
    assert len({(line["marker"], str(line["linestyle"])) for line in lines}) == len(lines)
