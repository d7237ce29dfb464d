"""`phf tokenizer train`: train a tokenizer on a labelled dataset."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from scorers.console import command, print_json, set_up_logs

app = typer.Typer(name="tokenizer", help="Train a tokenizer on a labelled dataset.", no_args_is_help=True)


@app.callback()
def main() -> None:
    """Train a tokenizer on a labelled dataset."""


@app.command("train")
@partial(command, changes=True)
def train(
    dataset: Annotated[str, typer.Argument(help="Labelled dataset: the --output of `phf label`, a folder or a URI.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder to create.")],
    vocab_size: Annotated[
        int,
        typer.Option(
            "--vocab-size", min=260, metavar="N", help="Vocabulary size, including 256 bytes and <|endoftext|>."
        ),
    ] = 8192,
    as_json: Annotated[bool, typer.Option("--json", help="Print the facts as JSON on stdout.")] = False,
) -> None:
    """Train a byte-level BPE tokenizer on a labelled dataset's sentences and save it as a Hugging Face folder.

    The same texts and size give the same tokenizer. It has no control tokens: `phf train` adds them for a conditional
    model. From more than 500 MB of text, documents are sampled by a hash.

    Example: phf tokenizer train labelled --vocab-size 8192 --output tokenizers/8k
    """
    set_up_logs()
    from rich.markup import escape

    from pipeline.dataset import open_dataset
    from scorers.terminal import Terminal
    from training.data.tokenizers import train_tokenizer
    from training.progress import StageProgress

    labelled = open_dataset(dataset)
    with StageProgress() as progress:
        tokenizer = train_tokenizer(
            labelled, vocab_size, output, lambda done, total: progress("reading for the tokenizer", done, total)
        )
    if as_json:
        facts = {"vocab_size": tokenizer.base_size, "eos_id": tokenizer.eos_id, "fingerprint": tokenizer.fingerprint}
        print_json({"tokenizer": str(output), **facts})
        return
    console = Terminal(soft_wrap=True)
    console.print(f"[bold green]✓[/] Tokenizer {escape(str(output))}: {tokenizer.base_size:,} entries", markup=True)
    if tokenizer.base_size < vocab_size:
        console.print(f"  fewer than {vocab_size:,}: the texts have no more merges")
