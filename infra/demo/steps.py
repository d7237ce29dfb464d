"""The steps that the demo and the experiment share: sample a corpus from this machine, and run commands of phf."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import typer

from scorers import interpreter
from scorers.terminal import Terminal

console = Terminal()
SEED = 7


def make_corpus(folder: Path, sample: Callable[[Path], str]) -> None:
    """Make a corpus, unless there is one; a sample that was interrupted is made again.

    Args:
        folder: of the corpus.
        sample: writes it into another folder, and returns a sentence about it.
    """
    if folder.exists():
        return
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    description = sample(partial)
    partial.rename(folder)
    console.print(description)


def phf(*arguments: str | Path) -> None:
    """Print and run one `phf` command; if it fails, exit with its status."""
    words = [str(argument) for argument in arguments]
    console.print(f"\n[bold cyan]$ phf {' '.join(words)}[/bold cyan]", markup=True, soft_wrap=True)
    command, environment = interpreter.command("phf", *words), interpreter.environment()
    status = subprocess.run(command, env=environment, check=False).returncode  # noqa: S603
    if status:
        console.print(f"[bold red]phf {words[0]} ended with status {status}[/bold red]", markup=True)
        raise typer.Exit(status)


def repeated(flag: str, values: tuple[str, ...]) -> list[str]:
    """Return the words that give an option several values."""
    return [word for value in values for word in (flag, value)]


def describe_time(seconds: float, page: Path) -> str:
    """Return the last line, with markup: how long all took, and where the page is."""
    minutes, rest = divmod(round(seconds), 60)
    return f"\nDone in {minutes} min {rest} s. The page: [bold]{page}[/bold]"
