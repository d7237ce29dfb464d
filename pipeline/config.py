"""The configuration of a labelling job: what can change the dataset, and apart from it what changes its speed alone."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ByteSize, ConfigDict, Field, ValidationError, model_validator

from pipeline.quarantine_limit import check_limit
from scorers.contract import Execution
from scorers.registry import ScorerSpec, given_field
from scorers.settings import what_is_wrong
from scorers.trust import trusted_by_environment

MAX_DOCUMENT_SIZE = 1024 * 1024

Seconds = Annotated[float, Field(gt=0)]


class PoolOptions(BaseModel):
    """A pool of workers, and what each of them takes of the cluster. The device alone, as a string, will do."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    device: str = "cpu"
    """Torch device of the scorer, such as `cpu` or `cuda`."""
    cpus: float | None = Field(default=None, ge=0)
    """CPUs that a worker takes; None for `threads` of them, or none on another device."""
    gpus: float | None = Field(default=None, ge=0)
    """GPUs that a worker takes, also a fraction of one; None for one on another device than `cpu`."""
    memory: ByteSize | None = Field(default=None, ge=1)
    """Bytes that a worker takes when Ray looks for a place for it; `memory_limit` is what holds it to them."""
    min: int = Field(default=1, ge=1)
    """Workers at least."""
    max: int | None = Field(default=None, ge=1)
    """Workers at most; between the two the pool grows while others wait for it and shrinks when it is idle. None for
    as many as the cluster has room for.
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

    workers: int | None = Field(default=None, ge=1)
    """Exactly so many workers for all scorers that have no pool of their own; None for one a core of this machine,
    or of the cluster that `address` names, more and fewer as nodes join and leave it.
    """
    address: str | None = None
    """Ray cluster to join, such as `auto` or `ray://head:10001`; None starts a local one of its own."""
    pools: dict[str, PoolOptions] = Field(default_factory=dict)
    """By column: that scorer has workers of its own; `cpu` for those of all the others. A device alone will do:
    `{toxicity: cuda}`.
    """
    threads: int = Field(default=1, ge=1)
    """Threads a worker computes with."""
    batch_tokens: int = Field(default=16_384, ge=64)
    """Tokens that a network computes at once."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """What a network computes in; auto is by device. On a GPU scores move within the tolerance that
    `scorers.contract.Execution` states.
    """
    compile: bool = True
    """Let torch.compile fuse networks where that pays."""
    deadline_s: Seconds = 60.0
    """Seconds a document may take in one scorer, and as much again for every 50,000 characters."""
    deadlines: dict[str, Seconds] = Field(default_factory=dict)
    """The same by column, where it is another."""
    unit_deadline_s: Seconds = 3600.0
    """Seconds a unit may take before its worker is killed and the unit is tried record by record."""
    memory_limit: ByteSize | None = Field(default=None, ge=1)
    """Bytes of memory; a worker that comes to hold more is killed and its unit tried record by record. None for no
    limit but the machine's.
    """
    attempts: int = Field(default=3, ge=1)
    """How often a unit that raises is tried; how often a record may kill its process, hang or outgrow the memory
    before it goes into quarantine.
    """
    max_quarantined: Annotated[int | str, BeforeValidator(check_limit)] = 0
    """Entries of quarantine above which the job ends with status 3: a count such as 5, or a share of the records
    such as 0.1%.
    """
    log: str | None = Field(default=None, min_length=1)
    """File to which JSON lines are appended, `-` for stderr; None for no log."""
    metrics_port: int | None = Field(default=None, ge=1, le=65535)
    """Where a local Ray serves metrics for Prometheus; None for no metrics. On a cluster that `address` names, each
    node serves them at the port that the cluster was started with.
    """
    trusted_sha256: frozenset[str] = Field(default_factory=trusted_by_environment)
    """Hashes of pickles that the user vouches for; see `scorers.trust`."""

    def of(self, column: str) -> Execution:
        """What the scorer of a column is told of all this."""
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
    """A labelling job. Everything but `output` and `execution` is semantic: resume refuses a change of it."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    inputs: list[str] = Field(min_length=1)
    """Files, folders or globs, local or URIs of pyarrow.fs, or datasets of the Hugging Face hub (`hf://`)."""
    output: str
    """Local folder or s3://, gs://, az:// prefix."""
    text_field: str = "text"
    """Field of a record that holds its text."""
    id_field: str = "id"
    """Field of a record that holds its id; a record without it is named `source#position`."""
    meta_fields: list[str] | None = None
    """Fields carried through as JSON; None for all but text and id."""
    sentences: Literal["auto", "given", "split"] = "auto"
    """`split` finds them in every text; `given` takes a text field that holds a list of strings for the sentences of
    the text (and splits others); `auto` is `given` where the first record has such a field.
    """
    kind: Literal["auto", "prose", "python"] = "auto"
    """What the documents are; auto takes `.py` for Python and all else for prose."""
    scorers: dict[str, ScorerSpec] = Field(min_length=1)
    """By column; `{kind, **options}`."""
    thresholds: dict[str, float | str] = Field(default_factory=dict)
    """By column; a number, or `pNN` for a percentile over all sentences. Columns not named take p50."""
    unit_size: ByteSize = Field(default=ByteSize(256 * 1024), ge=1)
    """Bytes of input in a unit, the piece of work that is lost with a worker."""
    shard_size: ByteSize = Field(default=ByteSize(256_000_000), ge=1)
    """Bytes of rows in a shard of the dataset, in memory."""
    max_record_size: ByteSize = Field(default=ByteSize(64 * 1024 * 1024), ge=1)
    """Bytes of the longest record; a longer one is quarantined and never held in memory."""
    max_document_size: ByteSize = Field(default=ByteSize(MAX_DOCUMENT_SIZE), ge=1)
    """UTF-8 bytes of text above which a document is large; scorers get no more at once, unless a single sentence is
    longer.
    """
    large_documents: Literal["split", "quarantine"] = "split"
    """What becomes of large documents: `split` cuts them at sentence boundaries into parts that are scored on their
    own and join again in their one row; `quarantine` leaves them out, as both do with a large file of Python,
    whose lines cannot be judged apart.
    """
    quarantine_text: bool = False
    """Keep the text of quarantined records beside their reference."""
    execution: LabelExecution = Field(default_factory=LabelExecution)
    """Options that change no byte of the dataset."""

    def semantic(self) -> dict[str, Any]:
        """What can change the dataset, as plain JSON values; written into the job and the manifest."""
        return self.model_dump(mode="json", exclude={"output", "execution"})


