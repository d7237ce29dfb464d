"""`make demo` and `make smoke`: label two corpora, train on one with every objective, evaluate, compare."""

import shutil
import subprocess
import time
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from infra.demo.corpus import sample_code, sample_prose
from scorers import interpreter
from scorers.amounts import count_of, size_of
from scorers.terminal import Terminal

console = Terminal()


class Scale(StrEnum):
    """How much of everything."""

    demo = "demo"
    smoke = "smoke"


@dataclass(frozen=True)
class Plan:
    """The sizes of a run; `settings` are passed to `phf train` as they are."""

    code_bytes: int
    prose_bytes: int
    unit_size: str
    code_scorers: tuple[str, ...]
    prose_scorers: tuple[str, ...]
    objectives: tuple[str, ...]
    settings: tuple[str, ...]


SEED = 7
# One learning rate and batch for every objective: the presets' are for batches of 64 x 1,024 tokens.
PLANS = {
    Scale.demo: Plan(
        code_bytes=1_500_000,
        prose_bytes=300_000,
        unit_size="64KiB",
        code_scorers=("pep8", "pylint"),
        prose_scorers=("toxicity=linear", "pii"),
        objectives=("mle", "conditional", "filtering", "unlikelihood", "rwr", "awr"),
        settings=(
            "data.vocab_size=2048",
            "data.context_length=256",
            "data.held_out=0.2",
            "training.num_tokens=500_000",
            "training.batch_size=16",
            "training.learning_rate=2e-3",
            "training.warmup_ratio=0.05",
            "evaluation.num_samples=128",
            "evaluation.leakage_samples=64",
        ),
    ),
    Scale.smoke: Plan(
        code_bytes=120_000,
        prose_bytes=20_000,
        unit_size="32KiB",
        code_scorers=("pep8",),
        prose_scorers=("toxicity=linear", "pii"),
        objectives=("mle", "conditional"),
        settings=(
            "data.vocab_size=512",
            "data.context_length=128",
            "data.held_out=0.2",
            "training.num_tokens=40_000",
            "training.batch_size=8",
            "training.learning_rate=2e-3",
            "evaluation.num_samples=32",
            "evaluation.max_new_tokens=64",
            "evaluation.leakage_samples=16",
        ),
    ),
}
# A linter's crash on a module of the reader's own interpreter must not end the demo; it is counted and shown.
MAX_QUARANTINED = "20"


def main(
    output: Annotated[Path, typer.Option(help="Folder for everything that is made.")],
    scale: Annotated[Scale, typer.Option(help="How much of everything.")] = Scale.demo,
) -> None:
    """Label real text of this machine, train small models on it with each objective, and compare them."""
    plan = PLANS[scale]
    start = time.monotonic()
    corpus = output / "corpus"
    if scale is Scale.smoke and output.exists():
        # What continuous integration asks is whether the whole road works today, not whether an old result resumes.
        shutil.rmtree(output)

    if not corpus.exists():
        partial = output / "corpus.partial"
        shutil.rmtree(partial, ignore_errors=True)
        code = sample_code(partial / "code", plan.code_bytes, SEED)
        prose = sample_prose(partial / "prose.jsonl.gz", plan.prose_bytes, SEED)
        partial.rename(corpus)
        console.print(
            f"A corpus from this machine: {count_of(code.documents, 'module')} of the standard library "
            f"({size_of(code.size)}), "
            f"{count_of(prose.documents, 'page')} of installed packages' documentation ({size_of(prose.size)})."
        )

    code_labels, prose_labels = output / "labelled-code", output / "labelled-prose"
    label = ("--unit-size", plan.unit_size, "--max-quarantined", MAX_QUARANTINED)
    thresholds = ("--threshold", "toxicity=p50", "--threshold", "pii=0")
    phf("label", corpus / "code", "--output", code_labels, *_each("--scorer", plan.code_scorers), *label)
    phf(
        "label", corpus / "prose.jsonl.gz", "--output", prose_labels, *_each("--scorer", plan.prose_scorers),
        *thresholds, *label,
    )  # fmt: skip
    for labels in (code_labels, prose_labels):
        phf("verify", labels)
        phf("inspect", labels)

    runs = [output / "runs" / objective for objective in plan.objectives]
    for objective, run in zip(plan.objectives, runs, strict=True):
        phf(
            "train", code_labels, "--task", "pep8", "--objective", objective, "--model", "tiny", "--output", run,
            *_each("--set", plan.settings),
        )  # fmt: skip
        phf("evaluate", run)
    phf("compare", *runs, "--output", output / "comparison")

    minutes, seconds = divmod(round(time.monotonic() - start), 60)
    console.print(
        f"\nDone in {minutes} min {seconds} s. The page: [bold]{output / 'comparison' / 'index.html'}[/bold]",
        markup=True,
    )


def phf(*arguments: str | Path) -> None:
    """Run one `phf` command, shown as a user would type it; a command that fails ends the road with its status."""
    words = [str(argument) for argument in arguments]
    console.print(f"\n[bold cyan]$ phf {' '.join(words)}[/bold cyan]", markup=True, soft_wrap=True)
    command, environment = interpreter.command("phf", *words), interpreter.environment()
    status = subprocess.run(command, env=environment, check=False).returncode  # noqa: S603
    if status:
        console.print(f"[bold red]phf {words[0]} ended with status {status}[/bold red]", markup=True)
        raise typer.Exit(status)


def _each(flag: str, values: tuple[str, ...]) -> list[str]:
    return [word for value in values for word in (flag, value)]


if __name__ == "__main__":
    typer.run(main)
