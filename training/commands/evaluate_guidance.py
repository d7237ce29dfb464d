"""`phf evaluate --guidance-sweep`: sweep runs, and print what was found."""

from collections.abc import Mapping

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from scorers.console import print_json
from scorers.terminal import Terminal
from training.evaluation.format_figures import interval, number, percent
from training.evaluation.guidance_request import SweepRequest, check_sweep, parse_scales
from training.evaluation.guidance_sweep import sweep_guidance
from training.evaluation.guidance_wording import WHY_NOT, recommendation
from training.evaluation.recommended_guidance import RULE
from training.measuring_config import EvaluationConfig
from training.progress import StageProgress
from training.runs.folder import RunFolder
from training.runs.guidance_report import GuidanceReport, guidance_folder
from training.runs.report import Estimate


def sweep_runs(
    configs: Mapping[RunFolder, EvaluationConfig],
    scales: str,
    *,
    reference: RunFolder | None = None,
    dataset: str | None = None,
    device: str = "auto",
    allow_other_scorer: bool = False,
    as_json: bool = False,
) -> None:
    """Sweep each run, after all are checked; see `sweep_guidance`.

    Args:
        configs: sampling settings of each run.
        scales: the scales as given on the command line.
        reference: measures the likelihood of samples; None for none.
        dataset: as for `sweep_guidance`.
        device: as for `sweep_guidance`.
        allow_other_scorer: as for `sweep_guidance`.
        as_json: print the reports as JSON.
    """
    requests = [SweepRequest(run, parse_scales(scales), config, reference) for run, config in configs.items()]
    for request in requests:
        check_sweep(request, dataset)
    found = []
    for request in requests:
        with StageProgress(str(request.run.path)) as progress:
            report = sweep_guidance(
                request,
                dataset=dataset,
                device=device,
                allow_other_scorer=allow_other_scorer,
                progress=progress,
            )
        found.append({"path": str(request.run.path), **report.model_dump(mode="json")})
        if not as_json:
            print_sweep(request.run, report)
    if as_json:
        print_json({"sweeps": found})


def print_sweep(run: RunFolder, report: GuidanceReport) -> None:
    """Print the figures of each scale, the recommendation with its rule, and the warnings."""
    console = Terminal()
    console.print()
    console.print_figures(_table(run, report))
    console.print(f"\n{recommendation(report)}\n{RULE}")
    for warning in report.warnings:
        console.print(f"[yellow]Note:[/yellow] {escape(warning)}", markup=True)
    console.print(f"Report and samples: {guidance_folder(run)}", soft_wrap=True)


def _table(run: RunFolder, report: GuidanceReport) -> Table:
    reference = report.reference
    table = Table(
        title=f"{run.path}  (guidance, {report.config.num_samples:,} samples a scale)", title_justify="left",
        caption=None if reference is None else f"Perplexity: under {reference.name} ({reference.objective}).",
        caption_justify="left", box=SIMPLE_HEAD, pad_edge=False, show_edge=False,
    )  # fmt: skip
    for name in ("g", f"misalignment ({report.column}), 95 % interval", "hit rate", "distinct-2", "tokens"):
        table.add_column(name, justify="right")
    if reference is not None:
        table.add_column("perplexity", justify="right")
    table.add_column("")
    for each in report.scales:
        samples = each.samples
        best = report.recommended is not None and report.recommended.scale == each.scale
        cells: list[Text | str] = [
            f"{each.scale:g}",
            _with_interval(samples.misalignment),
            percent(samples.hit_rate.value) if samples.hit_rate else "–",
            number(samples.distinct_2, 3) if samples.distinct_2 is not None else "–",
            number(samples.tokens.value, 3) if samples.tokens else "–",
            *([] if reference is None else [number(each.perplexity.value, 3) if each.perplexity else "–"]),
            "recommended" if best else WHY_NOT[each.ruled_out] if each.ruled_out else "",
        ]
        table.add_row(*cells)
    return table


def _with_interval(estimate: Estimate | None) -> Text | str:
    if estimate is None:
        return "–"
    spread = interval(estimate, lambda value: number(value, 3))
    return Text.assemble(number(estimate.value, 3), "\n", (spread, "dim"))
