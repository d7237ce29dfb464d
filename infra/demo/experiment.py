"""`make experiment`: label prose from this machine, and train, evaluate and compare objectives x seeds on it."""

import time
from pathlib import Path
from typing import Annotated

import typer

from infra.demo.corpus import sample_prose
from infra.demo.steps import SEED, console, describe_time, make_corpus, phf, repeated
from scorers.amounts import format_count, format_size

SPEC = Path(__file__).with_name("experiment.yaml")
PROSE_BYTES = 2_000_000


def main(
    output: Annotated[Path, typer.Option(help="Folder for all output.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any key of the sweep, such as seeds=[1]; repeatable."),
    ] = None,
) -> None:
    """Label prose from this machine, train models on it with several objectives and seeds, and compare them.

    The same command continues an interrupted experiment.
    """
    start = time.monotonic()
    make_corpus(output / "corpus", _sample)
    labelled = output / "labelled"
    phf(
        "label", output / "corpus" / "prose.jsonl.gz", "--output", labelled, "--scorer", "pii=scrubadub,entities=none",
        "--threshold", "pii=0", "--unit-size", "128KiB",
    )  # fmt: skip
    phf("inspect", labelled)
    places = (f"dataset={labelled}", f"out={output / 'sweep'}")
    phf("sweep", SPEC, *repeated("--set", (*places, *(overrides or ()))))
    page = output / "sweep" / "comparison" / "index.html"
    console.print(describe_time(time.monotonic() - start, page), markup=True)


def _sample(folder: Path) -> str:
    prose = sample_prose(folder / "prose.jsonl.gz", PROSE_BYTES, SEED)
    return (
        f"A corpus from this machine: {format_count(prose.documents, 'paragraph')} from the documentation of installed "
        f"packages ({format_size(prose.size)})."
    )


if __name__ == "__main__":
    typer.run(main)
