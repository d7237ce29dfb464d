"""`phf bench scorers`: measure scorers on the user's own corpus, and estimate the cost of labelling it."""

import re
from typing import Annotated

import typer

from pipeline.options import (
    AsJson,
    ConfigFile,
    IdField,
    Inputs,
    Kind,
    Overrides,
    Scorers,
    TextField,
    Threads,
    label_config,
)
from scorers.console import print_json
from scorers.errors import UserError
from scorers.flags import given_settings

# English prose has 4 to 4.5 with GPT-2's vocabulary.
BYTES_PER_TOKEN = 4.2

_TOKENS = re.compile(r"(\d+(?:\.\d+)?(?:e\d+)?)\s*([kMGBT]?)", re.ASCII)
_FACTORS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12}


def scorers(
    inputs: Inputs = None,
    scorer: Scorers = None,
    seconds: Annotated[float, typer.Option(min=0, metavar="S", help="Time to measure each scorer for.")] = 10.0,
    limit: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Most text to measure each scorer on, such as 1MB. (default: no limit)",
            show_default=False,
        ),
    ] = None,
    threads: Threads = None,
    device: Annotated[
        str | None,
        typer.Option(
            metavar="DEVICE",
            help="Device of scorers with a network, such as cuda. (default: cpu)",
            show_default=False,
        ),
    ] = None,
    total: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="UTF-8 text to estimate the cost for, such as 1TB. (default: the corpus)",
            show_default=False,
        ),
    ] = None,
    total_tokens: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help=f"--total in tokens, such as 1T, at {BYTES_PER_TOKEN} bytes per token.",
            show_default=False,
        ),
    ] = None,
    text_field: TextField = None,
    id_field: IdField = None,
    kind: Kind = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Measure scorers on a corpus: sentences/s, MB/s per core or GPU, failures, and the cost of labelling all of it.

    Each scorer gets the documents of units spread evenly over the corpus, as in a worker; nothing is written, and no
    text is shown. The range is the 95 % confidence interval from the variation between these units.

    Example: phf bench scorers corpus.jsonl.gz --scorer pii --scorer toxicity=linear --total 1TB
    """
    flags = given_settings(scorers, locals())
    from pydantic import ByteSize, TypeAdapter, ValidationError

    def parse_size(flag: str, text: str) -> int:
        try:
            return int(TypeAdapter(ByteSize).validate_python(text))
        except ValidationError:
            raise UserError(f"{flag} {text!r} is not a size; write 500kB, 1MB or 1TB.") from None

    if total is not None and total_tokens is not None:
        raise UserError("Give --total or --total-tokens, not both.")
    wanted = None if total is None else float(parse_size("--total", total))
    if total_tokens is not None:
        wanted = _tokens(total_tokens) * BYTES_PER_TOKEN
    most = None if limit is None else parse_size("--limit", limit)
    settings = label_config({**flags, "output": "bench"}, scorers=scorer, config=config, overrides=overrides)
    from pipeline.commands.bench_view import show_bench
    from pipeline.labelling.bench import bench_scorers
    from pipeline.labelling.monitoring.console import reporter_for
    from pipeline.labelling.workers.secrecy import forbid_core_dumps
    from scorers.terminal import Terminal

    forbid_core_dumps()
    with reporter_for(Terminal(stderr=True)) as reporter:
        bench = bench_scorers(settings, reporter, seconds=seconds, limit=most, device=device, total=wanted)
    if as_json:
        print_json(bench.to_dict())
    else:
        show_bench(Terminal(), bench)


def _tokens(text: str) -> float:
    match = _TOKENS.fullmatch(text.strip().replace("_", "").replace(",", ""))
    if match is None:
        raise UserError(f"--total-tokens {text!r} is not a number of tokens; write 300B, 1T or 3.3e9.")
    return float(match[1]) * _FACTORS[match[2]]
