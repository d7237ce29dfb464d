"""The options of the labelling commands, each with the setting that it sets, and their parsing to a configuration."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from scorers.errors import UserError
from scorers.flags import Sets
from scorers.settings import Whole, load_settings, parse_override, read_yaml
from scorers.trusted_pickles import trusted_by_user

if TYPE_CHECKING:
    from pipeline.config import LabelConfig, LabelExecution, ScoreConfig

Config = TypeVar("Config", "LabelConfig", "ScoreConfig")


class LargeDocumentsOption(StrEnum):
    """How to treat documents larger than `--max-document-size`."""

    SPLIT = "split"
    QUARANTINE = "quarantine"


class KindOption(StrEnum):
    """The kind of the documents."""

    AUTO = "auto"
    PROSE = "prose"
    PYTHON = "python"


Inputs = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="INPUT...",
        help="Files, folders or globs: .jsonl, .ndjson or .json (one object per line), .txt, .py and Common Crawl's "
        "WET (.warc.wet), all of them also compressed (.gz, .zst, .bz2, .xz), .parquet, .arrow; local, s3://, gs://, "
        "hdfs:// or hf://datasets/OWNER/NAME@REVISION/PATH, where revision and path are optional.",
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
        help="Output of the dataset: a folder, or s3://, gs://, az://.",
        show_default=False,
    ),
    Sets("output"),
]
UnitSize = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Input per unit, the work that is lost with a worker. (default: 256KiB)",
        show_default=False,
    ),
    Sets("unit_size"),
]
ShardSize = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Size of a shard's rows in memory. (default: 256MB)", show_default=False),
    Sets("shard_size"),
]
Threads = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Threads per scorer. (default: 1)", show_default=False),
    Sets("execution.threads"),
]
Scorers = Annotated[
    list[str] | None,
    typer.Option(
        "--scorer",
        "-s",
        metavar="COLUMN[=KIND[:VALUE]]",
        help="A score column and its scorer, such as pii, toxicity=linear, tox=detoxify:unbiased, or "
        "toxicity=column:scores for scores that the corpus contains; repeatable. `phf scorers` lists the kinds.",
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
Spans = Annotated[
    list[str] | None,
    typer.Option(
        "--spans",
        metavar="COLUMN",
        help="Also store where the scorer of COLUMN found something, in the column COLUMN_spans; repeatable.",
        show_default=False,
    ),
]
TextField = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Field with the text: a string, or a list of strings, which are its sentences. (default: text)",
        show_default=False,
    ),
    Sets("text_field"),
]
IdField = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Field with the record's id, if it has one. (default: id)", show_default=False),
    Sets("id_field"),
]
Kind = Annotated[
    KindOption | None,
    typer.Option(
        help="Kind of the documents; auto treats .py files as Python and all others as prose. (default: auto)",
        show_default=False,
    ),
    Sets("kind"),
]
MaxDocumentSize = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="UTF-8 size above which a document is large; scorers get no more text at once. (default: 1MiB)",
        show_default=False,
    ),
    Sets("max_document_size"),
]
LargeDocuments = Annotated[
    LargeDocumentsOption | None,
    typer.Option(
        help="Score large documents in parts, cut between sentences and joined again into one row; or quarantine them, "
        "as is always done with large Python files. (default: split)",
        show_default=False,
    ),
    Sets("large_documents"),
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=0, metavar="N", help="Worker processes; 0: one, without Ray. (default: one per core)", show_default=False
    ),
    Sets("execution.workers"),
]
Address = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Ray cluster to join, such as auto or ray://head:10001. (default: start a local Ray)",
        show_default=False,
    ),
    Sets("execution.address"),
]
MaxQuarantined = Annotated[
    str | None,
    typer.Option(
        metavar="N|SHARE",
        help="Quarantined records above which the exit status is 3: a count such as 5, or a share such as 0.1%. "
        "(default: 0)",
        show_default=False,
    ),
    Sets("execution.max_quarantined"),
]
Log = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Append a log of JSON lines to FILE; - for stderr, where it replaces the progress display.",
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
        help="Serve Prometheus metrics at PORT while the local Ray is running.",
        show_default=False,
    ),
    Sets("execution.metrics_port"),
]
Plan = Annotated[
    bool,
    typer.Option(
        "--plan",
        help="Print the nodes, hours, cost, storage and memory that the job would take, and exit.",
        rich_help_panel="Plan",
    ),
]
PlanBytes = Annotated[
    str | None,
    typer.Option(
        "--plan-bytes",
        metavar="SIZE",
        help="With --plan: UTF-8 text of a corpus that is not there yet, such as 10TB, instead of inputs.",
        show_default=False,
        rich_help_panel="Plan",
    ),
]
PlanRates = Annotated[
    Path | None,
    typer.Option(
        "--plan-rates",
        metavar="FILE",
        help="With --plan: the output of phf bench scorers --json. (default: published rates)",
        show_default=False,
        rich_help_panel="Plan",
    ),
]
PlanNodes = Annotated[
    int | None,
    typer.Option(
        "--plan-nodes",
        min=1,
        max=1_000_000,
        metavar="N",
        help="With --plan: number of nodes. (default: 1)",
        show_default=False,
        rich_help_panel="Plan",
    ),
]
PlanHours = Annotated[
    float | None,
    typer.Option(
        "--plan-hours",
        min=0.001,
        max=1e6,
        metavar="H",
        help="With --plan: hours in which all must be done, to find the number of nodes.",
        show_default=False,
        rich_help_panel="Plan",
    ),
]
PlanCores = Annotated[
    int | None,
    typer.Option(
        "--plan-cores",
        min=1,
        max=100_000,
        metavar="N",
        help="With --plan: cores of a node. (default: those of this machine)",
        show_default=False,
        rich_help_panel="Plan",
    ),
]
PlanGpus = Annotated[
    int | None,
    typer.Option(
        "--plan-gpus",
        min=0,
        max=1000,
        metavar="N",
        help="With --plan: GPUs of a node.",
        show_default=False,
        rich_help_panel="Plan",
    ),
]
PlanPrice = Annotated[
    float | None,
    typer.Option(
        "--plan-price",
        min=0,
        max=1e9,
        metavar="X",
        help="With --plan: price of a node for an hour, to print the cost in the same currency.",
        show_default=False,
        rich_help_panel="Plan",
    ),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", "-c", metavar="FILE", help="YAML file with the same settings; flags override it."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Set any setting by its YAML key, such as execution.attempts=5; overrides everything else.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]


def label_config(
    given: Mapping[str, Any],
    *,
    scorers: Sequence[str] | None = None,
    thresholds: Sequence[str] | None = None,
    spans: Sequence[str] | None = None,
    config: Path | None = None,
    overrides: Sequence[str] | None = None,
) -> "LabelConfig":
    """Build the configuration of `phf label` from options, a YAML file and `--set`.

    A `--scorer` replaces the file's whole scorer of that column.

    Args:
        given: settings from options, nested; see `scorers.flags.given_settings`.
        scorers: values of `--scorer`.
        thresholds: values of `--threshold`.
        spans: values of `--spans`, which may only name columns that are scored.
        config: YAML file.
        overrides: values of `--set`.

    Raises:
        UserError: a malformed option, an unknown key or an invalid value; names the key.
    """
    from pipeline.config import LabelConfig

    settings = _config(LabelConfig, given, scorers, thresholds, config, overrides)
    settings, others = _with_spans(settings, spans or [])
    if others:
        raise UserError(
            f"--spans {others[0]}: no scorer fills that column; the columns are: {', '.join(settings.scorers)}."
        )
    return settings


def score_config(
    given: Mapping[str, Any],
    *,
    scorers: Sequence[str] | None = None,
    thresholds: Sequence[str] | None = None,
    spans: Sequence[str] | None = None,
    config: Path | None = None,
    overrides: Sequence[str] | None = None,
) -> "ScoreConfig":
    """Build the configuration of `phf score`, in the same way as `label_config`.

    `spans` may also name columns that the dataset has.

    Raises:
        UserError: a malformed option, an unknown key or an invalid value; names the key.
    """
    from pipeline.config import ScoreConfig

    given = {**given, "spans": list(spans)} if spans else given
    settings = _config(ScoreConfig, given, scorers, thresholds, config, overrides)
    settings, others = _with_spans(settings, settings.spans)
    return settings.model_copy(update={"spans": others})


def _with_spans(settings: Config, columns: Sequence[str]) -> tuple[Config, list[str]]:
    """Set `spans` of the scorers of these columns; return also the columns without a scorer, each once."""
    scorers = {
        column: spec.model_copy(update={"spans": True}) if column in columns else spec
        for column, spec in settings.scorers.items()
    }
    others = [column for column in dict.fromkeys(columns) if column not in scorers]
    return settings.model_copy(update={"scorers": scorers}), others


def _config(
    model: type[Config],
    given: Mapping[str, Any],
    scorers: Sequence[str] | None,
    thresholds: Sequence[str] | None,
    config: Path | None,
    overrides: Sequence[str] | None,
) -> Config:
    from pipeline.sealing.thresholds import parse_flags
    from scorers.registry import parse_scorers

    # A --scorer is the whole scorer of its column.
    specs = {column: Whole(spec.model_dump()) for column, spec in parse_scorers(scorers or []).items()}
    flags = {**given, "scorers": specs, "thresholds": parse_flags(thresholds or [])}
    file = None if config is None else read_yaml(config)
    layers = (file or {}, flags, *map(parse_override, overrides or []))
    if not any(layer.get("scorers") or layer.get("spans") for layer in layers):
        raise UserError("No scorer is given. Add one or more, such as --scorer toxicity=linear or --scorer pii.")
    settings = load_settings(model, file=file, flags=flags, overrides=overrides or [])
    return settings.model_copy(update=_trusting(settings))


def _trusting(settings: "LabelConfig | ScoreConfig") -> dict[str, "LabelExecution"]:
    """Trust the pickles whose hashes the user gives in scorer options; hashes that a job records are not trusted."""
    execution = settings.execution
    given = trusted_by_user(spec.options for spec in settings.scorers.values())
    return {"execution": execution.model_copy(update={"trusted_sha256": execution.trusted_sha256 | given})}


def execution_config(given: Mapping[str, Any], overrides: Sequence[str] | None = None) -> "LabelExecution":
    """Build the execution settings, for commands that take all other settings from the job.

    Raises:
        UserError: an unknown key or an invalid value; names the key.
    """
    from pipeline.config import ExecutionSettings

    return load_settings(ExecutionSettings, flags=given, overrides=overrides or []).execution
