"""What a run has beyond the step that it goes back to, moved to a run folder of its own."""

import itertools
import re
import shutil
from pathlib import Path

from training.disk import writing
from training.runs import best, checkpoints
from training.runs.folder import RunFacts, RunFolder

_EXPORTED = re.compile(r"step-\d+")


def set_aside(folder: RunFolder, then: RunFacts, step: int, *, figures_too: bool) -> str | None:
    """Move what a run has beyond a step to a run folder of its own, with copies of its files.

    The newest first, and each by a rename: wherever this ends, the run goes on from its newest checkpoint, and the next
    time goes on in the same place.

    Args:
        folder: of the run.
        then: its facts.
        step: that it goes back to.
        figures_too: whether figures beyond the step are enough to be kept, as of a run that diverged.

    Returns:
        The place, in the folder; None where there was nothing.

    Raises:
        IncompleteError: there is no room for the copies, or something cannot be moved.
    """
    moved = _beyond(folder, step)
    with writing(folder.set_aside):
        # What the history names and is gone was deleted by the user, and stays another.
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
    """What of a run belongs to later steps than this one, relative to its folder, checkpoints last and newest first."""
    exports = [each for each in folder.exports.glob("step-*") if _EXPORTED.fullmatch(each.name)]
    later = [each for each in reversed(checkpoints.steps(folder.checkpoints)) if each > step]
    found = [each for each in (folder.model, folder.evaluation) if each.is_dir()]
    found += [each for each in exports if int(each.name.removeprefix("step-")) > step]
    found += [checkpoints.checkpoint_path(folder.checkpoints, each) for each in later]
    return [each.relative_to(folder.path) for each in found]
