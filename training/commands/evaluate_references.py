"""`phf evaluate --reference`: compare runs with references, and print the figures."""

from collections.abc import Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from scorers.amounts import format_count, format_ended
from scorers.console import print_json
from scorers.errors import UserError
from scorers.terminal import Terminal
from training.endpoint import is_address
from training.evaluation.checks import torch_device
from training.evaluation.format_figures import interval, number
from training.evaluation.references.compare import check_comparison, compare_with_reference
from training.evaluation.references.reference import find_reference
from training.measuring_config import EvaluationConfig
from training.progress import StageProgress
from training.runs.folder import RunFolder
from training.runs.reference_report import ReferenceReport, reference_path
from training.runs.report import Estimate


def evaluate_references(
    configs: Mapping[RunFolder, EvaluationConfig],
    places: Sequence[str],
    *,
    model: str | None,
    prompt: str | None,
    device: str,
    as_json: bool,
) -> None:
    """Compare each run with each reference.

    Args:
        configs: the runs, with the settings of the references' samples.
        places: of the references.
        model: of those that are endpoints; None for the only one that each serves.
        prompt: which texts of endpoints continue; None for an empty one.
        device: torch device; `auto` for a GPU if there is one.
        as_json: whether to print the reports as JSON.

    Raises:
        UserError: a reference or a run cannot be used; nothing was measured then.
    """
    place = torch_device(device)
    if not any(map(is_address, places)) and (model is not None or prompt is not None):
        raise UserError(
            "--reference-model and --reference-prompt are for endpoints, and no --reference is the address of one "
            "(http://...). Leave them out."
        )
    references = [find_reference(each, place, model=model, prompt=prompt or "") for each in places]
    names = [each.name for each in references]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"Two references are named {twice}, and their results would overwrite each other. Rename one.")
    for run in configs:
        check_comparison(run)
    found = []
    for reference in references:
        for run, config in configs.items():
            with StageProgress(str(run.path)) as progress:
                report = compare_with_reference(run, reference, config, device=place, progress=progress)
            found.append({"path": str(run.path), **report.model_dump(mode="json")})
            if not as_json:
                _print(run, report)
    if as_json:
        print_json({"runs": found})


def _print(run: RunFolder, report: ReferenceReport) -> None:
    console = Terminal()
    console.print()
    console.print_figures(_table(run, report))
    for warning in report.warnings:
        console.print(f"[yellow]Note:[/yellow] {escape(warning)}", markup=True)
    console.print(f"Report: {reference_path(run, report.name)}", soft_wrap=True)


def _table(run: RunFolder, report: ReferenceReport) -> Table:
    table = Table(
        title=f"{run.path} and the reference {report.reference.place}", title_justify="left",
        caption=_what_was_measured(report), caption_justify="left", box=SIMPLE_HEAD, pad_edge=False, show_edge=False,
    )  # fmt: skip
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_column("95 % interval", justify="right")
    divergence = report.divergence
    rows: list[tuple[str, Estimate | None]] = []
    if divergence is not None:
        rows += [
            ("KL from the reference, nats per text", divergence.kl),
            ("KL from the reference, nats per token", divergence.kl_per_token),
        ]
    for name, each in report.under_reference.items():
        whose = "guided samples" if name == "guided" else name
        rows += [
            (f"{whose}: perplexity under the reference", each.perplexity),
            (f"{whose}: bits per byte under the reference", each.bits_per_byte),
        ]
    for name, estimate in rows:
        if estimate is not None:
            table.add_row(name, number(estimate.value), interval(estimate))
    return table


def _what_was_measured(report: ReferenceReport) -> str:
    found = report.divergence
    if found is None:
        return "KL was not measured."
    limit = report.drawn.max_tokens
    length = "" if limit is None else f" of at most {format_count(limit, 'token')}"
    return (
        f"KL: {format_count(found.texts, 'sample')} of the reference{length}, {format_ended(found.ended)}, "
        f"{sum(found.left_out.values()):,} left out."
    )