def stored_config(config: Mapping[str, Any], output: str) -> LabelConfig:
    """The configuration that `LabelConfig.semantic` wrote, read from a file that may be somebody else's.

    Args:
        config: what the file holds.
        output: where the job lies now.

    Raises:
        ValueError: it is none; names the key.
    """
    if lacking := {"inputs", "scorers", "thresholds"} - config.keys():
        raise ValueError(f"{min(lacking)}: required, but not there")
    if foreign := {"output", "execution"} & config.keys():
        raise ValueError(f"{min(foreign)}: must not be stored, as the user gives it")
    try:
        return LabelConfig.model_validate({**config, "output": output})
    except ValidationError as error:
        raise ValueError(what_is_wrong(error)) from None


class ScoreConfig(BaseModel):
    """More columns for a labelled dataset."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    dataset: str
    """Output of `phf label`."""
    scorers: dict[str, ScorerSpec] = Field(min_length=1)
    """By column, as in `LabelConfig`."""
    thresholds: dict[str, float | str] = Field(default_factory=dict)
    """By column; p50 for those that are not named."""
    execution: LabelExecution = Field(default_factory=LabelExecution)
    """Options that change no byte of the dataset."""

    @property
    def output(self) -> str:
        """Where the columns go: into the dataset."""
        return self.dataset


RunConfig = LabelConfig | ScoreConfig


class ExecutionSettings(BaseModel):
    """What may be set where a job is there already."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    execution: LabelExecution = Field(default_factory=LabelExecution)
    """Options that change no byte of the dataset."""


def given_by(config: LabelConfig) -> dict[str, str]:
    """Fields of the corpus that scorers ask for, by column; see `scorers.registry.given_field`."""
    fields = {column: given_field(column, spec) for column, spec in config.scorers.items()}
    return {column: field for column, field in fields.items() if field is not None}
