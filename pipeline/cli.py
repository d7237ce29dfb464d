"""The commands around a labelled dataset."""

import typer

from pipeline.commands.gc import gc
from pipeline.commands.inspect import inspect
from pipeline.commands.label import label
from pipeline.commands.preview import preview
from pipeline.commands.repair import repair
from pipeline.commands.retag import retag
from pipeline.commands.status import status
from pipeline.commands.verify import verify
from scorers.console import command

PANEL = "Labelling"

app = typer.Typer()
for function in (label, preview, status, verify, repair, gc, inspect, retag):
    app.command(rich_help_panel=PANEL)(command(function))
