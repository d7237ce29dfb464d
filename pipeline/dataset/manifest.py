"""`manifest.json`: the contract between the labelling job and the readers of a labelled dataset."""

from collections.abc import Collection, Iterable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.dataset.schema import SCHEMA_VERSION, SCHEMA_VERSION_SPANS, spans_column
from scorers.errors import UserError
from scorers.languages import Languages
from scorers.paths import RelativePath
from scorers.registry import LANGUAGE_FIELD, ColumnName, ScorerSpec
from scorers.settings import describe_first_error
from scorers.shell import phf
from scorers.stored import Count, JsonObject

MANIFEST_NAME = "manifest.json"
# Upper bound of `Ledger.units`: readers look for as many units as a file claims.
MOST_UNITS = 100_000_000
# The reason in quarantine of a record that `phf purge` removed: its tombstone.
PURGED = "purged"


class DamagedError(UserError):
    """A file of a dataset has changed since the dataset was sealed."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _check_options(options: dict[str, Any]) -> dict[str, Any]:
    if taken := {"kind", "spans", "languages", "language_field"} & options.keys():
        raise ValueError(f"{min(taken)} is not an option")
    return options


class ScorerEntry(_Part):
    """The scorer of a column: `kind` and `options` rebuild it, `fingerprint` identifies it.

    `spans` says whether the column `<column>_spans` holds what it found; it is omitted if not. `languages` are those
    that it speaks, with the field that names a document's; they are omitted if it scored all documents.
    """

    kind: str
    options: Annotated[JsonObject, AfterValidator(_check_options)]
    fingerprint: str
    spans: bool = Field(default=False, exclude_if=lambda spans: not spans)
    languages: Languages = Field(default=(), exclude_if=lambda languages: not languages)
    language_field: str = Field(default=LANGUAGE_FIELD, exclude_if=lambda field: field == LANGUAGE_FIELD)

    @property
    def spec(self) -> ScorerSpec:
        """The specification that rebuilds the scorer."""
        return ScorerSpec(
            kind=self.kind,
            spans=self.spans,
            languages=self.languages,
            language_field=self.language_field,
            **self.options,
        )

    def without_spans(self) -> "ScorerEntry":
        """The entry of the same scorer that stores no spans: equal for equal scores."""
        return self.model_copy(update={"spans": False})


class Threshold(_Part):
    """A sentence is aligned if its score is <= `value`, which is exactly a float32.

    `spec` is the user's setting: a number, or `p50` for the 50th percentile over all sentences (inverted CDF).
    `sentences` is the number of sentences with a score in the column, `aligned` how many of them are aligned.
    """

    value: float
    spec: str
    sentences: Count
    aligned: Count


class SourceEntry(_Part):
    """An input and its fingerprint: `size` in bytes, `sha256` of the whole content, number of `records`.

    `unread` counts the bytes that could not be read because of damage; it is the whole size if the end of the file is
    missing, since the size of the loss is unknown. It is omitted if 0, as in datasets of older versions.
    """

    uri: str
    size: Count
    sha256: str
    records: Count
    unread: Count = Field(default=0, exclude_if=lambda unread: not unread)


class LeftOut(_Part):
    """Files among the inputs that phf does not read: a type, their number, and the first names."""

    type: str
    files: Count
    uris: list[str]


class File(_Part):
    """A file of the dataset, its path relative to the dataset's root."""

    path: RelativePath
    size: Count
    sha256: str


class Shard(File):
    """A Parquet file of labelled rows."""

    rows: Count
    sentences: Count


class Ledger(_Part):
    """Conservation: `records == labelled + empty + sum(quarantined.values())`, in records.

    `quarantined` also counts the records that `phf purge` removed, under the reason `PURGED`.
    Empty texts are rows of the dataset too, without sentences. `sources_cut` counts inputs whose rest could not be read
    (a truncated stream): the number of lost records is unknown, so each such input is one more quarantine entry, not
    counted in `records`. `units` is the number of units of the corpus.
    `segments` are Parquet files with the same figures per unit; `quarantine` are Parquet files of references.
    """

    units: int = Field(ge=0, le=MOST_UNITS)
    records: Count
    labelled: Count
    empty: Count
    quarantined: dict[str, Count] = Field(default_factory=dict)
    sources_cut: Count = 0
    segments: list[File] = Field(default_factory=list)
    quarantine: list[File] = Field(default_factory=list)

    @property
    def balanced(self) -> bool:
        """Whether every record is accounted for exactly once."""
        return self.records == self.labelled + self.empty + sum(self.quarantined.values())

    @property
    def purged(self) -> int:
        """Records that `phf purge` removed."""
        return self.quarantined.get(PURGED, 0)

    @property
    def unlabelled(self) -> dict[str, int]:
        """By reason, the records that could not be labelled: all in quarantine but the purged ones."""
        return {reason: count for reason, count in self.quarantined.items() if reason != PURGED}


