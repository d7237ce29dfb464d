"""`python -m tests.pipeline.without_ray label …`: the same command, but one process does unit after unit.

It gives tests the bytes that an undisturbed run must have, in a second or two, and without what they are to test.
"""

from phf import main
from pipeline.labelling import driver
from pipeline.labelling.worker import UnitLabeller


def _label(run: driver._Run) -> None:
    labellers = {group: UnitLabeller(run._job, group) for group in run._job.groups}
    committed = run._committer.recover(list(labellers))
    for unit in run._plan.units:
        if unit.index not in committed:
            staging = f"{run._epoch.staging}/{unit.name}"
            parts = [each.label(unit, f"{staging}.{group}") for group, each in labellers.items()]
            run._count(unit, parts, run._committer.commit(unit, parts))


if __name__ == "__main__":
    driver._Run._label = _label  # type: ignore[method-assign]
    main()
