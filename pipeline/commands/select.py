"""`phf select`: of several rewrites of a text keep the best-scored one that is close enough to it."""

from typing import Annotated, Any

import typer

from pipeline.options import (
    AsJson,
    ConfigFile,
    Inputs,
    Kind,
    MaxQuarantined,
    Overrides,
    Scorers,
    TextField,
    label_config,
)
from scorers.console import print_json
from scorers.flags import given_settings


def select(
    candidates: Inputs = None,
    scorers: Scorers = None,
    group: Annotated[
        str | None,
        typer.Option(metavar="FIELD", help="Field that is equal in all candidates for one text.", show_default=False),
    ] = None,
    original: Annotated[
        str | None,
        typer.Option(
            metavar="FIELD",
            help="Field of each candidate with the text that was rewritten. Without it, nothing is compared.",
            show_default=False,
        ),
    ] = None,
    min_similarity: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Least chrF of a candidate against the original: 1 is the same text. (default: 0.5)",
            show_default=False,
        ),
    ] = None,
    keep_original: Annotated[
        bool,
        typer.Option("--keep-original", help="Where no candidate is acceptable, keep the original."),
    ] = False,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="A .jsonl, .jsonl.gz or .jsonl.zst file; local, or s3://, gs://, az://. Nothing is overwritten.",
            show_default=False,
        ),
    ] = None,
    text_field: TextField = None,
    kind: Kind = None,
    max_quarantined: MaxQuarantined = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Of each group of candidates write the one with the lowest score that is similar enough to the original.

    A score is the mean over the sentences, added up over the columns of several scorers. Of equal candidates the more
    similar one is chosen, then the first. Candidates that cannot be scored are counted and not chosen. Texts are scored
    in this process, and memory holds what is chosen.

    Exit status: 0 done; 2 wrong usage; 3 done, but too many candidates could not be scored.

    Example: phf select rewrites.jsonl --group source --original before --scorer pii --output chosen.jsonl.zst
    """
    from pipeline.labelling.select import Rule
    from pipeline.labelling.select import select as select_candidates
    from pipeline.quarantine_limit import QuarantineLimit
    from scorers.amounts import format_count
    from scorers.errors import IncompleteError, QuarantineLimitError, UserError

    if group is None or output is None:
        raise UserError("phf select needs --group FIELD and --output FILE.")
    if original is None and (min_similarity is not None or keep_original):
        raise UserError("--min-similarity and --keep-original need --original FIELD, the text that was rewritten.")
    settings = label_config(
        given_settings(select, locals()) | {"output": "select"}, scorers=scorers, config=config, overrides=overrides
    )
    rule = Rule(group, original, 0.5 if min_similarity is None else min_similarity, keep_original)
    try:
        selected = select_candidates(settings, rule, output)
    except OSError as error:
        raise IncompleteError(
            f"Cannot read the candidates or write {output}: {error.strerror or type(error).__name__}. Nothing was "
            "left there."
        ) from None
    facts = {"output": output, **selected.to_dict()}
    if as_json:
        print_json(facts)
    else:
        _show(facts)
    limit = QuarantineLimit.parse(settings.execution.max_quarantined)
    if selected.exceeds(limit):
        count = selected.reasons.total()
        places = ", ".join(f"{each.source}#{each.position} ({each.reason})" for each in selected.quarantined[:3])
        raise QuarantineLimitError(
            f"{count:,} of {format_count(selected.records, 'candidate')} could not be scored: {places}"
            f"{', …' if count > 3 else ''}; --max-quarantined is {limit.text}. {output} holds the "
            "choice among the others."
        )


def _show(facts: dict[str, Any]) -> None:
    from pipeline.dataset.manifest import LeftOut
    from pipeline.lost_inputs import left_out_line
    from scorers.amounts import format_count
    from scorers.formatting import number
    from scorers.terminal import Terminal

    console = Terminal(soft_wrap=True)
    written = format_count(facts["chosen"] + facts["kept_original"], "text")
    chosen, kept = format_count(facts["chosen"], "candidate"), format_count(facts["kept_original"], "original")
    read = f"{format_count(facts['groups'], 'group')} with {format_count(facts['records'], 'record')}"
    lines = [f"{facts['output']} holds {written}: {chosen} and {kept}, of {read}."]
    if facts["left_out_groups"]:
        lines.append(f"Left out: {format_count(facts['left_out_groups'], 'group')} without an acceptable candidate.")
    if facts["too_far"]:
        lines.append(f"Not similar enough: {format_count(facts['too_far'], 'candidate')}.")
    if facts["quarantined"]:
        lines.append(
            "Not scored: " + ", ".join(f"{reason} {count:,}" for reason, count in facts["quarantined"].items())
        )
    for column, mean in facts["mean_scores"]["chosen"].items():
        before = facts["mean_scores"].get("original", {}).get(column)
        lines.append(
            f"{column}: mean score of the chosen candidates {number(mean)}"
            + ("" if before is None else f", of their originals {number(before)}")
        )
    if line := left_out_line([LeftOut.model_validate(each) for each in facts["left_out"]]):
        lines.append(line)
    for line in lines:
        console.print(line, markup=False)
