"""What `phf train` does before ranks start: expand options that set several settings, launch ranks, print the plan."""

import os
import pkgutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from scorers.amounts import format_size
from scorers.console import print_json
from scorers.errors import UserError
from scorers.printing import message
from scorers.rehearsal import ChecksPassed, Rehearsal
from scorers.settings import Whole
from training.distributed.launch import LAUNCHERS, Launch
from training.distributed.slurm_environment import slurm_ranks

if TYPE_CHECKING:
    from training.config import ResolvedConfig

HERE = "here"


def start_from(folder: str, model: str | None) -> dict[str, Any]:
    """The model settings to start from the weights of another run, or of any Hugging Face folder."""
    from training.runs.folder import RunFolder

    if model is not None:
        raise UserError("--init-from determines the model: leave --model out.")
    run = RunFolder(Path(folder))
    if not run.facts.is_file():
        if not (Path(folder) / "config.json").is_file():
            raise UserError(f"--init-from {folder} is neither a run of phf train nor a Hugging Face folder.")
        return {"name": folder, "pretrained": True}
    if not run.model.is_dir():
        facts = run.read_facts()
        raise UserError(
            f"--init-from {folder}: that run is {facts.status} at step {facts.step:,} of {facts.horizon.steps:,}, "
            "without a model yet. Run the command that started it again to finish it; --step starts from one of its "
            "checkpoints."
        )
    return {"name": str(run.model), "pretrained": True}


def check_tokenizer(start: str, config: "ResolvedConfig") -> None:
    """Refuse another tokenizer than that of the run which training starts from; warn for a Hugging Face folder.

    Args:
        start: the value of --init-from.
        config: the settings.

    Raises:
        UserError: names both tokenizers.
    """
    from training.data.tokenizers import load_tokenizer
    from training.runs.folder import RunFolder

    given, source = config.data.tokenizer, RunFolder(Path(start))
    if given == config.model.name or RunFolder(Path(config.output)).facts.is_file():
        return
    is_run = source.facts.is_file()
    if given is None:
        if is_run:
            raise UserError(f"--init-from {start} reads texts by its own tokenizer: do not set data.tokenizer to null.")
        return
    try:
        own = load_tokenizer(config.model.name).fingerprint
    except UserError:
        # The folder has only weights.
        return
    # The exported tokenizer of a conditional run has control tokens, the original has none: accept both.
    if load_tokenizer(given).fingerprint in (own, source.read_facts().tokenizer.fingerprint if is_run else own):
        return
    differs = f"the tokenizer {given} is not that of --init-from {start}: its model cannot read other tokens"
    if is_run:
        raise UserError(f"{differs}. Leave --tokenizer (data.tokenizer) out.")
    if os.environ.get("RANK", "0") == "0":
        print_line(f"Warning: {differs}. Leave --tokenizer out to use the tokenizer of that model.")


def check_held_out(start: str, config: "ResolvedConfig") -> None:
    """Warn if the run that training starts from may have been trained on texts that are held out now.

    Args:
        start: the value of --init-from.
        config: the settings.
    """
    from training.runs.folder import RunFolder

    source = RunFolder(Path(start))
    if not source.facts.is_file() or os.environ.get("RANK", "0") != "0":
        return
    then, now = source.read_config().data, config.data
    if now.held_out and (now.held_out_seed != then.held_out_seed or now.held_out > then.held_out):
        print_line(
            f"Warning: --init-from {start} held out {then.held_out:g} of its documents (data.held_out_seed="
            f"{then.held_out_seed}), and here {now.held_out:g} are held out (data.held_out_seed={now.held_out_seed}): "
            "it may have been trained on texts that this run is measured on. Give the same seed, and at most the same "
            "share."
        )


def mixed_in(given: str) -> dict[str, Any]:
    """Parse `DATASET=SHARE[:COLUMN]` to an entry of `data.mixture`; the URI may contain `=`."""
    dataset, _, rest = given.rpartition("=")
    share, named, column = rest.partition(":")
    try:
        entry: dict[str, Any] = {"dataset": dataset, "share": float(share)}
    except ValueError:
        entry = {}
    if not dataset or not entry:
        raise UserError(f"--mix {given!r} is not of the form DATASET=SHARE or DATASET=SHARE:COLUMN, such as code=0.3.")
    return {**entry, "column": column} if named else entry


def columns(given: list[str]) -> dict[str, Any]:
    """The settings of `--column`: one column, or several of equal weight, instead of those of the file."""
    return {"columns": Whole.fromkeys(given, 1.0)} if len(set(given)) > 1 else {"column": given[0] if given else None}


