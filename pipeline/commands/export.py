"""`phf export`: write a labelled dataset in the format of the PHF authors' datasets, or for other trainers."""

import pkgutil
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.options import AsJson
from scorers.console import print_json, set_up_logs
from scorers.errors import IncompleteError, UserError

if TYPE_CHECKING:
    from pipeline.export.documents import Exported

PAPER = "paper"
# Formats of token ids, by name, each with the function that writes it, as `module:name`: tokenizers live in training,
# which registers them (see `phf.py`).
TOKEN_FORMATS: dict[str, str] = {}
_TEXT, _TOKENS = "Text with control tokens", "Token ids"


class TagsOption(StrEnum):
    """Where control tokens stand."""

    SENTENCE = "sentence"
    DOCUMENT = "document"
    NONE = "none"


def export(
    dataset: Annotated[
        str, typer.Argument(metavar="DATASET", help="Labelled dataset: the --output of `phf label`, a folder or a URI.")
    ],
    column: Annotated[str, typer.Option("--column", "-c", help="Score column to write, or to tag by.")],
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="A .jsonl, .jsonl.gz, .jsonl.zst or .parquet file, or a folder for Parquet files; local, or s3://, "
            "gs://, az://. Other formats than the paper's always write a folder. Nothing is overwritten.",
        ),
    ],
    form: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="NAME",
            help="paper, the PHF authors' format; text with control tokens: jsonl, jsonl.gz, jsonl.zst, parquet or "
            "mds; or token ids: megatron.",
        ),
    ] = PAPER,
    tags: Annotated[
        TagsOption | None,
        typer.Option(
            "--tags",
            help="A control token before each sentence, before each document, by its mean score, or none. "
            "(default: sentence)",
            show_default=False,
            rich_help_panel=_TEXT,
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            "--threshold",
            metavar="NUMBER",
            help="Aligned means a score of at most NUMBER. (default: the dataset's)",
            show_default=False,
            rich_help_panel=_TEXT,
        ),
    ] = None,
    drop_tags: Annotated[
        float | None,
        typer.Option(
            "--drop-tags",
            min=0,
            max=1,
            metavar="SHARE",
            help="Share of sentences without a control token: those of objective.drop_tags. (default: 0)",
            show_default=False,
            rich_help_panel=_TEXT,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed",
            min=0,
            metavar="N",
            help="Seed of that choice: training.seed. (default: 42)",
            show_default=False,
            rich_help_panel=_TEXT,
        ),
    ] = None,
    max_mean: Annotated[
        float | None,
        typer.Option(
            "--max-mean",
            metavar="NUMBER",
            help="Leave out documents whose mean score is above NUMBER, as the objective filtering does.",
            rich_help_panel=_TEXT,
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            "--tokenizer",
            metavar="NAME",
            help="Hugging Face tokenizer: a folder, or a name on the hub.",
            rich_help_panel=_TOKENS,
        ),
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option(
            "--objective",
            metavar="NAME",
            help="mle, filtering, conditional, rwr or target. (default: mle)",
            show_default=False,
            rich_help_panel=_TOKENS,
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="A setting of `phf train`, such as objective.threshold=0.01 or data.held_out=0.",
            rich_help_panel=_TOKENS,
        ),
    ] = None,
    redact: Annotated[
        list[str] | None,
        typer.Option(
            "--redact",
            metavar="COLUMN",
            help="Replace what the scorer of COLUMN found by its type, such as {{EMAIL}}; needs its spans (phf label "
            "--spans); repeatable.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a labelled dataset as rows of texts, meta, scores, avg_score and num_sents, the PHF authors' format.

    Documents to which the scorer does not apply are left out and counted; with --redact, also those that its scorer has
    not searched. What --redact hides in the texts may still be in their meta, which is written as it is.

    Other formats hold text with control tokens, for any trainer: rows of id and text, about a file per shard, and
    export.json, which lists them. An export that was interrupted continues by the same command.

    The format megatron holds the stream that `phf train` reads: tokens.bin and .idx, the tokenizer with its control
    tokens, and for an objective that masks or weights tokens, weights.bin and .idx.

    To read the paper's back: phf label FILE --text-field texts --scorer toxicity=column:scores --output DIR

    Example: phf export labelled --column toxicity --output labelled.jsonl.gz

    Example: phf export labelled --column toxicity --format jsonl --output tagged

    Example: phf export labelled --column toxicity --format megatron --tokenizer tokenizers/8k --objective conditional
    --output tokens
    """
    from dataclasses import asdict

    from pipeline.dataset import open_dataset
    from pipeline.export.paper import export as export_paper
    from pipeline.export.text import ExportedText, Tagging, export_text
    from pipeline.export.text_files import WRITERS
    from pipeline.labelling.monitoring.console import reporter_for
    from scorers.amounts import format_count
    from scorers.terminal import Terminal

    of_text: dict[str, Any] = {
        "tags": tags and tags.value,
        "threshold": threshold,
        "drop_tags": drop_tags,
        "seed": seed,
        "max_mean": max_mean,
    }
    of_tokens = {"tokenizer": tokenizer, "objective": objective, "set": overrides}
    given = {name: value for name, value in of_text.items() if value is not None}
    known = [PAPER, *WRITERS, *TOKEN_FORMATS]
    if form not in known:
        raise UserError(f"There is no format {form!r}; choose one of: {', '.join(known)}.")
    for what, formats, options in (
        ("text with control tokens", list(WRITERS), given),
        ("token ids", list(TOKEN_FORMATS), {name: value for name, value in of_tokens.items() if value is not None}),
    ):
        if options and form not in formats:
            option = next(iter(options)).replace("_", "-")
            raise UserError(f"--{option} is for {what} (--format {', '.join(formats)}). Remove it, or change --format.")
    if form in TOKEN_FORMATS:
        if redact:
            raise UserError("--redact is for texts. Remove it, or choose another --format.")
        set_up_logs()
        write_tokens = pkgutil.resolve_name(TOKEN_FORMATS[form])
        with reporter_for(Terminal(stderr=True)) as reporter:
            try:
                figures = write_tokens(
                    dataset,
                    column,
                    output,
                    tokenizer=tokenizer,
                    objective=objective,
                    overrides=overrides or [],
                    progress=lambda stage, done, total: reporter.measure(stage.capitalize(), done, total),
                )
            except OSError as error:
                raise IncompleteError(
                    f"Cannot write {output}: {error.strerror or error}. The same command continues."
                ) from None
        _show_tokens(figures, dataset, column, output, form, as_json=as_json)
        return
    tagging = Tagging(**given)
    opened = open_dataset(dataset)
    written: Exported
    with reporter_for(Terminal(stderr=True)) as reporter:
        measure = partial(reporter.measure, "Exporting")
        try:
            if form == PAPER:
                written = export_paper(opened, column, output, measure, redact=redact or [])
            else:
                written = export_text(opened, column, output, form, tagging, measure, redact=redact or [])
        except OSError as error:
            rest = "Nothing was left there." if form == PAPER else "The same command continues."
            raise IncompleteError(f"Cannot write {output}: {error.strerror or error}. {rest}") from None
    if as_json:
        print_json({"dataset": dataset, "column": column, "output": output, "format": form, **asdict(written)})
        return
    console = Terminal(soft_wrap=True)
    console.print(
        f"{output} holds {format_count(written.documents, 'document')} with "
        f"{format_count(written.sentences, 'sentence')}.",
        markup=False,
    )
    reasons = {
        f"that no scorer of {', '.join(redact or [])} has searched": written.unsearched,
        f"to which the scorer of {column!r} does not apply": written.left_out,
    }
    if isinstance(written, ExportedText):
        reasons |= {
            f"whose mean score is above {max_mean}": written.filtered,
            "without a sentence": written.empty,
            "whose text contains a control token": written.marked,
        }
    for reason, count in reasons.items():
        if count:
            console.print(f"Left out: {format_count(count, 'document')} {reason}.", markup=False)


def _show_tokens(figures: dict[str, Any], dataset: str, column: str, output: str, form: str, *, as_json: bool) -> None:
    from scorers.amounts import format_count
    from scorers.terminal import Terminal

    if as_json:
        print_json({"dataset": dataset, "column": column, "output": output, "format": form, **figures})
        return
    console = Terminal(soft_wrap=True)
    for warning in figures["warnings"]:
        console.print(f"Warning: {warning}", markup=False)
    console.print(
        f"{output} holds {format_count(figures['documents'], 'document')} with "
        f"{format_count(figures['tokens'], 'token')}.",
        markup=False,
    )
    for reason, count in figures["left_out"].items():
        if count:
            console.print(f"Left out: {format_count(count, 'document')} ({reason.replace('_', ' ')}).", markup=False)
