"""Write a comparison: one self-contained page, its figures as files, and the same facts as JSON."""

import json
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from scorers.amounts import format_count
from scorers.content_security import content_policy
from scorers.errors import UserError
from scorers.fingerprint import library_versions
from scorers.printing import printable
from training.comparison.differences import Difference, held_out_differences, misalignment_differences
from training.comparison.filters import Filters
from training.comparison.findings import findings
from training.comparison.load import Comparison, trained_on
from training.comparison.section import Plot
from training.comparison.sections import sections
from training.comparison.short import in_short
from training.comparison.style import COLOURS, Look
from training.comparison.svg import inline_svg
from training.comparison.tables import short_count, trained_tokens
from training.disk import refuse_links, write_atomically

PAGE_NAME = "index.html"
JSON_NAME = "comparison.json"

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def write_comparison(comparison: Comparison, output: Path) -> Path:
    """Write the page, its figures and `comparison.json` into a folder.

    Args:
        comparison: the comparison.
        output: a folder that is new, empty, or holds an earlier comparison, which is replaced.

    Returns:
        The path of the page.

    Raises:
        UserError: the folder holds something else, or cannot be written.
    """
    check_output(output)
    drawn: dict[str, bytes] = {}

    def figures(plot: Plot) -> list[Markup]:
        wide, narrow = plot.draw(Look()), plot.draw(Look(narrow=True))
        if wide.png is not None:
            drawn[plot.name] = wide.png
        return [
            inline_svg(drawing.svg, f"{plot.name}-{kind}", printable(plot.description), names, kind=kind)
            for kind, drawing in (("wide", wide), ("narrow", narrow))
        ]

    names = {light: name for name, (light, _) in COLOURS.items()}
    environment, context = _environment(), _context(comparison)
    style = environment.get_template("page.css").render(context)
    script = files(__package__).joinpath("page.js").read_text()
    page = environment.get_template("page.html.j2").render(
        context,
        figures=figures,
        policy=content_policy(style, script),
        style=Markup(style),  # noqa: S704 - our own files
        script=Markup(script),  # noqa: S704
    )
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name, png in drawn.items():
            write_atomically(output / f"{name}.png", png)
        write_atomically(output / JSON_NAME, _to_json(comparison))
        write_atomically(output / PAGE_NAME, page)
    except OSError as error:
        raise UserError(f"Cannot write the comparison to {output}: {error.strerror or error}.") from None
    return output / PAGE_NAME


def check_output(output: Path) -> None:
    """Refuse a folder that holds something other than an earlier comparison.

    Raises:
        UserError: it does, there is a link in it, or it is not a folder.
    """
    if output.is_dir():
        refuse_links(output)
        if any(output.iterdir()) and not (output / JSON_NAME).is_file():
            raise UserError(f"{output} holds something other than a comparison. Choose another --output.")
    elif output.exists():
        raise UserError(f"{output} is not a folder. Choose another --output.")


def to_dict(comparison: Comparison) -> dict[str, Any]:
    """The content of `comparison.json`."""
    return {
        "schema_version": 1,
        "created_by": f"phf {library_versions('phf')['phf']}",
        "baseline": comparison.baseline.label,
        "runs": [
            {
                "label": run.label,
                "path": str(run.folder.path),
                "facts": run.facts.model_dump(mode="json"),
                "report": run.report.model_dump(mode="json"),
            }
            for run in comparison.runs
        ],
        "differences": {
            "misalignment": [_difference(each) for each in misalignment_differences(comparison)],
            "bits_per_byte": [_difference(each) for each in held_out_differences(comparison)],
        },
        "findings": [
            {"title": each.title, "lines": each.lines} for each in [*in_short(comparison), *findings(comparison)]
        ],
        "mismatches": comparison.mismatches,
        "notes": comparison.left_out + comparison.differences,
    }


def _context(comparison: Comparison) -> dict[str, Any]:
    base = comparison.baseline
    runs = comparison.runs
    made = sections(comparison)
    return {
        "title": _title(comparison),
        "lede": _lede(comparison),
        "sections": made,
        "filters": Filters(comparison, made),
        "mismatches": comparison.mismatches,
        "left_out": comparison.left_out,
        "differences": comparison.differences,
        "baseline": comparison.base.label,
        "runs": runs,
        "colours": COLOURS,
        "versions": {**base.facts.versions, **base.report.versions},
        "made": f"{datetime.now(UTC):%-d %B %Y}",
        "created_by": f"phf {library_versions('phf')['phf']}",
        "kind": base.facts.kind,
    }


def _title(comparison: Comparison) -> str:
    column = comparison.baseline.report.column
    objectives = {run.facts.objective for run in comparison.runs}
    count = len(comparison.runs)
    if len(objectives) == count or len(objectives) == 1:
        what = "objective" if len(objectives) == count else "run"
        return f"{_count(count)} {what}{'' if count == 1 else 's compared'} on {column}"
    return f"{_count(len(objectives))} objectives compared on {column}, in {_count(count).lower()} runs"


def _count(count: int) -> str:
    return _NUMBERS[count].capitalize() if count < len(_NUMBERS) else str(count)


def _lede(comparison: Comparison) -> str:
    base = comparison.baseline
    count = len(comparison.runs)
    models = {(run.facts.model.name, short_count(run.facts.model.parameters)) for run in comparison.runs}
    name, parameters = next(iter(models))
    model = f"the model {name} ({parameters} parameters)" if len(models) == 1 else format_count(len(models), "model")
    tokens = {short_count(trained_tokens(run)) for run in comparison.runs}
    budget = f"{next(iter(tokens))} tokens" if len(tokens) == 1 else f"{' or '.join(sorted(tokens))} tokens"
    samples = {run.report.samples.number for run in comparison.runs}
    number = f"{next(iter(samples)):,}" if len(samples) == 1 else "their"
    each = "" if count == 1 else "each "
    judge = base.report.scorer.entry.kind
    trained = {trained_on(run) for run in comparison.runs}
    judged = f"judged by the scorer of the training data, {judge}"
    if trained != {base.report.column}:
        judged = f"judged by {base.report.column} ({judge}); trained on {', '.join(sorted(trained))}"
    return (
        f"{_count(count)} run{'' if count == 1 else 's'} of {model}, {each}trained on {budget} of "
        f"{base.facts.dataset.uri}; {number} samples {each}drawn without a prompt and {judged}. "
        "A score is a misalignment score: 0 is perfect, higher is worse."
    )


def _difference(difference: Difference) -> dict[str, Any]:
    estimate = difference.estimate
    return {
        "run": difference.group.label,
        "value": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "verdict": difference.verdict,
    }


def _to_json(comparison: Comparison) -> str:
    return json.dumps(to_dict(comparison), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("training.comparison", "."),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # Names and notes of foreign runs may hold marks that turn the direction of the text around.
        finalize=lambda value: printable(value, keep="\n\t") if type(value) is str else value,
    )
