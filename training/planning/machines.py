"""The machine that a plan is for: a card by its name, or this one as it is measured."""

import os
from dataclasses import dataclass, replace

import torch

from scorers.amounts import count_of
from scorers.errors import UserError
from training.config import TrainingConfig
from training.engine.cards import CARDS, Card, find_card
from training.engine.deepspeed_config import Precision
from training.engine.engine import choose_precision
from training.engine.timing import peak_flops
from training.planning.estimate import Machine

# Bytes a second between ranks, where nobody says: over gloo on one machine, and over a network card of 400 Gb/s; of
# what a link could do, what collectives reach.
_BETWEEN_PROCESSES, _BETWEEN_NODES, _LINK_SHARE = 1e9, 50e9, 0.5
_RANKS_A_NODE = 8
# Matrix products in the time of a byte from memory, where the rate of the memory is not known: measured on one core of
# a Xeon (150e9 a second against 10 GB/s); about that of an H100.
_FLOPS_A_BYTE = {False: 15.0, True: 300.0}


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


def describe_machine(training: TrainingConfig, asked: Asked) -> tuple[Machine, Precision]:
    """What a rank computes on, and in which precision.

    Args:
        training: settings of the training.
        asked: the flags.

    Raises:
        UserError: the card is unknown, or the precision needs another device.
    """
    if asked.device is None:
        return _here(training, asked)
    card = find_card(asked.device)
    if card is None:
        raise UserError(
            f"--plan-device {asked.device}: not a card that is known; there are {', '.join(CARDS)}. "
            "Leave it out for this machine."
        )
    precision: Precision = training.precision if training.precision != "auto" else _automatic(card.computes_bf16)
    machine = Machine(
        name=asked.device,
        on_gpu=True,
        flops=card.single if precision == "fp32" else card.half,
        memory=asked.memory or card.memory,
        memory_bandwidth=card.memory_bandwidth,
        link_bandwidth=asked.bandwidth or _between_cards(card, asked.ranks),
        utilisation=asked.utilisation,
    )
    return machine, precision


def _between_cards(card: Card, ranks: int) -> float:
    """Bytes a second between ranks; more of them than a machine has cards talk over the network."""
    link = card.link_bandwidth if ranks <= _RANKS_A_NODE else min(card.link_bandwidth, _BETWEEN_NODES)
    return _LINK_SHARE * link


def _automatic(computes_bf16: bool) -> Precision:
    return "bf16" if computes_bf16 else "fp32"


def _here(training: TrainingConfig, asked: Asked) -> tuple[Machine, Precision]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = choose_precision(training, device)
    if device.type == "cpu":
        # As the ranks of a run share the cores.
        cores = len(os.sched_getaffinity(0))
        torch.set_num_threads(max(1, min(torch.get_num_threads(), cores // asked.ranks)))
    machine = this_machine(device, peak_flops(device, precision), asked.ranks)
    memory = asked.memory / (1 if machine.on_gpu else asked.ranks) if asked.memory else machine.memory
    link = asked.bandwidth or machine.link_bandwidth
    return replace(machine, memory=memory, link_bandwidth=link, utilisation=asked.utilisation), precision


def this_machine(device: torch.device, flops: float, ranks: int) -> Machine:
    """What a rank computes on here.

    Args:
        device: of the rank.
        flops: of `training.engine.timing.peak_flops`.
        ranks: of the run.
    """
    on_gpu = device.type == "cuda"
    card = find_card(torch.cuda.get_device_name(device)) if on_gpu else None
    return Machine(
        name=torch.cuda.get_device_name(device)
        if on_gpu
        else f"this machine's CPU, {count_of(len(os.sched_getaffinity(0)), 'core')}",
        on_gpu=on_gpu,
        flops=flops,
        memory=float(torch.cuda.get_device_properties(device).total_memory) if on_gpu else _main_memory() / ranks,
        memory_bandwidth=card.memory_bandwidth if card is not None else flops / _FLOPS_A_BYTE[on_gpu],
        link_bandwidth=_between_cards(card, ranks) if card is not None else _BETWEEN_PROCESSES,
    )


def _main_memory() -> float:
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
