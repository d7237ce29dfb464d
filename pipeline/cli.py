"""The Typer apps of the labelling commands."""

import typer

from pipeline.commands import bench, config
from pipeline.commands.export import export
from pipeline.commands.gc import gc
from pipeline.commands.inspect import inspect
from pipeline.commands.label import label
from pipeline.commands.preview import preview
from pipeline.commands.purge import purge
from pipeline.commands.repair import repair
from pipeline.commands.report import report
from pipeline.commands.retag import retag
from pipeline.commands.score import score
from pipeline.commands.select import select
from pipeline.commands.status import status
from pipeline.commands.verify import verify
from scorers.console import command

PANEL = "Labelling"

app = typer.Typer()
_CHANGE = (label, score, retag, repair, purge, gc, export, select)
for function in (label, preview, score, status, verify, inspect, report, retag, repair, purge, gc, export, select):
    app.command(rich_help_panel=PANEL)(command(function, changes=function in _CHANGE))

# A group, so that benchmarks of other steps can be added.
bench_app = typer.Typer(no_args_is_help=True, help="Measure the speed of a step on your own corpus.")
bench_app.command()(command(bench.scorers))
bench_app.callback()(lambda: None)
app.add_typer(bench_app, name="bench", rich_help_panel=PANEL)

# `phf config` also has the settings of training.
config_app = typer.Typer()
for shown in (config.label, config.score):
    config_app.command()(command(shown))
