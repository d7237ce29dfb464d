"""`phf credit`: learn which tokens of its sentences a score is about."""

from typing import Annotated, Any

import typer

from scorers.amounts import format_count
from scorers.console import print_json, set_up_logs
from scorers.errors import UserError
from training.options import Device


def credit(
    dataset: Annotated[str, typer.Argument(help="Labelled dataset: the --output of `phf label`, a folder or a URI.")],
    column: Annotated[
        str | None,
        typer.Option(
            "--column", metavar="NAME", help="Score column; may be left out if there is one.", show_default=False
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--name",
            metavar="NAME",
            help="Name, for `--set data.token_scores=credit:NAME`. By default that of the column.",
            show_default=False,
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            "--tokenizer",
            metavar="NAME",
            help="Tokenizer of the runs that use it: a folder, or a name on the hub. By default the one that phf "
            "trains on the dataset.",
            show_default=False,
        ),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(
            "--store", metavar="DIR", help="Folder of the token store, as for `phf train`.", show_default=False
        ),
    ] = None,
    compare: Annotated[
        int,
        typer.Option(
            "--compare",
            min=0,
            metavar="N",
            help="Held-out sentences to compare with what the scorer points at, or with the words whose deletion "
            "halves its score; 0 for none.",
        ),
    ] = 200,
    device: Device = "auto",
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change a setting, such as window=0 or aggregate=mean; `phf config credit` lists them. Repeatable.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the facts as JSON on stdout.")] = False,
) -> None:
    """Divide the score of each sentence among its tokens, for a scorer that cannot say where it found something.

    A small network learns from the sentences of the dataset which tokens make a score high. Its token scores lie beside
    the token store; objectives that use scores take them with `--set data.token_scores=credit:NAME`. An interrupted
    command continues.

    Example: phf credit labelled --column toxicity
    """
    set_up_logs()
    from pipeline.dataset import open_dataset
    from scorers.settings import load_settings
    from training.config import DataConfig
    from training.credit.learn import CreditRequest, learn_credit
    from training.credit.settings import CreditConfig
    from training.data.prepare import tokenize
    from training.data.stored_credit import check_name
    from training.evaluation.checks import torch_device
    from training.progress import StageProgress

    config, place = load_settings(CreditConfig, overrides=set_ or []), torch_device(device)
    labelled = open_dataset(dataset)
    chosen = _column(column, labelled.columns)
    check_name(name or chosen)
    with StageProgress() as progress:
        used, [(tokens, _)] = tokenize(
            DataConfig(dataset=dataset, tokenizer=tokenizer, store=store), [labelled], progress
        )
        request = CreditRequest(name or chosen, labelled, chosen, used, tokens, config, compare, place)
        facts = learn_credit(request, progress)
    if as_json:
        print_json({"store": str(tokens.path), **facts.model_dump(mode="json")})
        return
    _print(str(tokens.path), facts)


def _column(given: str | None, columns: list[str]) -> str:
    if given is None and len(columns) == 1:
        return columns[0]
    if given in columns:
        return str(given)
    known = ", ".join(columns)
    raise UserError(
        f"The dataset has no column {given!r}: --column is one of {known}."
        if given
        else f"The dataset has several score columns: choose --column from {known}."
    )


def _print(store: str, facts: Any) -> None:
    from rich.markup import escape

    from scorers.terminal import Terminal

    console = Terminal(soft_wrap=True)
    console.print(f"[bold green]✓[/] Credit {escape(facts.name)} in {escape(store)}", markup=True)
    console.print(
        f"  learnt from {format_count(facts.sentences_learnt, 'sentence')} in {format_count(facts.steps, 'step')}; the "
        f"best was step {facts.best_step:,}"
    )
    if facts.rank_correlation is not None:
        console.print(
            f"  rank correlation with the scores of {format_count(facts.sentences_held_out, 'held-out sentence')}: "
            f"{facts.rank_correlation:.3f}"
        )
    console.print(f"  {100 * facts.flagged:.2f} % of all tokens have a score above 0")
    if facts.top_token is not None and facts.top_tenth is not None:
        console.print(
            f"  in the worst tenth of the sentences, the worst token has {100 * facts.top_token:.0f} % of the credit, "
            f"the worst tenth of the tokens {100 * facts.top_tenth:.0f} %"
        )
    console.print(f"  {_agreement(facts)}")
    console.print(f"Use it: phf train … --set data.token_scores=credit:{facts.name}")


def _agreement(facts: Any) -> str:
    found = facts.agreement
    if found is None:
        return f"not compared with the scorer: {facts.not_measured}"
    by = "the scorer's own findings" if found.reference == "spans" else "the words whose deletion halves the score"
    if found.precision is None or found.recall is None:
        return f"no token to compare with {by} in {format_count(found.unlocated, 'held-out sentence')}"
    return (
        f"against {by}, in {format_count(found.sentences, 'held-out sentence')}: precision {found.precision:.2f}, "
        f"recall {found.recall:.2f} (whole sentences: {found.guilty / found.tokens:.2f} and 1); "
        f"{found.unlocated:,} more could not be compared"
    )
