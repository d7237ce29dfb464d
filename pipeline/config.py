"""The configuration of a labelling job. Settings that can change the dataset are separate from execution settings."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ByteSize, ConfigDict, Field, ValidationError, model_validator

from pipeline.quarantine_limit import check_limit
from scorers.contract import Execution
from scorers.registry import ScorerSpec, given_field
from scorers.settings import describe_first_error
from scorers.trusted_pickles import trusted_by_environment

MAX_DOCUMENT_SIZE = 1024 * 1024

Seconds = Annotated[float, Field(gt=0)]


class PoolOptions(BaseModel):
    """A pool of workers and the resources of each worker. A string is short for the device alone."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    device: str = "cpu"
    """Torch device of the scorer, such as `cpu` or `cuda`."""
    cpus: float | None = Field(default=None, ge=0)
    """CPUs that a worker reserves; None for `threads` of them on the CPU, and 0 on other devices."""
    gpus: float | None = Field(default=None, ge=0)
    """GPUs that a worker reserves, possibly a fraction; None for one on devices other than `cpu`."""
    memory: ByteSize | None = Field(default=None, ge=1)
    """Bytes of memory that a worker reserves in Ray; `memory_limit` enforces a limit."""
    min: int = Field(default=1, ge=1)
    """Least number of workers."""
    max: int | None = Field(default=None, ge=1)
    """Most workers; between the two the pool grows while it is the bottleneck, and shrinks when it is idle. None for as
    many as the cluster has room for.
    """

    @model_validator(mode="before")
    @classmethod
    def _device_alone(cls, value: Any) -> Any:
        return {"device": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _possible(self) -> "PoolOptions":
        if self.max is not None and self.max < self.min:
            raise ValueError(f"max ({self.max}) is less than min ({self.min})")
        if self.gpus is not None and self.gpus > 1 and self.gpus % 1:
            raise ValueError(f"gpus must be a fraction of one or a whole number, not {self.gpus:g}")
        return self


class LabelExecution(BaseModel):
    """Options that change no byte of the dataset."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    workers: int | None = Field(default=None, ge=0)
    """Fixed number of workers for all scorers without a pool of their own; None for one per core of this machine, or of
    the cluster at `address`, which follows as nodes join and leave it. 0: one process of this machine, without Ray,
    which is what a job of a single unit gets if neither workers, address, pools nor metrics_port are given.
    """
    address: str | None = None
    """Ray cluster to join, such as `auto` or `ray://head:10001`; None to start a local Ray."""
    pools: dict[str, PoolOptions] = Field(default_factory=dict)
    """Pools by column, for scorers with workers of their own; `cpu` is the pool of all other scorers. A string is short
    for the device alone: `{toxicity: cuda}`.
    """
    threads: int = Field(default=1, ge=1)
    """Threads per worker."""
    batch_tokens: int = Field(default=16_384, ge=64)
    """Most tokens in a batch of a network."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Precision of networks; `auto` chooses by device. On a GPU scores vary within the tolerance stated in
    `scorers.contract.Execution`.
    """
    compile: bool = True
    """Use torch.compile where it makes networks faster."""
    deadline_s: Seconds = 60.0
    """Seconds that a document may take in one scorer, plus the same again for every 50,000 characters."""
    deadlines: dict[str, Seconds] = Field(default_factory=dict)
    """Deadlines by column, where they differ from `deadline_s`."""
    unit_deadline_s: Seconds = 3600.0
    """Seconds that a unit may take before its worker is killed and the unit is tried record by record."""
    memory_limit: ByteSize | None = Field(default=None, ge=1)
    """Bytes of memory that a worker may use before it is killed and its unit is tried record by record. None for no
    limit other than the machine's.
    """
    attempts: int = Field(default=3, ge=1)
    """How often a unit that raises is tried, and how often a record may kill its process, hang or exceed the memory
    limit before it is quarantined.
    """
    max_quarantined: Annotated[int | str, BeforeValidator(check_limit)] = 0
    """Quarantine entries above which the job ends with status 3: a count such as 5, or a share of the records such as
    0.1%.
    """
    log: str | None = Field(default=None, min_length=1)
    """File to which JSON lines are appended, `-` for stderr; None for no log."""
    metrics_port: int | None = Field(default=None, ge=1, le=65535)
    """Port at which a local Ray serves Prometheus metrics; None for no metrics. Each node of the cluster at `address`
    serves them at the port that it was started with.
    """
    trusted_sha256: frozenset[str] = Field(default_factory=trusted_by_environment)
    """Hashes of pickles that the user vouches for; see `scorers.trusted_pickles`."""

    def of(self, column: str) -> Execution:
        """The execution options for the scorer of a column."""
        return Execution(
            device=self.pools[column].device if column in self.pools else "cpu",
            threads=self.threads,
            batch_tokens=self.batch_tokens,
            precision=self.precision,
            compile=self.compile,
            deadline_s=self.deadlines.get(column, self.deadline_s),
            trusted_sha256=self.trusted_sha256,
        )


class LabelConfig(BaseModel):
    """A labelling job. All settings except `output` and `execution` are semantic: resume refuses to change them."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    inputs: list[str] = Field(min_length=1)
    """Files, folders or globs: local paths, URIs of pyarrow.fs, or datasets on the Hugging Face hub (`hf://`)."""
    output: str
    """Local folder or s3://, gs://, az:// prefix."""
    text_field: str = "text"
    """Field of a record with its text."""
    id_field: str = "id"
    """Field of a record with its id; a record without it gets the id `source#position`."""
    meta_fields: list[str] | None = None
    """Fields carried through as JSON; None for all but text and id."""
    sentences: Literal["auto", "given", "split"] = "auto"
    """`split` splits every text into sentences; `given` uses the strings of a text field that is a list as sentences
    (and splits other texts); `auto` is `given` if the first record has such a field.
    """
    kind: Literal["auto", "prose", "python"] = "auto"
    """Kind of the documents; `auto` treats `.py` files as Python and all others as prose."""
    scorers: dict[str, ScorerSpec] = Field(min_length=1)
    """Scorers by column: `{kind, **options}`."""
    thresholds: dict[str, float | str] = Field(default_factory=dict)
    """Thresholds by column: a number, or `pNN` for a percentile over all sentences. The default is p50."""
    unit_size: ByteSize = Field(default=ByteSize(256 * 1024), ge=1)
    """Bytes of input per unit, the work that is lost with a worker."""
    shard_size: ByteSize = Field(default=ByteSize(256_000_000), ge=1)
    """Size of a shard's rows in memory, in bytes."""
    max_record_size: ByteSize = Field(default=ByteSize(64 * 1024 * 1024), ge=1)
    """Most bytes of a record; a longer one is quarantined, and never held in memory."""
    max_document_size: ByteSize = Field(default=ByteSize(MAX_DOCUMENT_SIZE), ge=1)
    """UTF-8 bytes of text above which a document is large; scorers get no more text at once, unless a single sentence
    is longer.
    """
    large_documents: Literal["split", "quarantine"] = "split"
    """How to treat large documents: `split` cuts them at sentence boundaries into parts, scores these separately and
    joins them again into one row; `quarantine` quarantines them. Large Python files are always quarantined, because
    linters need the whole file.
    """
    quarantine_text: bool = False
    """Keep the text of quarantined records, not only their reference."""
    execution: LabelExecution = Field(default_factory=LabelExecution)
    """Options that change no byte of the dataset."""

    def semantic(self) -> dict[str, Any]:
        """The settings that can change the dataset, as plain JSON values; stored in the job and the manifest."""
        return self.model_dump(mode="json", exclude={"output", "execution"})


def stored_config(config: Mapping[str, Any], output: str) -> LabelConfig:
    """Read a configuration that `LabelConfig.semantic` wrote; the file may be untrusted.

    Args:
        config: content of the file.
        output: the present output of the job.

    Raises:
        ValueError: the configuration is invalid; names the key.
    """
    if lacking := {"inputs", "scorers", "thresholds"} - config.keys():
        raise ValueError(f"{min(lacking)}: required, but missing")
    if foreign := {"output", "execution"} & config.keys():
        raise ValueError(f"{min(foreign)}: only the user may set it")
    try:
        return LabelConfig.model_validate({**config, "output": output})
    except ValidationError as error:
        raise ValueError(describe_first_error(error)) from None


class ScoreConfig(BaseModel):
    """Score columns to add to a labelled dataset."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    dataset: str
    """Output of `phf label`."""
    scorers: dict[str, ScorerSpec] = Field(default_factory=dict)
    """Scorers by column, as in `LabelConfig`."""
    spans: list[str] = Field(default_factory=list)
    """Columns of the dataset to score again with the same scorers, to add spans: where they found something."""
    thresholds: dict[str, float | str] = Field(default_factory=dict)
    """Thresholds by column; the default is p50."""
    execution: LabelExecution = Field(default_factory=LabelExecution)
    """Options that change no byte of the dataset."""

    @property
    def output(self) -> str:
        """The output, which is the dataset itself."""
        return self.dataset


RunConfig = LabelConfig | ScoreConfig


class ExecutionSettings(BaseModel):
    """The settings of commands that work on an existing job."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    execution: LabelExecution = Field(default_factory=LabelExecution)
    """Options that change no byte of the dataset."""


def given_fields(config: LabelConfig) -> dict[str, str]:
    """Fields of the corpus that scorers read, by column; see `scorers.registry.given_field`."""
    fields = {column: given_field(column, spec) for column, spec in config.scorers.items()}
    return {column: field for column, field in fields.items() if field is not None}


def language_fields(config: LabelConfig) -> dict[str, str]:
    """Fields of the corpus that name a record's language, by column of a scorer that does not speak all."""
    return {column: spec.language_field for column, spec in config.scorers.items() if spec.languages}


def read_fields(config: LabelConfig) -> frozenset[str]:
    """All fields of the corpus that scorers need beside the text: `Record.given`."""
    return frozenset({*given_fields(config).values(), *language_fields(config).values()})
