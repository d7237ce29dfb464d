"""`python -m tests.pipeline.without_ray label …`: run the command in one process, unit after unit, without Ray.

It gives tests the expected bytes within a second or two, without the code under test.
"""

import contextlib
from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from phf import main
from pipeline.corpus.plan import Unit
from pipeline.labelling import run as running
from pipeline.labelling.scheduler.autoscaling import Pool
from pipeline.labelling.workers.worker import UnitLabeller


def schedule(run: running.Run, missing: Iterable[Unit], count: int, pools: Mapping[str, Pool], start: Any) -> None:
    labellers = {group: UnitLabeller(run._job, group) for group in run._job.groups}
    for unit in missing:
        staging = f"{run._epoch.staging}/{unit.name}"
        parts = [each.label(unit, f"{staging}.{group}") for group, each in labellers.items()]
        run._count(unit, parts, run._committer.commit(unit, parts))


@contextlib.contextmanager
def no_cluster(*_: Any) -> Any:
    yield {"CPU": 8.0, "GPU": 8.0}


def install(patch: pytest.MonkeyPatch) -> None:
    """Run every driver of this process without Ray."""
    patch.setattr(running.Run, "_schedule", schedule)
    patch.setattr(running, "ray_cluster", no_cluster)


if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as patched:
        install(patched)
        main()
