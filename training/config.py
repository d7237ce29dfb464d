"""The configuration of a training run: a typed section for each component, the same fields in YAML and `--set`."""

from fractions import Fraction
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from scorers.settings import read_number

ObjectiveName = Literal["mle", "filtering", "conditional", "unlikelihood", "unlikelihood_soft", "rwr", "awr"]


def _whole(value: Any) -> Any:
    if isinstance(value, str) and "e" in value.lower():
        # `1e6`, which a YAML file holds as text.
        value = read_number(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def as_written(number: float) -> Fraction:
    """The number that a user wrote in decimals, exactly: counts that are a share of something come from it."""
    return Fraction(repr(number))


Count = Annotated[int, BeforeValidator(_whole)]
# NumPy takes no negative one, and torch is given a million times as much, in 64 bits.
Seed = Annotated[Count, Field(ge=0, lt=2**32)]


class _Section(BaseModel):
    # Infinity and NaN are no settings; a report that held one could not be read again.
    # The string below a field is what `phf config` says of it.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class MixtureConfig(_Section):
    """A dataset that is mixed into `data.dataset`."""

    dataset: str
    """Folder or URI of a sealed labelled dataset."""
    share: float = Field(ge=0.001, lt=1)
    """Of the run's blocks, and so of its tokens. What the shares leave of 1 is that of `data.dataset`."""
    column: str | None = None
    """Its score column; by default that of `data.dataset`. With `data.columns` it needs all of those."""
    threshold: float | None = Field(default=None, ge=0)
    """As `objective.threshold`, for this dataset. None takes that one where it is given and both are scored by the
    same scorer, else this dataset's own.
    """
    thresholds: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    """The same by column, where `data.columns` are several."""
    store: str | None = None
    """Folder of its token store; see `data.store`."""


class DataConfig(_Section):
    """What is trained on."""

    dataset: str
    """Folder or URI of a sealed labelled dataset."""
    column: str | None = None
    """Score column; by default the task's name. With `columns`, the one that reports are about."""
    columns: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(default_factory=dict)
    """Several score columns and their weights, such as `{toxicity: 1, pii: 0.5}`: see `training.data.combined`.
    Documents without a score in any of them are left out.
    """
    token_scores: bool = False
    """A token carries its sentence's score only where it overlaps what the scorer has found in the sentence, else 0;
    for scorers that can say where (scrubadub). See `training.data.token_spans`.
    """
    tokenizer: str | None = None
    """Path or name of a Hugging Face tokenizer; None trains a byte-level BPE on the dataset."""
    vocab_size: Count = Field(default=8192, ge=260)
    """Entries of the tokenizer that is trained when none is given."""
    context_length: Count | None = Field(default=None, ge=2)
    """Tokens a block; None takes the preset's, at most what the model has positions for."""
    held_out: float = Field(default=0.01, ge=0, lt=1)
    """Share of documents kept out of training, chosen by a seeded hash of their text."""
    held_out_seed: Seed = 0
    """Seed of that hash."""
    store: str | None = None
    """Folder of the token store; None puts it beside a local dataset, or into the user's cache."""
    mixture: tuple[MixtureConfig, ...] = ()
    """Datasets that are trained on besides. They share the tokenizer, which is trained on all of them where none is
    given, and the held-out documents; what is evaluated is `dataset`.
    """
    allow_lossy_tokenizer: bool = False
    """Train on what a tokenizer has changed in more than one document of a thousand (`training.data.round_trips`)."""
    allow_mixed_scorers: bool = False
    """Let an objective whose loss computes with scores go over columns of different scorers."""
    document_masking: bool = False
    """Tokens attend only to their own document; positions begin at 0 with each document, and with the block where a
    document goes on from the one before.
    """

    @property
    def shares(self) -> tuple[Fraction, ...]:
        """Of `dataset` and of each of the mixture, exactly as they are written in decimals; their sum is 1."""
        others = [as_written(each.share) for each in self.mixture]
        return (1 - sum(others, Fraction()), *others)

    @model_validator(mode="after")
    def _leaves_a_share(self) -> Self:
        if self.shares[0] < Fraction(1, 1000):
            raise ValueError(
                f"the shares of mixture add up to {float(1 - self.shares[0]):g}; what they leave of 1 is the share "
                "of the dataset itself, and has to be 0.001 at least. Lower them"
            )
        return self


class ModelConfig(_Section):
    """What is trained."""

    name: str = "gpt2"
    """A size by name (`tiny`, `gpt2`, ...), or path or name of a Hugging Face causal LM config or checkpoint."""
    pretrained: bool = False
    """Start from the weights of the checkpoint `name` instead of a random initialisation."""
    overrides: dict[str, Any] = Field(default_factory=dict)
    """Fields of the Hugging Face config to change, such as `n_layer: 4`."""
    pad_vocab_to: Count | None = Field(default=None, ge=1)
    """The embeddings get so many rows of zeros that their number is a multiple of this; 1 for none. None is 128 on a
    GPU, whose matrix products want it, where the architecture lets it, and 1 on a CPU. Losses are the same, and
    the exported model is without them.
    """
    attention: Literal["auto", "sdpa", "flash_attention_2", "flash_attention_3", "eager"] = "auto"
    """Auto is torch's scaled dot product where the architecture has it; `flash_attention_2` and `flash_attention_3`
    need their package, a GPU and half precision.
    """
    kernels: Literal["torch", "liger"] = "torch"
    """`liger` replaces norms, rotary embeddings and gated layers by Liger's fused ones (GPU, extra `liger`)."""


class ObjectiveConfig(_Section):
    """How it is trained; None takes the preset's value. See `training.objectives`."""

    name: ObjectiveName = "mle"
    """The objective."""
    threshold: float | None = Field(default=None, ge=0)
    """Sentences (filtering: documents, by their mean) with score <= threshold are aligned. None takes the dataset's,
    or with the paper's scorer of the task the preset's.
    """
    thresholds: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    """The same by column, where `data.columns` are several; a sentence is aligned when it is by each."""
    quantiles: Count | None = Field(default=None, ge=2, le=1000)
    """Conditional: classes of equally many sentences, by score, with a control token each, in place of aligned and
    misaligned (Quark, arXiv 2205.13636, "quantization"). Equal scores stay in one class, so there may come out
    fewer. Two are called `<|aligned|>` and `<|misaligned|>`, more `<|quantile_1|>` (the best) on.
    """
    mask_control_tokens: bool = False
    """Conditional: learn nothing about when a control token comes, only what comes after it (MeCo, arXiv 2501.01956,
    does so with metadata).
    """
    mask_above: float | Annotated[str, Field(pattern=r"^p\d{1,2}(\.\d+)?$")] | None = None
    """Sentences with a higher score are read but not learnt ("masked SLUNG", arXiv 2505.03052); a score, or a
    percentile of the stream's sentences such as `p99`. With `data.columns` it is on the scale of what is made of
    them, with a mixture the percentile is that of `data.dataset`. See `training.loss_mask`.
    """
    drop_tags: float | None = Field(default=None, ge=0, le=1)
    """Conditional: share of sentences whose control token is left out."""
    alpha: float | None = Field(default=None, ge=0)
    """Unlikelihood: weight of the unlikelihood term; awr: weight of the policy term."""
    beta: float | None = Field(default=None, gt=0)
    """Rwr, awr: temperature of the weights."""
    w_max: float = Field(default=1000.0, gt=0)
    """Rwr, awr: upper clip of the weights."""
    starts_at: float = Field(default=0.0, ge=0, lt=1)
    """Share of the steps that come before the preferences: they train plainly, without tags or filter, on documents
    of their own.
    """
    cooldown: float = Field(default=0.0, ge=0, lt=1)
    """Conditional: share of the steps, the last, that train on text without tags, so that the model does without
    them (MeCo, arXiv 2501.01956), on documents of their own.
    """

    @model_validator(mode="after")
    def _leaves_steps(self) -> Self:
        if self.starts_at + self.cooldown >= 1:
            raise ValueError(
                f"starts_at={self.starts_at:g} and cooldown={self.cooldown:g} leave no step for the objective. "
                "Lower them"
            )
        return self


class TrainingConfig(_Section):
    """The optimisation."""

    num_tokens: Count = Field(default=3_300_000_000, ge=1)
    """Tokens to train on in all; the number of steps is the whole batches in it, at least one."""
    batch_size: Count = Field(default=64, ge=1)
    """Blocks in one optimiser step over all ranks."""
    micro_batch_size: Count | None = Field(default=None, ge=1)
    """Blocks a rank passes through the model at once; None picks a divisor of its share of the batch: on a CPU the
    largest up to 8, on a GPU the largest that fits by the estimate of `phf train --plan`.
    """
    learning_rate: float = Field(default=5e-4, gt=0)
    """Peak of the learning rate."""
    schedule: Literal["linear", "cosine", "wsd", "constant"] = "linear"
    """How the rate goes on after the linear warm-up: it falls to its end in a line or as a cosine, stays and then
    falls (`wsd`), or stays.
    """
    warmup_ratio: float = Field(default=0.01, ge=0, le=1)
    """Share of the steps that warm up, rounded up to whole steps."""
    warmup_steps: Count | None = Field(default=None, ge=0)
    """How many steps warm up, in place of warmup_ratio. A run that is extended by num_tokens keeps the steps of warm-up
    that it began with.
    """
    min_learning_rate_ratio: float = Field(default=0.0, ge=0, le=1)
    """The rate at the end, relative to the peak."""
    decay_ratio: float = Field(default=0.2, gt=0, le=1)
    """With the schedule `wsd` (warm up, stay, decay), the share of the steps that decay."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Of AdamW; biases and norms do not decay."""
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    """Of AdamW."""
    adam_beta2: float = Field(default=0.999, ge=0, lt=1)
    """Of AdamW."""
    adam_epsilon: float = Field(default=1e-8, gt=0)
    """Of AdamW."""
    gradient_clipping: float = Field(default=1.0, ge=0)
    """Norm at which gradients are clipped; 0 for never."""
    skip_sigmas: float | None = Field(default=None, gt=0)
    """The update of a batch whose loss is so many standard deviations above the mean of the last 128 is skipped;
    None for never. It needs ZeRO.
    """
    max_skipped: Count = Field(default=10, ge=1)
    """Skipped updates in a row that end the run. With ZeRO, those whose loss or gradient is no number are skipped
    always; without, the first of them ends the run.
    """
    seed: Seed = 42
    """Of the initialisation, the order of the blocks, dropped tags and dropout."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Auto is bf16 where the device computes in it, else fp32."""
    activation_checkpointing: bool = False
    """Compute each layer again on the way back instead of keeping what it computed: less memory, a third more time,
    the same numbers.
    """
    compile: bool = False
    """Let torch.compile fuse the network; the first step takes minutes. Not with ZeRO stage 3."""
    tf32: bool = False
    """Matrix products of float32 on a GPU in TF32: 10 bits of mantissa instead of 23, several times as fast."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed's ZeRO stage; at least 1 with fp16 or bf16."""
    offload: Literal["none", "optimizer", "parameters"] = "none"
    """What waits in the CPU's memory while a GPU does not need it: nothing, the optimiser's state (ZeRO stage 1 to
    3), or the parameters too (ZeRO stage 3).
    """
    deepspeed: str | None = None
    """Path of a user's own DeepSpeed JSON, merged under these settings."""
    hang_timeout_s: float = Field(default=3600.0, gt=0)
    """Seconds after which a step that does not end, its data and what it waits for included, or a checkpoint that
    the loop waits for, is taken to hang: the rank writes where each of its threads is into `stacks/` of the run's
    folder, and ends with status 1.
    """
    log_every: Count = Field(default=10, ge=0)
    """Steps from one line of `metrics.jsonl` to the next; 0 for none."""
    save_every: Count = Field(default=1000, ge=0)
    """Steps from one checkpoint to the next; 0 for one at the end alone."""
    evaluate_every: Count = Field(default=0, ge=0)
    """Steps from one evaluation to the next, in which the model is sampled and the samples are scored; 0 for none."""
    validate_every: Count | None = Field(default=None, ge=0)
    """Steps from one measurement of the validation loss to the next, besides that at the end: held-out text is
    predicted, and nothing is sampled. None is so often that it takes about a fiftieth of the time, where there is
    held-out text; 0 never.
    """
    keep_checkpoints: Count = Field(default=2, ge=1)
    """How many of the newest checkpoints stay. With the schedules `constant` and `wsd` one is made and stays besides
    where a longer run would begin to differ: where the decay or the second phase begins.
    """
    keep_every: Count = Field(default=0, ge=0)
    """Checkpoints of a step that is a multiple of it stay too; 0 for none."""
    keep_best: Count = Field(default=0, ge=0)
    """How many of the best checkpoints by `best_metric` stay too."""
    best_metric: str | None = None
    """What makes a checkpoint the best: `validation_loss`; a figure of the evaluations at its step (`misalignment`,
    `expected_maximum`, `hit_rate`, `bits_per_byte`); or `loss`, the mean of the logged training losses since the
    checkpoint before it.
    """
    best_mode: Literal["min", "max"] = "min"
    """Whether the lowest or the highest value is the best."""
    save_async: bool = False
    """Go on training while a checkpoint is written and hashed; the loop stands still only while the state is copied.
    From the first save to the end of the run that takes host memory as large as a checkpoint, over all ranks: in
    fp32 16 bytes a parameter, in half precision 14.
    """

    def steps(self, context_length: int) -> int:
        """Optimiser steps: the whole batches in `num_tokens`, at least one."""
        return max(1, self.num_tokens // (self.batch_size * context_length))


class EvaluationConfig(_Section):
    """How a model is sampled and scored (temperature and top-p are the paper's, section 3)."""

    # Beyond what anybody waits for; a slip of the keyboard should not run without end.
    num_samples: Count = Field(default=4096, ge=1, le=10_000_000)
    """Samples drawn without a prompt (conditional models: after the best control token)."""
    # Far above what makes sense, and far below where logits in float32 overflow.
    guidance: float = Field(default=1.0, ge=0, le=1e6)
    """Conditional models: draw as many samples besides that are guided away from the worst control token
    (`training.model.sampling.Guidance`), the further the larger; 1 for none.
    """
    max_new_tokens: Count = Field(default=128, ge=1, le=1_000_000)
    """Tokens a sample at most."""
    # Below, quotients overflow, and nothing changes any more.
    temperature: float = Field(default=0.7, ge=0.01)
    """Of the sampling; the paper's (section 3)."""
    top_p: float = Field(default=0.9, gt=0, le=1)
    """Of the sampling: the likeliest tokens that have this probability together; the paper's."""
    batch_size: Count = Field(default=64, ge=1)
    """Samples drawn at once."""
    leakage_samples: Count = Field(default=256, ge=0, le=10_000_000)
    """Samples drawn with control tokens allowed, to count how often they occur."""
    held_out_documents: Count = Field(default=1000, ge=0)
    """Held-out documents that bits per byte are measured on, at most."""
    seed: Seed = 0
    """Of the sampling."""


class WandbConfig(_Section):
    """Weights & Biases (extra `wandb`)."""

    project: str = "phf"
    """Project there."""
    entity: str | None = None
    """User or team there; None for your own."""
    name: str | None = None
    """Name of the run there; None for that of its folder."""
    mode: Literal["online", "offline"] = "online"
    """`offline` writes files into the run's folder, for `wandb sync`."""


class MlflowConfig(_Section):
    """MLflow (extra `mlflow`)."""

    experiment: str = "phf"
    """Experiment there."""
    name: str | None = None
    """Name of the run there; None for that of its folder."""
    tracking_uri: str | None = None
    """A server, or a folder; None takes MLFLOW_TRACKING_URI, or `mlflow/` in the run's folder."""


class TrackioConfig(_Section):
    """trackio (extra `trackio`)."""

    project: str = "phf"
    """Project there."""
    name: str | None = None
    """Name of the run there; None for that of its folder."""
    space_id: str | None = None
    """A Space of Hugging Face; None keeps it on this machine (TRACKIO_DIR)."""


class TrackingConfig(_Section):
    """Where metrics go besides the console and `metrics.jsonl`."""

    tensorboard: bool = True
    """Event files in the run's folder."""
    wandb: WandbConfig | None = None
    """Weights & Biases (extra `wandb`); None for none, `{}` for its defaults. As all trackers it gets numbers,
    settings and facts of the run, from rank 0, and no text; one that fails does not end the run.
    """
    mlflow: MlflowConfig | None = None
    """MLflow (extra `mlflow`); None for none, `{}` for its defaults."""
    trackio: TrackioConfig | None = None
    """Trackio (extra `trackio`); None for none, `{}` for its defaults."""


class TrainConfig(_Section):
    """Everything that a run is made of, resolved and printed before step 0."""

    output: str
    """Folder of the run. A run that is there goes on."""
    task: str
    """`toxicity`, `pii` or `pep8` take the paper's presets, which replace the defaults below; any other score column
    takes toxicity's.
    """
    data: DataConfig
    """What is trained on."""
    model: ModelConfig = Field(default_factory=ModelConfig)
    """What is trained."""
    objective: ObjectiveConfig = Field(default_factory=ObjectiveConfig)
    """How it is trained; None takes the preset's value."""
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    """The optimisation."""
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    """How a model is sampled and scored, by `phf evaluate` and while training."""
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)
    """Where metrics go besides the console and `metrics.jsonl`."""
