"""`phf train --plan`: what a run would take, on this machine or another, and which micro-batch it would choose."""

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from scorers.errors import UserError
from training.config import TrainConfig, TrainingConfig
from training.data.tokenizers import load_tokenizer
from training.model.language_model import build_model
from training.model.shape import ModelShape, trace_shape
from training.model.sources import check_context
from training.model.vocabulary import Vocabulary
from training.objectives import OBJECTIVES
from training.presets import CONTEXT_LENGTH
from training.run.cards import CARDS, find_card
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
from training.run.schedule import Horizon, plan_horizon
from training.run.speed import peak_flops

# Of a machine's memory, what a plan may fill: the rest is for the process itself, the GPU's context and holes.
FILL = 0.9
# Bytes a second between ranks, where nobody says: over gloo on one machine, and over a network card of 400 Gb/s; of
# what a link could do, what collectives reach.
_BETWEEN_PROCESSES, _BETWEEN_NODES, _LINK_SHARE = 1e9, 50e9, 0.5
_RANKS_A_NODE = 8
# Matrix products in the time of a byte from memory, where the rate of the memory is not known: measured on one core of
# a Xeon (150e9 a second against 10 GB/s); about that of an H100.
_FLOPS_A_BYTE = {False: 15.0, True: 300.0}
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Asked:
    """What the flags of `--plan` say; None where they don't.

    Attributes:
        ranks: processes.
        device: a card's name, or None for this machine.
        memory: bytes of a card, or of this machine.
        bandwidth: bytes a second between ranks.
        utilisation: share of the peak that a step reaches.
    """

    ranks: int = 1
    device: str | None = None
    memory: float | None = None
    bandwidth: float | None = None
    utilisation: float | None = None


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
    machine, precision = _machine(config.training, asked)
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
    model = build_model(
        config.model,
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
    """What would make it fit: each change alone, then all of them together."""
    changes = dict(_changes(found))
    alone = [name for name, change in changes.items() if _with(found, change).fits]
    if alone or not changes:
        yield from alone
    elif _with(found, {key: value for change in changes.values() for key, value in change.items()}).fits:
        yield " and ".join(changes)
    blocks, ranks = found.horizon.batch_size, found.horizon.ranks
    # Each GPU brings its memory; more processes on one CPU would share what there is.
    more = (each for each in range(2 * ranks, blocks + 1, ranks) if found.machine.on_gpu and blocks % each == 0)
    enough = next((each for each in more if _with_ranks(found, each).fits), None)
    if enough is not None:
        yield f"--ranks {enough}"


def _changes(found: Forecast) -> Iterator[tuple[str, dict[str, Any]]]:
    training, machine = found.config.training, found.machine
    if found.horizon.micro_batch_size > 1:
        yield "training.micro_batch_size=1", {"micro_batch_size": 1}
    if not training.activation_checkpointing and found.job.shape.kept_checkpointed is not None:
        yield "training.activation_checkpointing=true", {"activation_checkpointing": True}
    if found.horizon.ranks > 1:
        for stage in range(max(training.zero_stage, 1) + 1, 4):
            yield f"training.zero_stage={stage}", {"zero_stage": stage}
    if machine.on_gpu and "offload" in TrainingConfig.model_fields and not found.job.layout.offload_optimizer:
        yield "training.offload=optimizer", {"offload": "optimizer"}


def _with(found: Forecast, change: dict[str, Any]) -> Forecast:
    training = found.config.training.model_copy(
        update={"zero_stage": max(found.config.training.zero_stage, 1), **change}
    )
    config = found.config.model_copy(update={"training": training})
    return _estimate(config, found.job.shape, found.machine, found.precision, found.horizon.ranks)


def _with_ranks(found: Forecast, ranks: int) -> Forecast:
    training = found.config.training.model_copy(update={"micro_batch_size": 1})
    config = found.config.model_copy(update={"training": training})
    return _estimate(config, found.job.shape, found.machine, found.precision, ranks)


def _machine(training: TrainingConfig, asked: Asked) -> tuple[Machine, Precision]:
    if asked.device is None:
        return _here(training, asked)
    card = find_card(asked.device)
    if card is None:
        raise UserError(
            f"--plan-device {asked.device}: not a card that is known; there are {', '.join(CARDS)}. "
            "Leave it out for this machine."
        )
    precision: Precision = training.precision if training.precision != "auto" else _automatic(card.computes_bf16)
    link = card.link_bandwidth if asked.ranks <= _RANKS_A_NODE else min(card.link_bandwidth, _BETWEEN_NODES)
    machine = Machine(
        name=asked.device,
        on_gpu=True,
        flops=card.single if precision == "fp32" else card.half,
        memory=asked.memory or card.memory,
        memory_bandwidth=card.memory_bandwidth,
        link_bandwidth=asked.bandwidth or _LINK_SHARE * link,
        utilisation=asked.utilisation,
    )
    return machine, precision


def _automatic(computes_bf16: bool) -> Precision:
    return "bf16" if computes_bf16 else "fp32"


def _here(training: TrainingConfig, asked: Asked) -> tuple[Machine, Precision]:
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    precision = choose_precision(training, device)
    card = find_card(torch.cuda.get_device_name(device)) if on_gpu else None
    if on_gpu:
        name, memory = torch.cuda.get_device_name(device), float(torch.cuda.get_device_properties(device).total_memory)
        link = card.link_bandwidth * _LINK_SHARE if card is not None else _BETWEEN_PROCESSES
    else:
        cores = len(os.sched_getaffinity(0))
        name = f"this machine's CPU, {cores} cores"
        memory, link = _main_memory() / asked.ranks, _BETWEEN_PROCESSES
        # As the ranks of a run share the cores.
        torch.set_num_threads(max(1, min(torch.get_num_threads(), cores // asked.ranks)))
    flops = peak_flops(device, precision)
    machine = Machine(
        name=name,
        on_gpu=on_gpu,
        flops=flops,
        memory=(asked.memory / (1 if on_gpu else asked.ranks)) if asked.memory else memory,
        memory_bandwidth=card.memory_bandwidth if card is not None else flops / _FLOPS_A_BYTE[on_gpu],
        link_bandwidth=asked.bandwidth or link,
        utilisation=asked.utilisation,
    )
    return machine, precision


def _main_memory() -> float:
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
