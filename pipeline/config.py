"""The configuration of a labelling job: what can change the dataset, and apart from it what changes its speed alone."""

from typing import Any, Literal

from pydantic import BaseModel, ByteSize, ConfigDict, Field

from scorers.registry import ScorerSpec


class LabelExecution(BaseModel):
    """Options that change no byte of the dataset.

    Attributes:
        workers: CPU actors; None for one a core of this machine, or of the cluster that `address` names.
        address: Ray cluster to join, such as `auto` or `ray://head:10001`; None starts a local one of its own.
        devices: torch device by column; a scorer on `cuda` gets actors with a GPU of its own.
        gpu_workers: actors for each scorer on a GPU.
        threads: threads a CPU actor computes with.
        batch_tokens: padded tokens that a network gets at once.
        deadline_s: seconds a document may take in one scorer.
        unit_deadline_s: seconds a unit may take before its worker is killed and the unit is tried again.
        attempts: how often a unit whose worker dies is tried.
        max_quarantined: records in quarantine above which the job ends with status 3.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    workers: int | None = Field(default=None, ge=1)
    address: str | None = None
    devices: dict[str, str] = Field(default_factory=dict)
    gpu_workers: int = Field(default=1, ge=1)
    threads: int = Field(default=1, ge=1)
    batch_tokens: int = Field(default=16_384, ge=64)
    deadline_s: float = Field(default=60.0, gt=0)
    unit_deadline_s: float = Field(default=3600.0, gt=0)
    attempts: int = Field(default=3, ge=1)
    max_quarantined: int = Field(default=0, ge=0)


class LabelConfig(BaseModel):
    """A labelling job. Everything but `output` and `execution` is semantic: resume refuses a change of it.

    Attributes:
        inputs: files, folders or globs, local or URIs of pyarrow.fs.
        output: local folder or s3://, gs://, az:// prefix.
        text_field, id_field: fields of a record; a record without the id field is named `source#position`.
        meta_fields: fields carried through as JSON; None for all but text and id.
        kind: what the documents are; auto takes `.py` for Python and all else for prose.
        scorers: by column; `{kind, **options}`.
        thresholds: by column; a number, or `pNN` for a percentile over all sentences. Columns not named take p50.
        unit_size: bytes of input in a unit, the piece of work that is lost with a worker.
        shard_size: bytes of rows in a shard of the dataset, in memory.
        max_record_size: bytes of the longest record; a longer one is quarantined and never held in memory.
        quarantine_text: keep the text of quarantined records beside their reference.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    inputs: list[str] = Field(min_length=1)
    output: str
    text_field: str = "text"
    id_field: str = "id"
    meta_fields: list[str] | None = None
    kind: Literal["auto", "prose", "python"] = "auto"
    scorers: dict[str, ScorerSpec] = Field(min_length=1)
    thresholds: dict[str, float | str] = Field(default_factory=dict)
    unit_size: ByteSize = Field(default=ByteSize(256 * 1024), ge=1)
    shard_size: ByteSize = Field(default=ByteSize(256_000_000), ge=1)
    max_record_size: ByteSize = Field(default=ByteSize(64 * 1024 * 1024), ge=1)
    quarantine_text: bool = False
    execution: LabelExecution = Field(default_factory=LabelExecution)

    def semantic(self) -> dict[str, Any]:
        """What can change the dataset, as plain JSON values; written into the job and the manifest."""
        return self.model_dump(mode="json", exclude={"output", "execution"})


class ExecutionSettings(BaseModel):
    """What may be set where a job is there already."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    execution: LabelExecution = Field(default_factory=LabelExecution)
