"""Peak figures of accelerators, from NVIDIA's data sheets."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """One accelerator.

    Attributes:
        half, single: FLOP/s of dense matrix products in bf16 or fp16, and in fp32.
        memory: bytes.
        memory_bandwidth: bytes per second, of its own memory.
        link_bandwidth: bytes per second to its neighbours, one way: NVLink if the card has it, else PCIe.
        computes_bf16: whether it supports bf16 in hardware.
    """

    half: float
    single: float
    memory: float
    memory_bandwidth: float
    link_bandwidth: float
    computes_bf16: bool = True


# By words of the card's name; the entry with the most matching words wins. Peaks with structured sparsity are halved. A
# GH200 is a Hopper with 96 GB of its own memory; its name contains that of the CPU (480 GB).
CARDS: dict[str, Card] = {
    "GB200": Card(2.5e15, 80e12, 186e9, 8.0e12, 900e9),
    "B200": Card(2.25e15, 75e12, 180e9, 8.0e12, 900e9),
    "H200 NVL": Card(835e12, 60e12, 141e9, 4.8e12, 450e9),
    "H200": Card(989e12, 67e12, 141e9, 4.8e12, 450e9),
    "H100 PCIe": Card(756e12, 51e12, 80e9, 2.0e12, 64e9),
    "H100 NVL": Card(835e12, 60e12, 94e9, 3.9e12, 300e9),
    "H100": Card(989e12, 67e12, 80e9, 3.35e12, 450e9),
    "GH200 144GB": Card(989e12, 67e12, 144e9, 4.9e12, 450e9),
    "GH200": Card(989e12, 67e12, 96e9, 4.0e12, 450e9),
    "A100 40GB": Card(312e12, 19.5e12, 40e9, 1.555e12, 300e9),
    "A100": Card(312e12, 19.5e12, 80e9, 2.0e12, 300e9),
    "L40S": Card(362e12, 91.6e12, 48e9, 864e9, 32e9),
    "L40": Card(181e12, 90.5e12, 48e9, 864e9, 32e9),
    "L4": Card(121e12, 30.3e12, 24e9, 300e9, 32e9),
    "V100 16GB": Card(125e12, 15.7e12, 16e9, 900e9, 150e9, computes_bf16=False),
    "V100": Card(125e12, 15.7e12, 32e9, 900e9, 150e9, computes_bf16=False),
}


def find_card(name: str) -> Card | None:
    """Find a card by a name such as `NVIDIA H100 80GB HBM3`, or some words of one, in any case; None if unknown."""
    words = _words(name)
    fitting = [part for part in CARDS if _words(part) <= words]
    return CARDS[max(fitting, key=lambda part: len(_words(part)))] if fitting else None


def _words(name: str) -> set[str]:
    # Some drivers write "144G", and users write "40 GB".
    return set(re.findall("[a-z0-9]+", re.sub(r"(\d) ?gb?\b", r"\1gb", name.lower())))
