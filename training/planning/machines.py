"""The machine that a plan is for: a GPU by its name, or this machine as measured."""

import os
from dataclasses import dataclass, replace

import torch

from scorers.amounts import format_count
from scorers.errors import UserError
from training.config import TrainingConfig
from training.engine.deepspeed_config import Precision
from training.engine.engine import choose_precision
from training.engine.gpus import CARDS, Card, find_card
from training.engine.timing import peak_flops
from training.planning.estimate import Machine

# Default bytes per second between ranks: over gloo on one machine, and over a 400 Gb/s network card; and the share of
# a link's bandwidth that collectives reach.
_BETWEEN_PROCESSES, _BETWEEN_NODES, _LINK_SHARE = 1e9, 50e9, 0.5
_RANKS_A_NODE = 8
# Floating-point operations per byte of memory traffic, where the memory bandwidth is not known: measured on one core of
# a Xeon (150e9 per second against 10 GB/s); about that of an H100.
_FLOPS_A_BYTE = {False: 15.0, True: 300.0}


@dataclass(frozen=True)
class MachineOptions:
    """The options of `--plan`; None where not given.

    Attributes:
        ranks: number of ranks.
        device: name of a GPU; None for this machine.
        memory: bytes of the GPU, or of this machine.
        bandwidth: bytes per second between ranks.
        utilisation: share of the peak that a step reaches.
    """

    ranks: int = 1
    device: str | None = None
    memory: float | None = None
    bandwidth: float | None = None
    utilisation: float | None = None


def describe_machine(training: TrainingConfig, options: MachineOptions) -> tuple[Machine, Precision]:
    """The machine of a rank, and the precision to train in.

    Raises:
        UserError: the GPU is unknown, or the precision needs another device.
    """
    if options.device is None:
        return _here(training, options)
    card = find_card(options.device)
    if card is None:
        raise UserError(
            f"--plan-device {options.device}: unknown device. Give one of {', '.join(CARDS)}, or leave it out for this "
            "machine."
        )
    precision: Precision = training.precision if training.precision != "auto" else _automatic(card.computes_bf16)
    machine = Machine(
        name=options.device,
        on_gpu=True,
        flops=card.single if precision == "fp32" else card.half,
        memory=options.memory or card.memory,
        memory_bandwidth=card.memory_bandwidth,
        link_bandwidth=options.bandwidth or _between_cards(card, options.ranks),
        utilisation=options.utilisation,
    )
    return machine, precision


def _between_cards(card: Card, ranks: int) -> float:
    """Bytes per second between ranks, which use the network if there are more than GPUs in one machine."""
    link = card.link_bandwidth if ranks <= _RANKS_A_NODE else min(card.link_bandwidth, _BETWEEN_NODES)
    return _LINK_SHARE * link


def _automatic(computes_bf16: bool) -> Precision:
    return "bf16" if computes_bf16 else "fp32"


def _here(training: TrainingConfig, options: MachineOptions) -> tuple[Machine, Precision]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = choose_precision(training, device)
    if device.type == "cpu":
        # The ranks of a run share the cores.
        cores = len(os.sched_getaffinity(0))
        torch.set_num_threads(max(1, min(torch.get_num_threads(), cores // options.ranks)))
    machine = this_machine(device, peak_flops(device, precision), options.ranks)
    memory = options.memory / (1 if machine.on_gpu else options.ranks) if options.memory else machine.memory
    link = options.bandwidth or machine.link_bandwidth
    return replace(machine, memory=memory, link_bandwidth=link, utilisation=options.utilisation), precision


def this_machine(device: torch.device, flops: float, ranks: int) -> Machine:
    """This machine, for one of `ranks` ranks on `device`; `flops` is from `training.engine.timing.peak_flops`."""
    on_gpu = device.type == "cuda"
    card = find_card(torch.cuda.get_device_name(device)) if on_gpu else None
    return Machine(
        name=torch.cuda.get_device_name(device)
        if on_gpu
        else f"this machine's CPU, {format_count(len(os.sched_getaffinity(0)), 'core')}",
        on_gpu=on_gpu,
        flops=flops,
        memory=float(torch.cuda.get_device_properties(device).total_memory) if on_gpu else _main_memory() / ranks,
        memory_bandwidth=card.memory_bandwidth if card is not None else flops / _FLOPS_A_BYTE[on_gpu],
        link_bandwidth=_between_cards(card, ranks) if card is not None else _BETWEEN_PROCESSES,
    )


def _main_memory() -> float:
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
