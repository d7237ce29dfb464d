"""`phf compare`: compare evaluated runs on one page."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scorers.console import print_json, set_up_logs

if TYPE_CHECKING:
    from training.sweep.sweep import RunsOfSweep


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="Folders that `phf train` wrote, or of a `phf sweep`: its runs."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the page, its figures and the numbers.")],
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="First evaluate runs that were not evaluated since they were trained.")
    ] = False,
    scorer: Annotated[
        str | None,
        typer.Option(
            "--scorer",
            metavar="NAME",
            help="Compare evaluations by this column or scorer (`phf evaluate --column` or --scorer) instead.",
        ),
    ] = None,
    allow_mismatch: Annotated[
        bool,
        typer.Option("--allow-mismatch", help="Compare runs with another column, scorer or data; the page says so."),
    ] = False,
    show_text: Annotated[
        int,
        typer.Option(
            "--show-text", min=0, max=100, metavar="N", help="Show N samples of each run on the page, side by side."
        ),
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON.")] = False,
) -> None:
    """Compare evaluated runs: alignment, capability and cost on one page.

    The page, index.html, is a single file that can be sent to others. Its
    figures are also saved beside it as PNG files, its numbers in
    comparison.json. Samples are only on the page with --show-text, behind a
    blur that a click lifts.

    Example: phf compare runs/* --output comparison
    """
    set_up_logs()
    from training.comparison.load import is_evaluated, load_comparison
    from training.comparison.page import check_output, to_dict, write_comparison
    from training.runs.folder import RunFolder

    check_output(output)
    given = [_runs_of(each) for each in runs]
    runs = [str(run) for each in given for run in each.finished]
    left_out = [each.left_out for each in given if each.left_out]
    if evaluate:
        from training.evaluation.checks import EvaluationRequest, check_evaluations
        from training.evaluation.evaluate_run import evaluate_run
        from training.evaluation.prepare import Judge
        from training.progress import StageProgress

        missing = [folder for folder in map(RunFolder.existing, runs) if not is_evaluated(folder, scorer)]
        requests = [EvaluationRequest(run, Judge(scorer or run.read_facts().column)) for run in missing]
        check_evaluations(requests)
        for each in requests:
            with StageProgress(str(each.run.path)) as progress:
                evaluate_run(each.run, judge=each.judge, progress=progress)
    comparison = load_comparison(runs, scorer=scorer, allow_mismatch=allow_mismatch, show_text=show_text)
    comparison = replace(comparison, left_out=left_out)
    page = write_comparison(comparison, output)
    if as_json:
        print_json({"page": str(page), **to_dict(comparison)})
    else:
        from training.commands.compare_view import print_comparison

        print_comparison(comparison, page)


def _runs_of(folder: str) -> "RunsOfSweep":
    """The folder of a run itself, or those of the finished runs of a sweep."""
    from scorers.errors import UserError
    from training.sweep.sweep import RunsOfSweep, runs_of_sweep

    found = runs_of_sweep(Path(folder))
    if found is None:
        return RunsOfSweep([Path(folder)])
    if not found.finished:
        raise UserError(
            f"{folder} is a sweep of which no run can be compared. {found.left_out} Run the same `phf sweep` command "
            "again."
        )
    return found