def check_place(on: str, reserved: Mapping[str, object], max_restarts: int, *, plan: bool) -> None:
    """Refuse launch options that would have no effect.

    Args:
        on: the place to start ranks; one of `LAUNCHERS`.
        reserved: options for a cluster, by name; None where not given.
        max_restarts: how often ranks may be restarted.
        plan: whether only a plan is printed.

    Raises:
        UserError: there is no such place, or an option does not apply to it.
    """
    if on not in LAUNCHERS:
        raise UserError(f"--on {on}: unknown place. Give one of {', '.join(sorted(LAUNCHERS))}.")
    given = [name for name, value in reserved.items() if value is not None]
    if plan:
        given += ["--on"] * (on != HERE) + ["--max-restarts"] * bool(max_restarts)
        if given:
            raise UserError(f"--plan starts no ranks: leave {' and '.join(given)} out, or leave --plan out.")
    elif given and on == HERE:
        raise UserError(f"{' and '.join(given)}: only for a cluster. Add --on ray, or leave them out.")


def check_before_submitting(
    config: "ResolvedConfig", rehearsal: Rehearsal, ranks: int, start: tuple[int | None, int, tuple[str, int] | None]
) -> NoReturn:
    """Check what can be checked without reading the data or starting ranks.

    Args:
        config: the settings.
        rehearsal: how far to check.
        ranks: the value of --ranks.
        start: the values of `training.loop.continuation.StartOptions`.

    Raises:
        UserError: settings do not fit together; or, if the job sees this machine's files, the datasets cannot be
            trained on, or the output cannot be used or holds a run with other settings.
        ChecksPassed: otherwise.
    """
    from training.loop.continuation import StartOptions, check_resumable

    if rehearsal.files:
        from training.data.datasets import open_sources
        from training.loop.train import check_settings
        from training.runs.folder import RunFolder

        folder, options = RunFolder(Path(config.output)), StartOptions(*start)
        horizon = check_settings(config, rehearsal.ranks or ranks, options)
        folder.check_new()
        open_sources(config)
        if folder.facts.is_file():
            check_resumable(folder, _with_decided(config, folder.read_config()), horizon, options)
    raise ChecksPassed(str(Path(config.output).absolute()))


def _with_decided(config: "ResolvedConfig", then: "ResolvedConfig") -> "ResolvedConfig":
    """Take what only the data decide, such as a threshold that was not given, from the settings of an earlier run."""

    def decided(now: Any, before: Any, names: tuple[str, ...]) -> dict[str, Any]:
        # A share, such as p90, becomes a number.
        open_ones = [name for name in names if getattr(now, name) in (None, {}) or isinstance(getattr(now, name), str)]
        return {name: getattr(before, name) for name in open_ones}

    names = ("threshold", "thresholds")
    own = decided(config.objective, then.objective, (*names, "mask_above"))
    mixture = tuple(
        each.model_copy(update=decided(each, before, names))
        for each, before in zip(config.data.mixture, then.data.mixture, strict=False)
    )
    mixture += config.data.mixture[len(mixture) :]
    changes = {
        "objective": config.objective.model_copy(update=own),
        "data": config.data.model_copy(update={"mixture": mixture}),
    }
    return config.model_copy(update=changes)


def launch_ranks(on: str, launch: Launch, config: "Callable[[], ResolvedConfig] | None" = None) -> int:
    """Start ranks here or elsewhere, wait for them, and return their exit status.

    Args:
        on: the place to start ranks; one of `LAUNCHERS`.
        launch: the launch options, checked by `check_place`.
        config: returns the settings; needed only to check them before ranks start elsewhere.

    Raises:
        UserError: this process was itself started by a launcher, or settings are wrong.
        IncompleteError: ranks were lost too often.
    """
    if "WORLD_SIZE" in os.environ or slurm_ranks(os.environ):
        raise UserError(
            "A launcher started this process as one of several (WORLD_SIZE is set, or srun has several tasks). Leave "
            "out --on, --ranks and --max-restarts and use options of the launcher, such as torchrun --nproc-per-node "
            "and --max-restarts, or unset WORLD_SIZE."
        )
    if on != HERE and config is not None:
        from training.loop.train import check_settings

        # Check the settings before using a cluster.
        settings = config()
        check_settings(settings, launch.ranks)
        launch = replace(launch, output=Path(settings.output).absolute())
    status: int = pkgutil.resolve_name(LAUNCHERS[on])(launch)
    return status


def print_line(line: str) -> None:
    """Print a line on stderr."""
    sys.stderr.write(f"{message(line)}\n")


def show_plan(config: "ResolvedConfig", ranks: int, described: dict[str, Any], console: Any, *, as_json: bool) -> None:
    """Print the expected memory and time of a run.

    Raises:
        UserError: the run does not fit; says what would help.
    """
    from training.planning.forecast import forecast
    from training.planning.machines import MachineOptions
    from training.planning.plan import print_forecast

    giga = {name: described[name] * 1e9 for name in ("memory", "bandwidth") if described[name] is not None}
    found = forecast(config, MachineOptions(ranks, described["device"], **giga, utilisation=described["utilisation"]))
    print_forecast(console, found)
    if as_json:
        print_json(found.facts())
    if not found.fits:
        remedies = "; or ".join(found.remedies) or "a smaller model, a shorter data.context_length, or more memory"
        raise UserError(
            f"A rank would need {format_size(found.memory.total)}, and {found.machine.name} has "
            f"{format_size(found.machine.memory)}. What would help: {remedies}."
        )
