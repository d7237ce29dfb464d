"""The configuration of a training run: one typed section per component, with the same fields in YAML and `--set`."""

from fractions import Fraction
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from training.measuring_config import EvaluationConfig
from training.setting_types import Count, Name, Section, Seed

ObjectiveName = Literal[
    "mle", "filtering", "conditional", "unlikelihood", "unlikelihood_soft", "rwr", "token_rwr", "awr", "target"
]


def as_written(number: float) -> Fraction:
    """Return the exact value of a number as the user wrote it in decimals, to compute counts from shares."""
    return Fraction(repr(number))


class MixtureConfig(Section):
    """A dataset that is mixed into `data.dataset`."""

    dataset: str
    """Folder or URI of a sealed labelled dataset."""
    share: float = Field(ge=0.001, lt=1)
    """Share of the run's blocks, and so of its tokens. `data.dataset` gets the rest."""
    column: Name | None = None
    """Score column; by default that of `data.dataset`. With `data.columns` the dataset needs all of those."""
    threshold: float | None = Field(default=None, ge=0)
    """Like `objective.threshold`, for this dataset. None takes `objective.threshold` if it is set and the scorer is
    the same, else this dataset's own.
    """
    thresholds: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    """The same by column, with several `data.columns`."""
    store: str | None = None
    """Folder of the token store; see `data.store`."""


