"""The training commands."""

import typer

from scorers.console import command
from training.commands import config
from training.commands.attack import app as attack_app
from training.commands.classify import classify
from training.commands.compare import compare
from training.commands.credit import credit
from training.commands.evaluate import evaluate
from training.commands.export_model import export_model
from training.commands.generate import generate
from training.commands.match import match
from training.commands.sweep import sweep
from training.commands.tokenize import tokenize
from training.commands.tokenizer import app as tokenizer_app
from training.commands.train import train

PANEL = "Training"

app = typer.Typer()
for function in (tokenize, credit, train, match, export_model, evaluate, classify, generate, compare, sweep):
    app.command(rich_help_panel=PANEL)(command(function, changes=True))
app.add_typer(attack_app, name="attack", rich_help_panel=PANEL)
app.add_typer(tokenizer_app, rich_help_panel=PANEL)

# `phf config` also has the labelling settings.
config_app = typer.Typer()
for shown in (config.train, config.match, config.evaluate, config.credit, config.sweep):
    config_app.command()(command(shown))
