"""The commands around a labelled dataset."""

import typer

from pipeline.commands import bench, config
from pipeline.commands.export import export
from pipeline.commands.gc import gc
from pipeline.commands.inspect import inspect
from pipeline.commands.label import label
from pipeline.commands.preview import preview
from pipeline.commands.repair import repair
from pipeline.commands.retag import retag
from pipeline.commands.score import score
from pipeline.commands.status import status
from pipeline.commands.verify import verify
from scorers.console import command

PANEL = "Labelling"

app = typer.Typer()
_CHANGE = (label, score, retag, repair, gc, export)
for function in (label, preview, score, status, verify, inspect, retag, repair, gc, export):
    app.command(rich_help_panel=PANEL)(command(function, changes=function in _CHANGE))

# A group, since other steps may come to be measured on a corpus of one's own.
bench_app = typer.Typer(no_args_is_help=True, help="Measure on a corpus of one's own how fast a step is.")
bench_app.command()(command(bench.scorers))
bench_app.callback()(lambda: None)
app.add_typer(bench_app, name="bench", rich_help_panel=PANEL)

# `phf config` has those of training too.
config_app = typer.Typer()
for shown in (config.label, config.score):
    config_app.command()(command(shown))
