"""A card is found by whole words of its driver's name for it."""

import pytest

from training.engine.gpus import CARDS, find_card


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40", "L40"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA A100-SXM4-40GB", "A100 40GB"),
        ("NVIDIA A100-PCIE-40GB", "A100 40GB"),
        ("a100 40 GB", "A100 40GB"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA A100 80GB PCIe", "A100"),
        ("Tesla V100-SXM2-16GB", "V100 16GB"),
        ("Tesla V100-SXM2-32GB", "V100"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H100 NVL", "H100 NVL"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA H200 NVL", "H200 NVL"),
        ("NVIDIA GH200 480GB", "GH200"),
        ("NVIDIA GH200 144G HBM3e", "GH200 144GB"),
        ("NVIDIA B200", "B200"),
        ("NVIDIA GB200", "GB200"),
        ("h100", "H100"),
    ],
)
def test_the_most_specific_entry_counts(name, known):
    assert find_card(name) is CARDS[known]


@pytest.mark.parametrize("name", ["NVIDIA L400", "NVIDIA RTX A1000", "NVIDIA GeForce RTX 4090", "abacus", ""])
def test_another_card_is_unknown(name):
    assert find_card(name) is None


def test_memory_figures_match_the_names():
    assert (find_card("NVIDIA L40").half, find_card("NVIDIA L40").memory) == (181e12, 48e9)
    assert {name: card.memory for name, card in CARDS.items() if name.endswith("GB")} == {
        "GH200 144GB": 144e9,
        "A100 40GB": 40e9,
        "V100 16GB": 16e9,
    }
