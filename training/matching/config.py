"""The settings of `phf match`."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from training.config import TrackingConfig, TrainingConfig
from training.setting_types import Count, Name, Section

DivergenceName = Literal["kl", "reverse-kl", "js", "tv"]


class MatchTrainingConfig(TrainingConfig):
    """The optimisation. `batch_size` counts samples, and `num_tokens` follows from `steps`."""

    num_tokens: Count = Field(default=1, ge=1)
    """Not a setting here: it follows from `steps`."""
    batch_size: Count = Field(default=256, ge=1)
    """Samples per step, over all ranks."""
    learning_rate: float = Field(default=1e-5, gt=0)
    """Peak of the learning rate; by default a thirtieth of that of the run's training."""
    schedule: Literal["linear", "cosine", "wsd", "constant"] = "constant"
    """The learning rate after the linear warm-up."""
    warmup_ratio: float = Field(default=0.05, ge=0, le=1)
    """Share of the steps for warm-up, rounded up to whole steps."""
    save_every: Count = Field(default=50, ge=0)
    """Steps between checkpoints; 0 for only one at the end."""
    validate_every: Count | None = Field(default=0, ge=0)
    """Not used: `phf evaluate` measures held-out text."""

    @model_validator(mode="before")
    @classmethod
    def _has_no_tokens(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("num_tokens") is not None:
            raise ValueError("num_tokens is not a setting here: give steps")
        return given

    @model_validator(mode="after")
    def _has_whole_weights(self) -> Self:
        if self.zero_stage == 3:
            raise ValueError("zero_stage must be 0 to 2: samples are drawn from whole weights on every rank")
        return self


class MatchConfig(Section):
    """All settings of `phf match`."""

    run: Name
    """Folder of the finished run that is matched; it is only read."""
    output: Name
    """Folder of the run that this makes. An existing one resumes."""
    constraints: tuple[str, ...] = ()
    """Targets for samples: `toxicity<=0.001: 0.999` is the share of samples in which every sentence has a score of at
    most 0.001 (1: no other sample shall occur), `toxicity: 0.01` the mean over samples of their sentences' mean score.
    """
    scorers: tuple[str, ...] = ()
    """Scorers that made no column of the dataset, for constraints on them, such as `profanity=linear`."""
    method: Literal["dpg", "reinforce"] = "dpg"
    """`dpg` lowers a divergence from the target on samples of a proposal, which is replaced when the model is closer to
    the target. `reinforce` is policy gradient with a KL penalty: the reverse KL, on samples of the model itself.
    """
    divergence: DivergenceName | None = None
    """The divergence that `dpg` lowers: `kl` (of the model from the target; by default), `reverse-kl`, `js` or `tv`."""
    steps: Count = Field(default=200, ge=1)
    """Optimiser steps. More extend a finished run under the schedules `constant` and `wsd`."""
    prompts: Name | None = None
    """A file of prompts (JSON Lines, CSV, Parquet, or text with one per line), or `held-out` for the first sentences of
    held-out documents: each prompt has its own target, and only continuations are scored. None samples whole texts.
    """
    prompt_field: Name | None = None
    """Field of the records that holds the prompt; by default `prompt.text`, `prompt` or `text`."""
    samples_per_prompt: Count = Field(default=16, ge=2)
    """Samples of each prompt in a step; the batch size must be a multiple."""
    max_new_tokens: Count = Field(default=64, ge=1, le=1_000_000)
    """Maximum tokens of a sample; the target is one over samples of this length."""
    moment_samples: Count = Field(default=4096, ge=1, le=10_000_000)
    """Samples of the run before the first step, from which the target is estimated."""
    check_every: Count = Field(default=10, ge=1)
    """Steps between checks, which log estimates and replace the proposal if the model is closer to the target."""
    check_samples: Count = Field(default=1024, ge=1, le=10_000_000)
    """Samples of a check."""
    closer_by: Literal["kl", "tvd"] = "kl"
    """How a check compares model and proposal: KL from the target, or total variation."""
    report_samples: Count = Field(default=4096, ge=1, le=10_000_000)
    """Samples of the finished model for the report."""
    sample_batch_size: Count = Field(default=256, ge=1)
    """Samples drawn at once on a rank."""
    training: MatchTrainingConfig = Field(default_factory=MatchTrainingConfig)
    """The optimisation."""
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)
    """Trackers for metrics, besides the console and `metrics.jsonl`."""

    @property
    def chosen_divergence(self) -> DivergenceName:
        """The divergence, resolved."""
        if self.method == "reinforce":
            return "reverse-kl"
        return self.divergence or "kl"

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.method == "reinforce" and self.divergence not in (None, "reverse-kl"):
            raise ValueError(
                f"method reinforce lowers the reverse KL, not {self.divergence}. Leave divergence out, or use dpg"
            )
        if self.prompts is not None and self.training.batch_size % self.samples_per_prompt:
            raise ValueError(
                f"training.batch_size={self.training.batch_size} is not a multiple of "
                f"samples_per_prompt={self.samples_per_prompt}"
            )
        return self
