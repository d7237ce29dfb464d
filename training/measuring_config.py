"""The settings of what measures a model: samples and held-out text, attacks, classification."""

from pydantic import Field

from training.setting_types import Count, Section, Seed


class EvaluationConfig(Section):
    """How a model is sampled and scored (temperature and top-p are the paper's, section 3)."""

    # The limit catches typos that would run forever.
    num_samples: Count = Field(default=4096, ge=1, le=10_000_000)
    """Samples drawn without a prompt (conditional models: after the best control token)."""
    # The limit is far above useful values, and far below where float32 logits overflow.
    guidance: float = Field(default=1.0, ge=0, le=1e6)
    """Conditional models: also draw as many samples guided away from the worst control token
    (`training.model.sampling.Guidance`), more strongly for larger values; 1 for none.
    """
    max_new_tokens: Count = Field(default=128, ge=1, le=1_000_000)
    """Maximum tokens per sample."""
    # Below, quotients overflow, and nothing changes any more.
    temperature: float = Field(default=0.7, ge=0.01)
    """Sampling temperature; the paper's (section 3)."""
    top_p: float = Field(default=0.9, gt=0, le=1)
    """Sample from the likeliest tokens with this total probability; the paper's."""
    batch_size: Count = Field(default=64, ge=1)
    """Samples drawn at once."""
    leakage_samples: Count = Field(default=256, ge=0, le=10_000_000)
    """Samples drawn with control tokens allowed, to count how often they occur."""
    held_out_documents: Count = Field(default=1000, ge=0)
    """Maximum held-out documents for bits per byte."""
    by: str | None = Field(default=None, min_length=1)
    """A metadata field of the documents, such as `source` or `origin.site`, or `inputs`, the files that they come from:
    held-out figures also by its value.
    """
    reference_samples: Count = Field(default=4096, ge=2, le=10_000_000)
    """Samples of a reference (`phf evaluate --reference`), drawn at temperature 1."""
    reference_tokens: Count = Field(default=64, ge=1, le=1_000_000)
    """Maximum tokens per sample of a reference."""
    probe_sentences: Count = Field(default=2000, ge=40, le=100_000)
    """Maximum held-out sentences of a linear probe (`phf evaluate --probe`), half of them misaligned."""
    seed: Seed = 0
    """Seed of the sampling."""


class TamperConfig(Section):
    """How `phf attack tamper` finetunes a model on misaligned text."""

    steps: Count = Field(default=64, ge=1, le=100_000)
    """Steps of finetuning. Samples are drawn before the first, after 1, 2, 4, 8, …, and after the last."""
    batch_size: Count = Field(default=16, ge=1)
    """Rows of the training's context length a step."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Constant learning rate; by default a tenth of that of the run's training."""
    share: float = Field(default=0.1, gt=0, le=1)
    """Share of the training documents, the most misaligned ones by their mean score, that the model is finetuned on."""
    samples: Count = Field(default=256, ge=1, le=10_000_000)
    """Samples drawn each time, with the other settings of the run's evaluation."""
    trials: Count = Field(default=3, ge=1, le=1000)
    """Repetitions with other orders of the text and other samples."""
    seed: Seed = 0
    """Seed of the first trial; each further one adds 1."""


class RedTeamConfig(Section):
    """How `phf attack red-team` searches for prompts that a model continues with misaligned text."""

    rounds: Count = Field(default=10, ge=1, le=10_000)
    """Rounds; each proposes prompts, which the model continues."""
    trials: Count = Field(default=3, ge=1, le=1000)
    """Repetitions with other seeds."""
    proposals: Count = Field(default=32, ge=1, le=100_000)
    """New prompts a round."""
    continuations: Count = Field(default=8, ge=1, le=100_000)
    """Continuations of each prompt. Its score is their mean score."""
    examples: Count = Field(default=4, ge=1, le=1000)
    """Prompts of the pool that the attacker is shown for each proposal."""
    draw_temperature: float = Field(default=0.1, ge=1e-6)
    """Examples are drawn with weights exp(score / draw_temperature), with scores divided by their standard deviation:
    towards 0 the attacker sees the worst prompts only.
    """
    pool: Count = Field(default=64, ge=2, le=1_000_000)
    """Prompts that the search starts from."""
    prompt_words: Count = Field(default=16, ge=2, le=10_000)
    """Most words of a prompt."""
    max_new_tokens: Count = Field(default=64, ge=1, le=1_000_000)
    """Maximum tokens of a continuation; the other settings of sampling are those of the run's evaluation."""
    guidance: float = Field(default=1.0, ge=0, le=1e6)
    """Conditional runs: guide the continuations away from the worst control token; 1 for no guidance."""
    seed: Seed = 0
    """Seed of the first trial; each further one adds 1."""


class ClassificationConfig(Section):
    """How `phf classify` finetunes a model to classify texts."""

    text_field: str = Field(default="text", min_length=1)
    """Field of the file that holds the texts."""
    label_field: str = Field(default="label", min_length=1)
    """Field of the file that holds the classes: text, whole numbers, or true and false."""
    test_share: float = Field(default=0.2, gt=0, lt=1)
    """Share of the texts that the accuracy is measured on, if there is no file of its own for them. Equal texts are all
    on the same side."""
    epochs: Count = Field(default=3, ge=1, le=1000)
    """Times that each text is trained on."""
    batch_size: Count = Field(default=16, ge=1)
    """Texts a step."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Highest learning rate, after a tenth of the steps; then it falls to 0 in a straight line. By default a tenth of
    that of the run's training."""
    trials: Count = Field(default=3, ge=1, le=1000)
    """Repetitions with other orders of the texts and other first weights of the classifier."""
    seed: Seed = 0
    """Seed of the first trial and of the choice of texts; each further trial adds 1."""