class Manifest(_Part):
    """The contents of a sealed dataset and how it was made. Only shards listed here are part of the dataset.

    Attributes:
        schema_version: version of the format, 2 if a scorer stores spans, else 1; a reader refuses any other.
        sealed: always true; a dataset without a sealed manifest is incomplete.
        generation: 1 after labelling, one more with each retag; names the folder under `data/`.
        created_by: distribution and version that wrote it.
        config: the resolved semantic configuration of the labelling job, without execution options.
        scorers: score columns in the order of the schema.
        thresholds: a threshold for every score column.
        sources: fingerprints of the inputs, in order.
        left_out: files among the inputs that phf did not read when the job was planned.
        shards: in the order of their rows.
        sentences, bytes_text: totals; `bytes_text` in UTF-8 bytes of `text`.
    """

    schema_version: Literal[1, 2] = SCHEMA_VERSION
    sealed: Literal[True] = True
    generation: int = Field(ge=1)
    created_by: str
    config: JsonObject
    scorers: dict[ColumnName, ScorerEntry]
    thresholds: dict[ColumnName, Threshold]
    sources: list[SourceEntry]
    left_out: list[LeftOut] = Field(default_factory=list, exclude_if=lambda left_out: not left_out)
    shards: list[Shard]
    ledger: Ledger
    sentences: Count
    bytes_text: Count

    @model_validator(mode="after")
    def _has_the_version_of_its_columns(self) -> "Manifest":
        if self.schema_version != schema_version(self.scorers.values()):
            raise ValueError("its schema version is not that of its columns")
        if taken := {spans_column(column) for column in self.spans} & self.scorers.keys():
            raise ValueError(f"{min(taken)} would be both scores and spans")
        return self

    @property
    def spans(self) -> list[str]:
        """The score columns that have spans, in the order of the schema."""
        return [column for column, entry in self.scorers.items() if entry.spans]

    @property
    def rows(self) -> int:
        """Rows of all shards: labelled and empty documents."""
        return sum(shard.rows for shard in self.shards)

    def to_json(self) -> str:
        """The bytes of `manifest.json`, the same for equal manifests."""
        return self.model_dump_json(indent=2) + "\n"


def schema_version(scorers: Iterable[ScorerEntry]) -> Literal[1, 2]:
    """The schema version of a dataset with the columns of these scorers."""
    return SCHEMA_VERSION_SPANS if any(entry.spans for entry in scorers) else SCHEMA_VERSION


def parse_manifest(text: str | bytes, where: str) -> Manifest:
    """Parse the content of a `manifest.json`; `where` is its URI, for messages.

    Raises:
        DamagedError: the text is not a valid manifest.
        UserError: the manifest has another schema version.
    """
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            if detail["loc"] == ("schema_version",):
                raise UserError(
                    f"{where} has schema version {detail['input']!r}, but this phf reads versions "
                    f"{SCHEMA_VERSION} and {SCHEMA_VERSION_SPANS}. "
                    "Label the corpus again, or use the phf that wrote it."
                ) from None
        raise DamagedError(
            f"{where} is damaged at {describe_first_error(error)}. "
            "Run `phf repair` where the dataset was labelled to write it again; replace a copy with a new one."
        ) from None


def no_manifest(uri: str, found: Collection[str] | None) -> UserError:
    """The error for a location without a manifest.

    Args:
        uri: the location.
        found: names of the folders in it, each with a slash; None or empty if nothing is there.
    """
    if not found:
        return UserError(f"There is nothing at {uri}. Give the --output of a `phf label` run.")
    # A job records itself first, and has units once the first one is committed.
    if "job/" in found or "units/" in found:
        return UserError(
            f"{uri} is incomplete: labelling has not finished. `{phf('status', uri)}` shows how far it is; if it was "
            "stopped, run the same `phf label` command again to resume it."
        )
    return UserError(
        f"{uri} is not a labelled dataset: it has no {MANIFEST_NAME}. Give the --output of a `phf label` run."
    )
