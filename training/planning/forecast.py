"""`phf train --plan`: forecast the memory and time of a run, and choose its micro-batch."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from pipeline.dataset import open_dataset
from pipeline.dataset.first_run import estimate_tokens
from pipeline.dataset.manifest import DamagedError
from scorers.errors import UserError
from training.config import ResolvedConfig
from training.data.phases import plan_phases
from training.data.preference import check_preference
from training.data.tokenizers import load_tokenizer
from training.engine.deepspeed_config import DTYPES
from training.model.build_network import check_context
from training.model.language_model import build_model
from training.model.shape import ModelShape, trace_shape
from training.model.vocabulary import Vocabulary
from training.objectives import OBJECTIVES
from training.planning.estimate import (
    Job,
    Layout,
    Machine,
    Memory,
    Seconds,
    bytes_sent,
    checkpoint_bytes,
    estimate_memory,
    estimate_seconds,
)
from training.planning.machines import MachineOptions, describe_machine
from training.planning.resolved_run import ResolvedRun
from training.runs.best import check_best
from training.schedule import plan_horizon

# Share of a machine's memory that a plan may fill: the rest is for the process, the GPU's context and fragmentation.
FILL = 0.9


@dataclass(frozen=True)
class Forecast:
    """The expected memory and time of a run.

    Attributes:
        run: the settings, and the shape of the batch.
        machine, job: the input of the estimate.
        memory: peak memory of one rank.
        seconds: duration of one step.
        remedies: options that would make the run fit, if it does not, by the same estimate.
        tokens: approximate tokens per epoch, from the size of the dataset's text; None without a dataset.
    """

    run: ResolvedRun
    machine: Machine
    job: Job
    memory: Memory
    seconds: Seconds
    remedies: tuple[str, ...] = ()
    tokens: float | None = None

    @property
    def epochs(self) -> float | None:
        """Approximate number of epochs."""
        own = float(self.run.config.data.shares[0])
        return None if not self.tokens else own * self.run.horizon.tokens / self.tokens

    @property
    def total_seconds(self) -> float:
        """Duration of all steps."""
        return self.seconds.total * self.run.horizon.steps

    @property
    def fits(self) -> bool:
        """Whether the run fits into a rank's memory, with the margin."""
        return self.memory.total <= FILL * self.machine.memory

    @property
    def checkpoint(self) -> float:
        """Bytes of one checkpoint."""
        return checkpoint_bytes(self.job)

    @property
    def checkpoints_kept(self) -> int:
        """Maximum number of checkpoints on disk, including one that is being written."""
        training, steps = self.run.config.training, self.run.horizon.steps
        every = training.save_every
        written = -(-steps // every) if every else 1
        lasting = steps // training.keep_every if training.keep_every else 0
        return min(written, training.keep_checkpoints + training.keep_best + lasting) + 1

    def facts(self) -> dict[str, Any]:
        """The forecast for JSON output, in bytes and seconds."""
        shape, machine = self.job.shape, self.machine
        tokens_per_second = self.run.horizon.tokens_per_step / self.seconds.total
        return {
            "model": asdict(shape),
            "horizon": {**asdict(self.run.horizon), "tokens": self.run.horizon.tokens},
            "engine": {
                "precision": self.run.precision,
                "activation_checkpointing": self.job.checkpointing,
                **asdict(self.job.layout),
            },
            "machine": asdict(machine),
            "memory": {**asdict(self.memory), "total": self.memory.total, "available": FILL * machine.memory},
            "fits": self.fits,
            "remedies": list(self.remedies),
            "step_seconds": {**asdict(self.seconds), "total": self.seconds.total},
            "bytes_sent_per_step": bytes_sent(self.job),
            "total_seconds": self.total_seconds,
            "epochs": self.epochs,
            "tokens_per_second": tokens_per_second,
            "mfu": tokens_per_second * shape.flops_per_token / (machine.flops * self.run.horizon.ranks),
            "checkpoint_bytes": self.checkpoint,
            "checkpoints_kept": self.checkpoints_kept,
        }


def forecast(config: ResolvedConfig, options: MachineOptions) -> Forecast:
    """Forecast the run of a configuration, without tokenising, building weights or writing anything.

    Args:
        config: from `training.settings.resolve_config`.
        options: the `--plan` options.

    Raises:
        UserError: a setting is wrong, or the device is unknown.
    """
    check_best(config)
    check_preference(config.data, config.objective)
    check_context(config.model, config.data.context_length)
    horizon = plan_horizon(config.training, config.data.context_length, options.ranks)
    plan_phases(config.objective, horizon.steps)
    machine, precision = describe_machine(config.training, options)
    run = ResolvedRun(config, horizon, precision, machine.on_gpu)
    kind = OBJECTIVES[config.objective.name]
    objective = config.objective
    classes = (objective.quantiles or 2) if kind.tags else 0
    before, after = (classes * (objective.tag_place in (place, "both")) for place in ("before", "after"))
    hides = objective.hide_above is not None
    vocabulary = config.data.vocab_size + before + after + hides
    if config.data.tokenizer is not None:
        tokenizer = load_tokenizer(config.data.tokenizer)
        added = [*tokenizer.control_ids(before), *tokenizer.after_ids(before, after)]
        added += [tokenizer.hidden_id(before, after)] if hides else []
        vocabulary = tokenizer.size(added)
    found = replace(_choose(run, shape_of(run, vocabulary), machine), tokens=_tokens(config))
    return found if found.fits else replace(found, remedies=tuple(_remedies(found)))


def _tokens(config: ResolvedConfig) -> float | None:
    # A plan works without a dataset, even if the named one is elsewhere; but a damaged dataset is an error.
    if not config.data.dataset:
        return None
    try:
        manifest = open_dataset(config.data.dataset).manifest
    except DamagedError:
        raise
    except UserError:
        return None
    column = config.data.column
    return estimate_tokens(manifest, column) if column in manifest.thresholds else None


def shape_of(run: ResolvedRun, vocabulary: int) -> ModelShape:
    """The shape of a run's model with a vocabulary of this size.

    Raises:
        UserError: the model cannot be built or estimated.
    """
    config = run.config
    kind = OBJECTIVES[config.objective.name]
    model = build_model(
        config.model,
        # A padding token costs nothing, and some networks need it to number positions.
        Vocabulary(vocabulary, 0, pad_id=1),
        value_head=kind.needs_values,
        rows_multiple=config.model.pad_vocab_to or (None if run.on_gpu else 1),
        skeleton=True,
    )
    return trace_shape(model, config.model.name, context_length=config.data.context_length, dtype=DTYPES[run.precision])


def fitted(run: ResolvedRun, vocabulary: int, device: torch.device) -> ResolvedRun:
    """The run with the largest micro-batch that fits into a GPU's memory by the estimate, unless one is set.

    On a CPU, and for a model that cannot be estimated, it is unchanged; if nothing fits, the micro-batch is 1, because
    the estimate may be wrong. Ranks with different GPUs may choose differently.

    Args:
        run: the run.
        vocabulary: entries of the tokenizer, including control tokens.
        device: the device of the rank.
    """
    if not run.on_gpu or run.config.training.micro_batch_size is not None:
        return run
    properties = torch.cuda.get_device_properties(device)
    machine = Machine(properties.name, True, 1.0, float(properties.total_memory), 1.0, 1.0)
    try:
        return replace(run, horizon=_choose(run, shape_of(run, vocabulary), machine).run.horizon)
    except UserError:
        # The model cannot be estimated, or the user's DeepSpeed JSON sets another micro-batch.
        return run


def expected_seconds(run: ResolvedRun, vocabulary: int, machine: Machine) -> float | None:
    """Estimated seconds per step; None for a model that cannot be estimated.

    Args:
        run: the run.
        vocabulary: entries of the tokenizer, including control tokens.
        machine: the machine of a rank.
    """
    try:
        return _estimate(run, shape_of(run, vocabulary), machine).seconds.total
    except UserError:
        return None


def _choose(run: ResolvedRun, shape: ModelShape, machine: Machine) -> Forecast:
    """The forecast with the largest micro-batch that fits, or else with the smallest."""
    if run.config.training.micro_batch_size is not None or not run.on_gpu:
        # On a CPU a run uses the largest divisor up to 8: larger micro-batches are not faster.
        return _estimate(run, shape, machine)
    share = run.horizon.batch_size // run.horizon.ranks
    found = refused = None
    for size in (each for each in range(share, 0, -1) if share % each == 0):
        try:
            found = _estimate(run.changed(micro_batch_size=size), shape, machine)
        except UserError as error:
            # The user's DeepSpeed JSON may set another micro-batch.
            refused = error
        if found is not None and found.fits:
            break
    if found is None:
        raise refused or ValueError(f"a rank's share of {share} blocks has no divisor")
    return found


def _estimate(run: ResolvedRun, shape: ModelShape, machine: Machine) -> Forecast:
    training, horizon = run.config.training, run.horizon
    job = Job(
        shape,
        Layout.of(run.deepspeed(shape.parameters), shape.parameters),
        horizon.ranks,
        horizon.micro_batch_size,
        horizon.accumulation,
        training.activation_checkpointing,
    )
    memory = estimate_memory(job, machine)
    if training.save_async:
        copy = checkpoint_bytes(job) / horizon.ranks
        memory = replace(memory, main=memory.main + copy) if machine.on_gpu else replace(memory, copy=copy)
    return Forecast(run, machine, job, memory, estimate_seconds(job, machine))


def _remedies(found: Forecast) -> Iterator[str]:
    """Options that would make the run fit: each change alone, or all if none is enough; and more ranks."""
    changes = list(_changes(found))
    together = {key: value for change in changes for key, value in change.items()}
    enough = [change for change in changes if _would_fit(found, change)] or [together]
    yield from (_named(change) for change in enough if change and _would_fit(found, change))
    blocks, ranks = found.run.horizon.batch_size, found.run.horizon.ranks
    # Every GPU adds memory; more processes on one CPU would share the same memory.
    more = (each for each in range(2 * ranks, blocks + 1, ranks) if found.machine.on_gpu and blocks % each == 0)
    least = next((each for each in more if _with_ranks(found, each).fits), None)
    if least is not None:
        yield f"--ranks {least}"


def _changes(found: Forecast) -> Iterator[dict[str, Any]]:
    training, machine = found.run.config.training, found.machine
    if found.run.horizon.micro_batch_size > 1:
        yield {"micro_batch_size": 1}
    if not training.activation_checkpointing and found.job.shape.kept_checkpointed is not None:
        yield {"activation_checkpointing": True}
    if found.run.horizon.ranks > 1:
        yield from ({"zero_stage": stage} for stage in range(max(training.zero_stage, 1) + 1, 4))
    if machine.on_gpu and training.zero_stage > 0 and not found.job.layout.offload_optimizer:
        yield {"offload": "optimizer"}


def _named(change: dict[str, Any]) -> str:
    return " and ".join(f"training.{key}={str(value).lower()}" for key, value in change.items())


def _would_fit(found: Forecast, change: dict[str, Any]) -> bool:
    try:
        return _estimate(found.run.changed(**change), found.job.shape, found.machine).fits
    except UserError:
        # The change conflicts with the other settings.
        return False


def _with_ranks(found: Forecast, ranks: int) -> Forecast:
    return _estimate(found.run.changed(ranks, micro_batch_size=1), found.job.shape, found.machine)
