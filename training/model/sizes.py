"""Model sizes by name: GPT-2 as published, and smaller ones of the same architecture. Does not import torch."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Size:
    """Shape of a GPT-2: layers, width, attention heads, and positions (the longest context)."""

    layers: int
    width: int
    heads: int
    positions: int

    def fields(self) -> dict[str, Any]:
        """Return fields of `transformers.GPT2Config`.

        Dropout is 0, not GPT-2's 0.1: in a few epochs there is nothing to regularise, and only without it does the loss
        not depend on how a batch is divided among ranks. Set `resid_pdrop` and the like in `model.overrides`.
        """
        return {
            "n_layer": self.layers,
            "n_embd": self.width,
            "n_head": self.heads,
            "n_positions": self.positions,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
        }


SIZES: dict[str, Size] = {
    "nano": Size(layers=2, width=64, heads=2, positions=128),
    "tiny": Size(layers=4, width=128, heads=4, positions=256),
    "mini": Size(layers=6, width=256, heads=8, positions=512),
    "small": Size(layers=8, width=512, heads=8, positions=1024),
    "gpt2": Size(layers=12, width=768, heads=12, positions=1024),
    "gpt2-medium": Size(layers=24, width=1024, heads=16, positions=1024),
    "gpt2-large": Size(layers=36, width=1280, heads=20, positions=1024),
    "gpt2-xl": Size(layers=48, width=1600, heads=25, positions=1024),
}
