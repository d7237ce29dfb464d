"""Set aside what a run has beyond the step that it goes back to, in a run folder of its own."""

import itertools
import re
import shutil
from pathlib import Path

from training.disk import writing
from training.runs import best, checkpoints
from training.runs.facts import RunFacts
from training.runs.folder import RunFolder

_EXPORTED = re.compile(r"step-\d+")


def set_aside(folder: RunFolder, then: RunFacts, step: int, *, figures_too: bool) -> str | None:
    """Move what a run has beyond a step to a run folder of its own, with copies of its facts, settings and metrics.

    Checkpoints are renamed one by one, newest first. If this is interrupted, the run still has its newest remaining
    checkpoint, and the next call continues in the same folder.

    Args:
        folder: the folder of the run.
        then: the facts of the run.
        step: the step that it goes back to.
        figures_too: whether to keep figures beyond the step even without checkpoints, as for a run that diverged.

    Returns:
        The folder, relative to that of the run; None where there was nothing to set aside.

    Raises:
        IncompleteError: there is no room for the copies, or something cannot be moved.
    """
    moved = _beyond(folder, step)
    with writing(folder.set_aside):
        # A folder that the history names but that is gone was deleted by the user: do not reuse its name.
        known = {each.set_aside for each in then.history}
        names = (f"{folder.set_aside.name}/{number}" for number in itertools.count(1))
        name = next(
            each
            for each in names
            if each not in known and not any((folder.path / each / path).exists() for path in moved)
        )
        aside = RunFolder(folder.path / name)
        figures = figures_too and any(line["step"] > step for line in folder.read_metrics())
        if not (moved or figures or aside.path.is_dir()):
            return None
        aside.checkpoints.mkdir(parents=True, exist_ok=True)
        for file in (folder.config, folder.metrics, folder.checkpoints / best.FIGURES_NAME, folder.facts):
            if file.is_file():
                shutil.copyfile(file, aside.path / file.relative_to(folder.path))
        for path in moved:
            (aside.path / path).parent.mkdir(exist_ok=True)
            (folder.path / path).rename(aside.path / path)
        best.forget_after(folder.checkpoints, step)
    return name


def _beyond(folder: RunFolder, step: int) -> list[Path]:
    """What a run has beyond a step: paths relative to its folder, with checkpoints last and newest first."""
    exports = [each for each in folder.exports.glob("step-*") if _EXPORTED.fullmatch(each.name)]
    later = [each for each in reversed(checkpoints.steps(folder.checkpoints)) if each > step]
    found = [each for each in (folder.model, folder.evaluation) if each.is_dir()]
    found += [each for each in exports if int(each.name.removeprefix("step-")) > step]
    found += [checkpoints.checkpoint_path(folder.checkpoints, each) for each in later]
    return [each.relative_to(folder.path) for each in found]
