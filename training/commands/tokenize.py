"""`phf tokenize`: build the token store of a labelled dataset ahead of training."""

from typing import Annotated, Any

import typer

from scorers.amounts import format_count
from scorers.console import print_json, set_up_logs
from scorers.errors import UserError


def tokenize(
    dataset: Annotated[str, typer.Argument(help="Labelled dataset: the --output of `phf label`, a folder or a URI.")],
    tokenizer: Annotated[
        str | None,
        typer.Option(
            "--tokenizer",
            metavar="NAME",
            help="Hugging Face tokenizer: a folder, or a name on the hub. By default a byte-level BPE is trained on "
            "the dataset.",
            show_default=False,
        ),
    ] = None,
    vocab_size: Annotated[
        int | None,
        typer.Option(
            "--vocab-size",
            min=260,
            metavar="N",
            help="Vocabulary size of the tokenizer that is trained. (default: 8192)",
            show_default=False,
        ),
    ] = None,
    mix: Annotated[
        list[str] | None,
        typer.Option(
            "--mix",
            metavar="DATASET",
            help="A dataset that training mixes in: tokenised too, and a tokenizer is trained on all. Repeatable.",
            show_default=False,
        ),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(
            "--store",
            metavar="DIR",
            help="Folder of the store. By default DATASET.tokens beside a local dataset, else in the cache.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the facts as JSON on stdout.")] = False,
) -> None:
    """Tokenise a labelled dataset, each sentence alone, into the token store that `phf train` reads.

    `phf train` does the same if there is no store. An existing store is checked and kept; `phf retag` does not affect
    it. All cores are used; RAYON_NUM_THREADS limits them.

    Example: phf tokenize labelled --tokenizer tokenizers/8k
    """
    set_up_logs()
    if tokenizer is not None and vocab_size is not None:
        raise UserError("--vocab-size is for the tokenizer that is trained: leave it out, or leave --tokenizer out.")
    from rich.markup import escape

    from pipeline.dataset import open_dataset
    from scorers.terminal import Terminal
    from training.config import DataConfig
    from training.data.prepare import tokenize as tokenize_dataset
    from training.data.round_trips import describe_changes
    from training.progress import StageProgress

    trained: dict[str, Any] = {} if vocab_size is None else {"vocab_size": vocab_size}
    config = DataConfig(dataset=dataset, tokenizer=tokenizer, store=store, **trained)
    labelled = [open_dataset(each) for each in [dataset, *(mix or [])]]
    with StageProgress() as progress:
        used, stores = tokenize_dataset(config, labelled, progress)
    if as_json:
        main, *mixed = [
            {
                "store": str(each.path),
                **each.meta.model_dump(mode="json", exclude={"files", "version"}),
                "changed": trips.changed,
                "changes": trips.changes,
            }
            for each, trips in stores
        ]
        ends = {"bos_id": used.bos_id, "eos_id": used.eos_id}
        print_json({**main, **ends, "vocab_size": used.base_size, "mixed": mixed})
        return
    console = Terminal(soft_wrap=True)
    for uri, (each, trips) in zip([dataset, *(mix or [])], stores, strict=True):
        meta = each.meta
        console.print(f"[bold green]✓[/] Token store {escape(str(each.path))}", markup=True)
        console.print(
            f"  {format_count(meta.documents, 'document')}, {format_count(meta.sentences, 'sentence')}, "
            f"{format_count(meta.tokens, 'token')}; {meta.text_bytes / max(1, meta.tokens):.2f} bytes a token"
        )
        if not trips.changed:
            console.print("  every document decodes back to its text")
            continue
        changes = describe_changes(trips, used, uri)
        refused = ": phf train refuses it unless data.allow_lossy_tokenizer is true" if trips.is_lossy else ""
        console.print(f"  [yellow]Warning:[/] {escape(changes)}{refused}.", markup=True)
    console.print(f"  tokenizer {used.name}, {used.base_size:,} entries")
