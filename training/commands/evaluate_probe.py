"""`phf evaluate --probe`: probe runs, and print the figures."""

from collections.abc import Mapping

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from scorers.amounts import format_count
from scorers.console import print_json
from scorers.terminal import Terminal
from training.evaluation.checks import torch_device
from training.evaluation.format_figures import interval, number
from training.evaluation.probing.probe_run import check_probe, probe_run
from training.evaluation.probing.wording import best_layer, layer_name
from training.measuring_config import EvaluationConfig
from training.progress import StageProgress
from training.runs.folder import RunFolder
from training.runs.probe_report import ProbeFigures, ProbeReport, ProbeSentences, probe_path


def probe_runs(
    configs: Mapping[RunFolder, EvaluationConfig],
    *,
    dataset: str | None = None,
    device: str = "auto",
    as_json: bool = False,
) -> None:
    """Probe each run, after all are checked; see `probe_run`.

    Args:
        configs: settings of each run.
        dataset: as for `probe_run`.
        device: as for `probe_run`.
        as_json: print the reports as JSON.
    """
    torch_device(device)
    for run, config in configs.items():
        check_probe(run, config, dataset)
    found = []
    for run, config in configs.items():
        with StageProgress(str(run.path)) as progress:
            report = probe_run(run, config, dataset=dataset, device=device, progress=progress)
        found.append({"path": str(run.path), **report.model_dump(mode="json")})
        if not as_json:
            _print(run, report)
    if as_json:
        print_json({"probes": found})


def _print(run: RunFolder, report: ProbeReport) -> None:
    console = Terminal()
    console.print()
    if report.figures is None or report.sentences is None:
        console.print(f"{run.path} cannot be probed: {report.not_measured}", soft_wrap=True)
    else:
        console.print_figures(_table(run, report, report.figures, report.sentences))
        console.print(f"\n{best_layer(report.figures)}", soft_wrap=True)
    for warning in report.warnings:
        console.print(f"[yellow]Note:[/yellow] {escape(warning)}", markup=True)
    console.print(f"Report: {probe_path(run)}", soft_wrap=True)


def _table(run: RunFolder, report: ProbeReport, figures: ProbeFigures, sentences: ProbeSentences) -> Table:
    table = Table(
        title=f"{run.path}  (linear probe of {report.column})", title_justify="left",
        caption=f"{format_count(sentences.number, 'held-out sentence')} of "
        f"{format_count(sentences.documents, 'document')}, half of them misaligned (above {report.threshold:g}).",
        caption_justify="left", box=SIMPLE_HEAD, pad_edge=False, show_edge=False,
    )  # fmt: skip
    table.add_column("layer")
    for name in ("AUC", "95 % interval", "LogME"):
        table.add_column(name, justify="right")
    for each in figures.layers:
        table.add_row(
            layer_name(each.layer, figures),
            number(each.auc.value, 3),
            interval(each.auc, lambda value: number(value, 3)),
            number(each.logme, 3),
        )
    return table
