"""The settings of `phf credit`."""

from typing import Literal

from pydantic import Field

from training.setting_types import Count, Section, Seed


class CreditConfig(Section):
    """How the score of a sentence is divided among its tokens."""

    aggregate: Literal["soft-max", "mean", "soft-min"] = "soft-max"
    """How tokens make a sentence: one bad token is enough (`soft-max`), all count (`mean`), or one good token is enough
    (`soft-min`).
    """
    width: Count = Field(default=64, ge=1, le=4096)
    """Width of the network."""
    window: Count = Field(default=1, ge=0, le=32)
    """Neighbours that a token is judged with, on each side; with more, the score is placed less exactly."""
    list_size: Count = Field(default=4, ge=2, le=64)
    """Sentences that are put in order together."""
    lists: Count = Field(default=32, ge=1)
    """Such lists per step."""
    learning_rate: float = Field(default=3e-3, gt=0, le=1)
    """Of AdamW, constant."""
    steps: Count = Field(default=5000, ge=1)
    """Most steps."""
    check_every: Count = Field(default=100, ge=1)
    """Steps between measurements of the loss on held-out sentences."""
    patience: Count = Field(default=3, ge=1)
    """Stop after so many measurements without a better one, and take the best."""
    held_out: float = Field(default=0.05, gt=0, lt=1)
    """Share of the documents that nothing is learnt from, for measurements."""
    least: float = Field(default=1e-4, gt=0, lt=0.5)
    """Scores below this are learnt as this."""
    cut: float = Field(default=0.1, ge=0, lt=1)
    """Tokens with less than this share of the credit of their sentence's worst token get a score of 0."""
    sentences: Count = Field(default=2_000_000, ge=1)
    """Sentences to learn from, at most; all of them get credit."""
    seed: Seed = 42
    """Seed of weights, lists and held-out documents."""
