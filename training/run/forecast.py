"""`phf train --plan`: what a run would take, on this machine or another, and which micro-batch it would choose."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from scorers.errors import UserError
from training.config import TrainConfig
from training.data.tokenizers import load_tokenizer
from training.model.language_model import build_model
from training.model.shape import ModelShape, trace_shape
from training.model.sources import check_context
from training.model.vocabulary import Vocabulary
from training.objectives import OBJECTIVES
from training.presets import CONTEXT_LENGTH
from training.run.deepspeed_config import Precision, deepspeed_config
from training.run.engine import choose_precision
from training.run.estimate import (
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
from training.run.machines import Asked, describe_machine
from training.run.schedule import Horizon, plan_horizon

# Of a machine's memory, what a plan may fill: the rest is for the process itself, the GPU's context and holes.
FILL = 0.9
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Forecast:
    """What a run would take.

    Attributes:
        horizon: steps, and how the batch is cut.
        machine, precision, job: what the estimate is of.
        memory, seconds: of one rank at its highest; of one step.
        remedies: where it does not fit, what would make it fit, each by the same estimate.
    """

    config: TrainConfig
    horizon: Horizon
    machine: Machine
    precision: Precision
    job: Job
    memory: Memory
    seconds: Seconds
    remedies: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether a rank's memory holds it, with the margin."""
        return self.memory.total <= FILL * self.machine.memory

    @property
    def checkpoint(self) -> float:
        """Bytes of one checkpoint."""
        return checkpoint_bytes(self.job)

    @property
    def checkpoints_kept(self) -> int:
        """How many lie on the disk at most: those that are kept, and one that is being written."""
        training, steps = self.config.training, self.horizon.steps
        every = training.save_every
        written = -(-steps // every) if every else 1
        lasting = steps // training.keep_every if training.keep_every else 0
        return min(written, training.keep_checkpoints + lasting) + 1

    def facts(self) -> dict[str, Any]:
        """The forecast as JSON; bytes and seconds."""
        shape, machine = self.job.shape, self.machine
        tokens_per_second = self.horizon.tokens_per_step / self.seconds.total
        return {
            "model": asdict(shape),
            "horizon": {**asdict(self.horizon), "tokens": self.horizon.tokens},
            "engine": {
                "precision": self.precision,
                "activation_checkpointing": self.job.checkpointing,
                **asdict(self.job.layout),
            },
            "machine": asdict(machine),
            "memory": {**asdict(self.memory), "total": self.memory.total, "available": FILL * machine.memory},
            "fits": self.fits,
            "remedies": list(self.remedies),
            "step_seconds": {**asdict(self.seconds), "total": self.seconds.total},
            "bytes_sent_per_step": bytes_sent(self.job),
            "total_seconds": self.seconds.total * self.horizon.steps,
            "tokens_per_second": tokens_per_second,
            "mfu": tokens_per_second * shape.flops_per_token / (machine.flops * self.horizon.ranks),
            "checkpoint_bytes": self.checkpoint,
            "checkpoints_kept": self.checkpoints_kept,
        }


def forecast(config: TrainConfig, asked: Asked) -> Forecast:
    """What the run of a configuration would take. Nothing is tokenised, no weights are made, no folder is touched.

    Args:
        config: of `training.settings.resolve_config`.
        asked: the flags.

    Raises:
        UserError: a setting is wrong, or the device unknown.
    """
    context_length = config.data.context_length or CONTEXT_LENGTH
    check_context(config.model, context_length)
    plan_horizon(config.training, context_length, asked.ranks)
    machine, precision = describe_machine(config.training, asked)
    kind = OBJECTIVES[config.objective.name]
    classes = (config.objective.quantiles or 2) if kind.tags else 0
    vocabulary = config.data.vocab_size + classes
    if config.data.tokenizer is not None:
        tokenizer = load_tokenizer(config.data.tokenizer)
        vocabulary = tokenizer.size(tokenizer.control_ids(classes) if classes else ())
    shape = shape_of(config, vocabulary, precision, on_gpu=machine.on_gpu)
    found = _choose(config, shape, machine, precision, asked.ranks)
    if found.fits:
        return found
    return replace(found, remedies=tuple(_remedies(found)))


def shape_of(config: TrainConfig, vocabulary: int, precision: Precision, *, on_gpu: bool) -> ModelShape:
    """The shape of a configuration's model with so many entries in its vocabulary.

    Raises:
        UserError: it cannot be built, or not be estimated.
    """
    kind = OBJECTIVES[config.objective.name]
    attention = config.model.attention
    if attention.startswith("flash"):
        # A plan may be for another machine; what torch's own attention keeps is the same.
        attention = "sdpa"
    model = build_model(
        config.model.model_copy(update={"attention": attention}),
        Vocabulary(vocabulary, 0),
        value_head=kind.needs_values,
        rows_multiple=config.model.pad_vocab_to or (None if on_gpu else 1),
        skeleton=True,
    )
    context_length = config.data.context_length or CONTEXT_LENGTH
    return trace_shape(model, config.model.name, context_length=context_length, dtype=_DTYPES[precision])


def fitted(config: TrainConfig, horizon: Horizon, vocabulary: int, device: torch.device) -> Horizon:
    """The horizon with the largest micro-batch that a GPU's memory holds by the estimate, where none is set.

    On a CPU, and for a model that cannot be estimated, it stays as it is; where nothing fits, the micro-batch is 1, as
    an estimate may err. All ranks must have cards of the same kind, so that they choose alike.

    Args:
        config: of the run.
        horizon: of `plan_horizon`.
        vocabulary: entries of the tokenizer, control tokens included.
        device: the rank's.
    """
    if device.type != "cuda" or config.training.micro_batch_size is not None:
        return horizon
    properties = torch.cuda.get_device_properties(device)
    machine = Machine(properties.name, True, 1.0, float(properties.total_memory), 1.0, 1.0)
    precision = choose_precision(config.training, device)
    try:
        shape = shape_of(config, vocabulary, precision, on_gpu=True)
    except UserError:
        return horizon
    return _choose(config, shape, machine, precision, horizon.ranks).horizon


def _choose(config: TrainConfig, shape: ModelShape, machine: Machine, precision: Precision, ranks: int) -> Forecast:
    """The forecast with the largest micro-batch that fits; with the smallest where none does."""
    training, context_length = config.training, shape.context_length

    def attempt(micro: int | None) -> Forecast:
        chosen = training.model_copy(update={"micro_batch_size": micro})
        return _estimate(config.model_copy(update={"training": chosen}), shape, machine, precision, ranks)

    if training.micro_batch_size is not None or not machine.on_gpu:
        # On a CPU a run takes the largest divisor up to 8: more at once is no faster there.
        return attempt(training.micro_batch_size)
    share = plan_horizon(training, context_length, ranks).batch_size // ranks
    sizes = [size for size in range(share, 0, -1) if share % size == 0]
    attempts = map(attempt, sizes)
    return next((each for each in attempts if each.fits), attempt(1))


def _estimate(config: TrainConfig, shape: ModelShape, machine: Machine, precision: Precision, ranks: int) -> Forecast:
    horizon = plan_horizon(config.training, shape.context_length, ranks)
    settings = deepspeed_config(config.training, horizon, precision, parameters=shape.parameters, on_gpu=machine.on_gpu)
    job = Job(
        shape,
        Layout.of(settings, shape.parameters),
        ranks,
        horizon.micro_batch_size,
        horizon.accumulation,
        config.training.activation_checkpointing,
    )
    return Forecast(
        config, horizon, machine, precision, job, estimate_memory(job, machine), estimate_seconds(job, machine), ()
    )


def _remedies(found: Forecast) -> Iterator[str]:
    """What would make it fit: each change alone, or all of them where none is enough; and more ranks."""
    changes = list(_changes(found))
    together = {key: value for change in changes for key, value in change.items()}
    enough = [change for change in changes if _with(found, change).fits] or [together]
    yield from (_named(change) for change in enough if change and _with(found, change).fits)
    blocks, ranks = found.horizon.batch_size, found.horizon.ranks
    # Each GPU brings its memory; more processes on one CPU would share what there is.
    more = (each for each in range(2 * ranks, blocks + 1, ranks) if found.machine.on_gpu and blocks % each == 0)
    least = next((each for each in more if _with_ranks(found, each).fits), None)
    if least is not None:
        yield f"--ranks {least}"


def _changes(found: Forecast) -> Iterator[dict[str, Any]]:
    training, machine = found.config.training, found.machine
    if found.horizon.micro_batch_size > 1:
        yield {"micro_batch_size": 1}
    if not training.activation_checkpointing and found.job.shape.kept_checkpointed is not None:
        yield {"activation_checkpointing": True}
    if found.horizon.ranks > 1:
        yield from ({"zero_stage": stage} for stage in range(max(training.zero_stage, 1) + 1, 4))
    if machine.on_gpu and training.zero_stage > 0 and not found.job.layout.offload_optimizer:
        yield {"offload": "optimizer"}


def _named(change: dict[str, Any]) -> str:
    return " and ".join(f"training.{key}={str(value).lower()}" for key, value in change.items())


def _with(found: Forecast, change: dict[str, Any]) -> Forecast:
    config = found.config.model_copy(update={"training": found.config.training.model_copy(update=change)})
    return _estimate(config, found.job.shape, found.machine, found.precision, found.horizon.ranks)


def _with_ranks(found: Forecast, ranks: int) -> Forecast:
    training = found.config.training.model_copy(update={"micro_batch_size": 1})
    config = found.config.model_copy(update={"training": training})
    return _estimate(config, found.job.shape, found.machine, found.precision, ranks)
