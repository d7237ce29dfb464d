"""Branches: runs that start from the checkpoint of another run, with its weights, optimiser and position in the data.

Steps and tokens of the other run count: a branch at step N with the same settings is that run from N on. With the
schedule `wsd`, branches are decay phases of one run at a constant learning rate, at any of its steps
(arXiv 2405.18392).
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scorers.amounts import format_count
from scorers.errors import UserError
from scorers.printing import printable
from training.config import ResolvedConfig
from training.data.cache import relocate_data
from training.runs import checkpoints
from training.runs.facts import OriginFacts, RunFacts
from training.runs.folder import RunFolder
from training.schedule import Horizon, warmup_steps


def branch_settings(run: str, output: str | None, dataset: str | None) -> Mapping[str, Any]:
    """The default settings of a branch: those of the run that it starts from.

    Args:
        run: folder of the other run.
        output: folder of the branch; if it already holds a run, its own settings are returned, and the other run is
            not needed.
        dataset: where the labelled dataset is now, if it was moved.

    Raises:
        UserError: there is no such run.
    """
    own = RunFolder(Path(output)) if output is not None else None
    there = own is not None and own.facts.is_file()
    config = (own if own is not None and there else RunFolder.existing(run)).read_config()
    data = relocate_data(config.data, dataset)
    if data.dataset != config.data.dataset:
        data = data.model_copy(update={"store": None})
    return config.model_copy(update={"data": data}).model_dump(mode="json", exclude={"output"})


def check_start(origin: tuple[str, int], horizon: Horizon) -> None:
    """Check that a branch has a checkpoint to start from and steps left to train.

    Raises:
        UserError: it does not; says which checkpoints there are, or how many steps.
    """
    run, step = origin
    place = RunFolder.existing(run).checkpoints
    there = checkpoints.steps(place)
    if step not in there:
        shown = checkpoints.describe_steps(there)
        raise UserError(f"--init-from {run} --step {step}: there is no checkpoint of that step; {shown}.")
    if horizon.steps <= step:
        raise UserError(
            f"--init-from {run} --step {step}: a run of {format_count(horizon.steps, 'step')} "
            f"({format_count(horizon.tokens, 'token')}) has no steps left there. Raise training.num_tokens, which "
            f"includes the {step * horizon.tokens_per_step:,} tokens of that run."
        )


def branch_facts(facts: RunFacts, config: ResolvedConfig, origin: tuple[str, int]) -> RunFacts:
    """The facts of a branch that starts.

    Raises:
        UserError: its model or optimiser does not fit the checkpoint, or the checkpoint is damaged.
    """
    run, step = RunFolder.existing(origin[0]), origin[1]
    source, then = run.read_facts(), run.read_config()
    same = {
        "the tokenizer": (source.tokenizer.fingerprint, facts.tokenizer.fingerprint),
        "the control tokens": (source.tokenizer.added_ids, facts.tokenizer.added_ids),
        "the network (model.name)": (then.model.name, config.model.name),
        "model.overrides": (then.model.overrides, config.model.overrides),
        "the parameters": (source.model.parameters, facts.model.parameters),
        "the value head": (source.model.value_head, facts.model.value_head),
        "the rows of the embedding (model.pad_vocab_to)": (source.model.rows or facts.model.rows, facts.model.rows),
        "the precision (training.precision)": (source.precision or facts.precision, facts.precision),
        "training.zero_stage": (then.training.zero_stage, config.training.zero_stage),
        "training.batch_size": (source.horizon.batch_size, facts.horizon.batch_size),
        "data.context_length": (source.model.context_length, facts.model.context_length),
    }
    lines = [f"  {what}: {old} there, {new} here" for what, (old, new) in same.items() if old != new]
    if lines:
        shown = "\n".join(lines)
        raise UserError(
            f"A run cannot start with the optimiser state of --init-from {run.path} --step {step}; these differ:\n"
            f"{shown}\nGive the same settings, or leave --step out to start with its final weights alone."
        )
    warmup = config.training.warmup_steps
    if warmup is None:
        warmup = recorded_warmup(run, source)
    return facts.model_copy(
        update={
            "step": step,
            "origin": OriginFacts(run=str(run.path), step=step, checkpoint=_digest(_checkpoint(run, step).path)),
            "horizon": facts.horizon.model_copy(update={"warmup_steps": warmup}),
            "skips": [each for each in source.skips if each[0] <= step],
        }
    )


def recorded_warmup(run: RunFolder, facts: RunFacts) -> int:
    """The warm-up steps of a run, computed from its settings where its facts do not record them."""
    known = facts.horizon.warmup_steps
    return warmup_steps(run.read_config().training, facts.horizon.steps) if known is None else known


def check_origin(folder: RunFolder, then: RunFacts, origin: tuple[str, int]) -> None:
    """Refuse to resume a run that did not start from this checkpoint; if that is gone, only the step is compared.

    Raises:
        UserError: says which checkpoint it did start from.
    """
    run, step = origin
    if then.origin is None:
        raise UserError(
            f"--init-from {run} --step {step}: {folder.path} holds a run that started at step 0. Give another "
            "--output; to go back to an earlier step of this run, give --from-step."
        )
    path = checkpoints.checkpoint_path(RunFolder(Path(run)).checkpoints, step)
    gone = not (path / checkpoints.MARKER_NAME).is_file()
    if step != then.origin.step or not (gone or _digest(path) == then.origin.checkpoint):
        raise UserError(
            f"--init-from {run} --step {step}: {folder.path} started from step {then.origin.step:,} of "
            f"{printable(then.origin.run)}, or that run now has another checkpoint of that step. Give the same run and "
            "step to resume it, or another --output."
        )


def origin_checkpoint(origin: OriginFacts, given: tuple[str, int] | None) -> checkpoints.Checkpoint:
    """The verified checkpoint that a run starts from.

    Args:
        origin: as recorded in the facts of the run.
        given: the other run as the user names it. The recorded path is never followed, so this is required.

    Raises:
        UserError: the user named no run, or the checkpoint is missing, damaged, or another one.
    """
    if given is None:
        raise UserError(
            f"The run started from step {origin.step:,} of another run, {printable(origin.run)}, and has no checkpoint "
            f"of its own yet. Give --init-from and --step {origin.step} again."
        )
    run = RunFolder.existing(given[0])
    found = _checkpoint(run, origin.step)
    if _digest(found.path) != origin.checkpoint:
        raise UserError(f"{found.path} is not the checkpoint that this run started from. Restore that one.")
    return found


def _checkpoint(run: RunFolder, step: int) -> checkpoints.Checkpoint:
    found = checkpoints.verify(checkpoints.checkpoint_path(run.checkpoints, step))
    if isinstance(found, checkpoints.Damage):
        raise UserError(
            f"The checkpoint {found.path}, from which the run is to start, is missing or damaged: {found.reason}. A "
            "run in training removes its older checkpoints (training.keep_every). Give another --step."
        )
    return found


def _digest(checkpoint: Path) -> str:
    return hashlib.sha256((checkpoint / checkpoints.MARKER_NAME).read_bytes()).hexdigest()
