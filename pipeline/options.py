"""Options of the commands that label: each with the setting that it gives, and how they become a configuration."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from scorers.errors import UserError
from scorers.flags import Sets
from scorers.settings import load_settings, read_yaml
from scorers.trust import trusted_by_user

if TYPE_CHECKING:
    from pipeline.config import LabelConfig, LabelExecution, ScoreConfig

Config = TypeVar("Config", "LabelConfig", "ScoreConfig")


class LargeDocumentsOption(StrEnum):
    """What becomes of documents that are larger than `--max-document-size`."""

    SPLIT = "split"
    QUARANTINE = "quarantine"


class KindOption(StrEnum):
    """What the documents are."""

    AUTO = "auto"
    PROSE = "prose"
    PYTHON = "python"


Inputs = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="INPUT...",
        help="Files, folders or globs: .jsonl, .ndjson or .json (an object a line), .txt, .py and WET of Common Crawl "
        "(.warc.wet), each also compressed (.gz, .zst, .bz2, .xz), .parquet, .arrow; local, s3://, gs://, hdfs:// or "
        "hf://datasets/OWNER/NAME@REVISION/PATH, of which revision and path may be left out.",
        show_default=False,
    ),
    Sets("inputs"),
]
Output = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        metavar="DIR",
        help="Where the dataset goes: a folder, or s3://, gs://, az://.",
        show_default=False,
    ),
    Sets("output"),
]
UnitSize = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE", help="Input a unit, the work lost with a worker. (default: 256KiB)", show_default=False
    ),
    Sets("unit_size"),
]
ShardSize = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Rows a shard, in memory. (default: 256MB)", show_default=False),
    Sets("shard_size"),
]
Threads = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Threads a scorer computes with. (default: 1)", show_default=False),
    Sets("execution.threads"),
]
Scorers = Annotated[
    list[str] | None,
    typer.Option(
        "--scorer",
        "-s",
        metavar="COLUMN[=KIND[:VALUE]]",
        help="A column of scores and what fills it, such as pii, toxicity=linear, tox=detoxify:unbiased, or "
        "toxicity=column:scores for scores that the corpus has; again for more columns. `phf scorers` lists the kinds.",
        show_default=False,
    ),
]
Thresholds = Annotated[
    list[str] | None,
    typer.Option(
        "--threshold",
        "-t",
        metavar="COLUMN=VALUE",
        help="A sentence is aligned when its score is at most VALUE: a number, or p50 for the 50th percentile over all "
        "sentences. (default: p50)",
        show_default=False,
    ),
]
TextField = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Field with the text: a string, or a list of strings, its sentences. (default: text)",
        show_default=False,
    ),
    Sets("text_field"),
]
IdField = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Field with a record's own id, if it has one. (default: id)", show_default=False),
    Sets("id_field"),
]
Kind = Annotated[
    KindOption | None,
    typer.Option(
        help="What the documents are; auto takes .py for Python and all else for prose. (default: auto)",
        show_default=False,
    ),
    Sets("kind"),
]
MaxDocumentSize = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Text in UTF-8 above which a document is large; scorers get no more at once. (default: 1MiB)",
        show_default=False,
    ),
    Sets("max_document_size"),
]
LargeDocuments = Annotated[
    LargeDocumentsOption | None,
    typer.Option(
        help="Score large documents in parts, cut between sentences, that join again in one row; or put them in "
        "quarantine, as a large file of Python always is. (default: split)",
        show_default=False,
    ),
    Sets("large_documents"),
]
Workers = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Worker processes. (default: one a core)", show_default=False),
    Sets("execution.workers"),
]
Address = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Ray cluster to join, such as auto or ray://head:10001. (default: a local Ray of its own)",
        show_default=False,
    ),
    Sets("execution.address"),
]
MaxQuarantined = Annotated[
    str | None,
    typer.Option(
        metavar="N|SHARE",
        help="Records in quarantine above which the exit status is 3: a count such as 5, or a share such as 0.1%. "
        "(default: 0)",
        show_default=False,
    ),
    Sets("execution.max_quarantined"),
]
Log = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Append a log of JSON lines to FILE; - for stderr, in place of the lines for people.",
        show_default=False,
    ),
    Sets("execution.log"),
]
MetricsPort = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=65535,
        metavar="PORT",
        help="Serve metrics for Prometheus at PORT while the local Ray runs.",
        show_default=False,
    ),
    Sets("execution.metrics_port"),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", "-c", metavar="FILE", help="YAML with the same settings; flags win over it."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Any setting by its key in the YAML, such as execution.attempts=5; wins over everything.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]


def label_config(
    given: Mapping[str, Any],
    *,
    scorers: Sequence[str] | None = None,
    thresholds: Sequence[str] | None = None,
    config: Path | None = None,
    overrides: Sequence[str] | None = None,
) -> "LabelConfig":
    """The configuration of `phf label` that options, a YAML file and `--set` make together.

    A `--scorer` replaces the file's scorer of that column as a whole.

    Args:
        given: settings by options, nested; see `scorers.flags.given_settings`.
        scorers: as `--scorer` takes them.
        thresholds: as `--threshold` takes them.
        config: a YAML file.
        overrides: as `--set` takes them.

    Raises:
        UserError: an option of another form, an unknown key, a value that does not fit; names the key.
    """
    from pipeline.config import LabelConfig

    return _config(LabelConfig, given, scorers, thresholds, config, overrides)


def score_config(
    given: Mapping[str, Any],
    *,
    scorers: Sequence[str] | None = None,
    thresholds: Sequence[str] | None = None,
    config: Path | None = None,
    overrides: Sequence[str] | None = None,
) -> "ScoreConfig":
    """The configuration of `phf score`, by the rules of `label_config`.

    Raises:
        UserError: an option of another form, an unknown key, a value that does not fit; names the key.
    """
    from pipeline.config import ScoreConfig

    return _config(ScoreConfig, given, scorers, thresholds, config, overrides)


def _config(
    model: type[Config],
    given: Mapping[str, Any],
    scorers: Sequence[str] | None,
    thresholds: Sequence[str] | None,
    config: Path | None,
    overrides: Sequence[str] | None,
) -> Config:
    from pipeline.sealing.thresholds import parse_flags

    specs, values = _scorers_and_file(scorers, config, overrides)
    flags = {**given, "scorers": specs, "thresholds": parse_flags(thresholds or [])}
    settings = load_settings(model, defaults=values, flags=flags, overrides=overrides or [])
    return settings.model_copy(update=_trusting(settings))


def _trusting(settings: "LabelConfig | ScoreConfig") -> dict[str, "LabelExecution"]:
    """The execution, which trusts the pickles whose hashes the user gives: not those that a job records."""
    execution = settings.execution
    given = trusted_by_user(spec.options for spec in settings.scorers.values())
    return {"execution": execution.model_copy(update={"trusted_sha256": execution.trusted_sha256 | given})}


def _scorers_and_file(
    scorers: Sequence[str] | None, config: Path | None, overrides: Sequence[str] | None
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """The scorers that flags name, and the YAML file without those of the same columns."""
    from scorers.registry import parse_scorers

    specs = {column: spec.model_dump() for column, spec in parse_scorers(scorers or []).items()}
    values = read_yaml(config) if config is not None else {}
    if isinstance(values.get("scorers"), dict):
        values["scorers"] = {column: each for column, each in values["scorers"].items() if column not in specs}
    if not specs and not values.get("scorers") and not any(each.startswith("scorers.") for each in overrides or []):
        raise UserError("No scorer is given. Add one or more, such as --scorer toxicity=linear or --scorer pii.")
    return specs, values


def execution_config(given: Mapping[str, Any], overrides: Sequence[str] | None = None) -> "LabelExecution":
    """How to run what is scored, for commands that take the rest from the job.

    Raises:
        UserError: an unknown key, or a value that does not fit; names the key.
    """
    from pipeline.config import ExecutionSettings

    return load_settings(ExecutionSettings, flags=given, overrides=overrides or []).execution
