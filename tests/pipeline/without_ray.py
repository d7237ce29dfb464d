"""`python -m tests.pipeline.without_ray label …`: the same command, but one process does unit after unit.

It gives tests the bytes that an undisturbed run must have, in a second or two, and without what they are to test.
"""

import contextlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from phf import main
from pipeline.labelling import driver
from pipeline.labelling.worker import UnitLabeller


def _schedule(run: driver.Run, missing: NDArray[np.int64], workers: Mapping[str, int]) -> None:
    labellers = {group: UnitLabeller(run._job, group) for group in run._job.groups}
    for index in missing.tolist():
        unit = run._plan.units[index]
        staging = f"{run._epoch.staging}/{unit.name}"
        run._commit(unit, [each.label(unit, f"{staging}.{group}") for group, each in labellers.items()])


@contextlib.contextmanager
def _no_cluster(*_: Any) -> Any:
    yield {"CPU": 1.0, "GPU": 1.0}


def install(patch: pytest.MonkeyPatch) -> None:
    """Run every driver of this process so."""
    patch.setattr(driver.Run, "_schedule", _schedule)
    patch.setattr(driver, "ray_cluster", _no_cluster)


if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as patched:
        install(patched)
        main()