class DataConfig(Section):
    """The training data."""

    dataset: str
    """Folder or URI of a sealed labelled dataset."""
    column: Name | None = None
    """Score column; by default the task's name. With `columns`, the one for reports."""
    columns: dict[Name, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(default_factory=dict)
    """Several score columns and their weights, such as `{toxicity: 1, pii: 0.5}`: see `training.data.combined`.
    Documents without a score in any of them are left out.
    """
    token_scores: bool | Annotated[str, Field(pattern=r"^credit:[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$")] = False
    """True: a token carries its sentence's score only if it overlaps one of the scorer's findings, else 0; for scorers
    that know where they found something, and for datasets with spans. `credit:NAME`: a token carries what `phf credit`
    gave it.
    """
    tokenizer: str | None = None
    """Path or name of a Hugging Face tokenizer; None trains a byte-level BPE on the dataset."""
    vocab_size: Count = Field(default=8192, ge=260)
    """Entries of the tokenizer that is trained if none is given."""
    context_length: Count | None = Field(default=None, ge=2)
    """Tokens per block; None takes the preset's, limited to the model's positions."""
    held_out: float = Field(default=0.01, ge=0, lt=1)
    """Share of documents kept out of training, chosen by a seeded hash of their text."""
    held_out_seed: Seed = 0
    """Seed of that hash."""
    store: str | None = None
    """Folder of the token store; None puts it beside a local dataset, or into the user's cache."""
    mixture: tuple[MixtureConfig, ...] = ()
    """Additional datasets to train on. They share the tokenizer, which is trained on all of them if none is given,
    and the held-out settings; evaluations use `dataset`.
    """
    allow_lossy_tokenizer: bool = False
    """Train even if the tokenizer changes the text of more than one document in a thousand
    (`training.data.round_trips`).
    """
    allow_mixed_scorers: bool = False
    """Allow an objective whose loss computes with scores to train on columns of different scorers."""
    document_masking: bool = False
    """Tokens attend only to their own document; positions begin at 0 with each document, and with each block."""

    @property
    def shares(self) -> tuple[Fraction, ...]:
        """The exact shares of `dataset` and of each of the mixture, as written in decimals; their sum is 1."""
        others = [as_written(each.share) for each in self.mixture]
        return (1 - sum(others, Fraction()), *others)

    @model_validator(mode="after")
    def _leaves_a_share(self) -> Self:
        if self.shares[0] < Fraction(1, 1000):
            raise ValueError(
                f"the shares of mixture add up to {float(1 - self.shares[0]):g}; the rest is the share of the dataset "
                "itself, and must be at least 0.001. Lower them"
            )
        return self


class ModelConfig(Section):
    """The model."""

    name: str = "gpt2"
    """A size by name (`tiny`, `gpt2`, ...), or path or name of a Hugging Face causal LM config or checkpoint."""
    pretrained: bool = False
    """Start from the weights of the checkpoint `name` instead of a random initialisation."""
    overrides: dict[str, Any] = Field(default_factory=dict)
    """Fields of the Hugging Face config to change, such as `n_layer: 4`."""
    pad_vocab_to: Count | None = Field(default=None, ge=1)
    """Pad the embeddings with rows of zeros to a multiple of this; 1 for none. None is 128 on a GPU, for faster matrix
    products, if the architecture allows it, and 1 on a CPU. Losses do not change, and an exported model has no padding.
    """
    attention: Literal["auto", "sdpa", "flash_attention_2", "flash_attention_3", "eager"] = "auto"
    """Auto is torch's scaled dot product if the architecture supports it; `flash_attention_2` and `flash_attention_3`
    need their package, a GPU and half precision.
    """
    kernels: Literal["torch", "liger"] = "torch"
    """`liger` replaces norms, rotary embeddings and gated layers by Liger's fused kernels (GPU, extra `liger`)."""


class ObjectiveConfig(Section):
    """The objective; None takes the preset's value. See `training.objectives`."""

    name: ObjectiveName = "mle"
    """The objective's name."""
    threshold: float | None = Field(default=None, ge=0)
    """Sentences (filtering: documents, by their mean) with score <= threshold are aligned. None takes the dataset's,
    or the preset's if the task's scorer is the paper's.
    """
    thresholds: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    """The same by column, with several `data.columns`; a sentence is aligned if it is aligned by each column."""
    quantiles: Count | None = Field(default=None, ge=2, le=1000)
    """Conditional: number of equally large classes of sentences, by score, each with its own control token, instead of
    aligned and misaligned (Quark, arXiv 2205.13636, "quantization"). Equal scores share a class, so there may be
    fewer. Two are called `<|aligned|>` and `<|misaligned|>`, more are `<|quantile_1|>` (the best) and so on.
    """
    tag_place: Literal["before", "after", "both"] = "before"
    """Conditional: where a sentence's control token stands. After it there is another one, `<|after_aligned|>` or
    `<|after_misaligned|>`, which the model learns to predict from the sentence (an auxiliary target, arXiv 2511.21613)
    and never writes. With `after` alone samples cannot be conditioned.
    """
    mask_control_tokens: bool = False
    """Conditional: no loss on control tokens before sentences, only on what follows them, as MeCo (arXiv 2501.01956)
    masks metadata.
    """
    mask_above: float | Annotated[str, Field(pattern=r"^p\d{1,2}(\.\d+)?$")] | None = None
    """Sentences with a higher score are read but not learnt ("masked SLUNG", arXiv 2505.03052); a score, or a
    percentile of the stream's sentences such as `p99`. With `data.columns` it applies to the combined score; with a
    mixture the percentile is that of `data.dataset`. See `training.loss_mask`.
    """
    hide_above: float | Annotated[str, Field(pattern=r"^p\d{1,2}(\.\d+)?$")] | None = None
    """Tokens of sentences with a higher score are replaced by `<|hidden|>` and not learnt, so that the model does not
    read them either ("removal", arXiv 2601.21571); a score or a percentile, as in `mask_above`. With
    `data.token_scores` tokens by their own scores.
    """
    drop_tags: float | None = Field(default=None, ge=0, le=1)
    """Conditional: share of sentences without a control token."""
    alpha: float | None = Field(default=None, ge=0)
    """Unlikelihood: weight of the unlikelihood term; awr: weight of the policy term."""
    beta: float | None = Field(default=None, gt=0)
    """Rwr, token_rwr, awr: temperature of the weights."""
    w_max: float = Field(default=1000.0, gt=0)
    """Rwr, awr: upper clip of the weights."""
    targets: dict[str, float] = Field(default_factory=dict)
    """Target: what the corpus shall look like, such as `{"toxicity<=0.001": 0.995, pii: 0.002}`: the share of
    sentences with a score of at most 0.001, and the mean score. Sentences get the weights closest to equal ones that
    meet all of them; see `training.data.weighting`.
    """
    min_effective_share: float = Field(default=0.01, ge=0, le=1)
    """Target: refuse weights under which fewer sentences than this share count (effective sample size), or fewer than
    50.
    """
    starts_at: float = Field(default=0.0, ge=0, lt=1)
    """Share of the steps before the preferences start: they train without tags or filter, on separate documents."""
    cooldown: float = Field(default=0.0, ge=0, lt=1)
    """Conditional: share of the steps, at the end, that train without tags, so that the model works without them
    (MeCo, arXiv 2501.01956), on separate documents.
    """

    @property
    def conditions(self) -> bool:
        """Whether the model reads control tokens before sentences, so that samples can be conditioned and guided."""
        return self.name == "conditional" and self.tag_place != "after"

    @model_validator(mode="after")
    def _leaves_steps(self) -> Self:
        if self.starts_at + self.cooldown >= 1:
            raise ValueError(
                f"starts_at={self.starts_at:g} and cooldown={self.cooldown:g} leave no step for the objective. "
                "Lower them"
            )
        return self


class TrainingConfig(Section):
    """The optimisation."""

    num_tokens: Count = Field(default=3_300_000_000, ge=1)
    """Total tokens to train on, rounded down to whole steps, at least one."""
    batch_size: Count = Field(default=64, ge=1)
    """Blocks per optimiser step, over all ranks."""
    micro_batch_size: Count | None = Field(default=None, ge=1)
    """Blocks per forward pass of a rank; None picks a divisor of its share of the batch: on a CPU the largest up to 8,
    on a GPU the largest that fits by the estimate of `phf train --plan`.
    """
    learning_rate: float = Field(default=5e-4, gt=0)
    """Peak of the learning rate."""
    schedule: Literal["linear", "cosine", "wsd", "constant"] = "linear"
    """The learning rate after the linear warm-up: linear or cosine decay to its end, constant and then decay (`wsd`),
    or constant.
    """
    warmup_ratio: float = Field(default=0.01, ge=0, le=1)
    """Share of the steps for warm-up, rounded up to whole steps."""
    warmup_steps: Count | None = Field(default=None, ge=0)
    """Warm-up steps, instead of warmup_ratio. A run that is extended by num_tokens keeps its original warm-up."""
    min_learning_rate_ratio: float = Field(default=0.0, ge=0, le=1)
    """Final learning rate, relative to the peak."""
    decay_ratio: float = Field(default=0.2, gt=0, le=1)
    """With the schedule `wsd` (warm-up, stable, decay), the share of the steps for the decay."""
    weight_decay: float = Field(default=0.1, ge=0)
    """AdamW's weight decay; biases and norms do not decay."""
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    """AdamW's beta1."""
    adam_beta2: float = Field(default=0.999, ge=0, lt=1)
    """AdamW's beta2."""
    adam_epsilon: float = Field(default=1e-8, gt=0)
    """AdamW's epsilon."""
    gradient_clipping: float = Field(default=1.0, ge=0)
    """Norm to clip gradients to; 0 for no clipping."""
    skip_sigmas: float | None = Field(default=None, gt=0)
    """Skip the update of a batch whose loss is this many standard deviations above the mean of the last 128; None for
    never. Needs ZeRO.
    """
    max_skipped: Count = Field(default=10, ge=1)
    """Consecutive skipped updates that end the run. With ZeRO, updates whose loss or gradient is not finite are always
    skipped; without, the first one ends the run.
    """
    seed: Seed = 42
    """Seed of the initialisation, the order of the blocks, dropped tags and dropout."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Auto is bf16 if the device supports it in hardware, else fp32."""
    activation_checkpointing: bool = False
    """Recompute each layer in the backward pass instead of keeping its activations: less memory, a third more time,
    the same results.
    """
    compile: bool = False
    """Compile the network with torch.compile; the first step takes minutes. Not with ZeRO stage 3."""
    tf32: bool = False
    """Compute float32 matrix products on a GPU in TF32: 10 bits of mantissa instead of 23, several times as fast."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed's ZeRO stage; at least 1 with fp16 or bf16."""
    offload: Literal["none", "optimizer", "parameters"] = "none"
    """What to keep in CPU memory while the GPU does not need it: nothing, the optimiser's state (ZeRO stage 1 to 3),
    or the parameters too (ZeRO stage 3).
    """
    deepspeed: str | None = None
    """Path of a user's own DeepSpeed JSON, merged under these settings."""
    hang_timeout_s: float = Field(default=3600.0, gt=0)
    """Seconds after which a step (including its data and what it waits for), or a checkpoint that the loop waits for,
    counts as hanging: the rank dumps the stacks of its threads into `stacks/` in the run's folder, and exits with
    status 1.
    """
    log_every: Count = Field(default=10, ge=0)
    """Steps between lines of `metrics.jsonl`; 0 for none."""
    save_every: Count = Field(default=1000, ge=0)
    """Steps between checkpoints; 0 for only one at the end."""
    evaluate_every: Count = Field(default=0, ge=0)
    """Steps between evaluations, in which the model is sampled and the samples are scored; 0 for none."""
    validate_every: Count | None = Field(default=None, ge=0)
    """Steps between measurements of the validation loss on held-out text, besides the one at the end; nothing is
    sampled. None is often enough to take about a fiftieth of the time, if there is held-out text; 0 is never.
    """
    keep_checkpoints: Count = Field(default=2, ge=1)
    """How many of the newest checkpoints to keep. The schedules `constant` and `wsd` also make and keep one where a
    longer run would begin to differ: where the decay or the second phase begins.
    """
    keep_every: Count = Field(default=0, ge=0)
    """Also keep checkpoints whose step is a multiple of this; 0 for none."""
    keep_best: Count = Field(default=0, ge=0)
    """Also keep this many of the best checkpoints by `best_metric`."""
    best_metric: str | None = None
    """Metric for `keep_best`: `validation_loss`; a figure of the evaluations at its step (`misalignment`,
    `expected_maximum`, `hit_rate`, `bits_per_byte`); or `loss`, the mean of the logged training losses since the
    previous checkpoint.
    """
    best_mode: Literal["min", "max"] = "min"
    """Whether the lowest or the highest value is the best."""
    save_async: bool = False
    """Continue training while a checkpoint is written and hashed; the loop only pauses while the state is copied. From
    the first save to the end of the run this takes as much host memory as a checkpoint, over all ranks: 16 bytes per
    parameter in fp32, 14 in half precision.
    """

    def steps(self, context_length: int) -> int:
        """Return the number of optimiser steps: the whole batches in `num_tokens`, at least one."""
        return max(1, self.num_tokens // (self.batch_size * context_length))


class WandbConfig(Section):
    """Weights & Biases (extra `wandb`)."""

    project: str = "phf"
    """W&B project."""
    entity: str | None = None
    """W&B user or team; None for your own."""
    name: str | None = None
    """Name of the run; None for that of its folder."""
    mode: Literal["online", "offline"] = "online"
    """`offline` writes files into the run's folder, for `wandb sync`."""


class MlflowConfig(Section):
    """MLflow (extra `mlflow`)."""

    experiment: str = "phf"
    """MLflow experiment."""
    name: str | None = None
    """Name of the run; None for that of its folder."""
    tracking_uri: str | None = None
    """A server, or a folder; None takes MLFLOW_TRACKING_URI, or `mlflow/` in the run's folder."""


class TrackioConfig(Section):
    """trackio (extra `trackio`)."""

    project: str = "phf"
    """Trackio project."""
    name: str | None = None
    """Name of the run; None for that of its folder."""
    space_id: str | None = None
    """Hugging Face Space; None keeps the metrics on this machine (TRACKIO_DIR)."""


class TrackingConfig(Section):
    """Trackers for metrics, besides the console and `metrics.jsonl`."""

    tensorboard: bool = True
    """Write TensorBoard event files into the run's folder."""
    wandb: WandbConfig | None = None
    """Weights & Biases (extra `wandb`); None for none, `{}` for its defaults. Like all trackers it gets numbers,
    settings and facts of the run from rank 0, and no text; a failing tracker does not end the run.
    """
    mlflow: MlflowConfig | None = None
    """MLflow (extra `mlflow`); None for none, `{}` for its defaults."""
    trackio: TrackioConfig | None = None
    """Trackio (extra `trackio`); None for none, `{}` for its defaults."""
    metrics_port: int | None = Field(default=None, ge=1, le=65535)
    """Port at which rank 0 serves Prometheus metrics while it runs; None for none."""
    metrics_host: str = Field(default="127.0.0.1", min_length=1)
    """Address of the machine of rank 0 at which it serves them. `0.0.0.0` lets every machine that can reach it read
    them; they hold numbers and the path of the run's folder.
    """


class TrainConfig(Section):
    """All settings of a run, resolved and printed before step 0."""

    output: str
    """Folder of the run. An existing run resumes."""
    task: Name
    """`toxicity`, `pii` or `pep8` take the paper's presets, which replace the defaults below; any other score column
    takes toxicity's.
    """
    data: DataConfig
    """The training data."""
    model: ModelConfig = Field(default_factory=ModelConfig)
    """The model."""
    objective: ObjectiveConfig = Field(default_factory=ObjectiveConfig)
    """The objective; None takes the preset's value."""
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    """The optimisation."""
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    """How a model is sampled and scored, by `phf evaluate` and during training."""
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)
    """Trackers for metrics, besides the console and `metrics.jsonl`."""


class ResolvedMixtureConfig(MixtureConfig):
    """A dataset of a mixture whose score column is known."""

    column: str


class ResolvedDataConfig(DataConfig):
    """The training data, with what the task and the model decide."""

    column: str
    context_length: Count
    mixture: tuple[ResolvedMixtureConfig, ...] = ()


class ResolvedConfig(TrainConfig):
    """The settings of a run after `training.settings.fill_in`."""

    data: ResolvedDataConfig
