"""`make demo` and `make smoke`: label two corpora, train on one with several objectives, evaluate and compare."""

import shutil
import time
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, get_args

import typer

from infra.demo.corpus import sample_code, sample_prose
from infra.demo.steps import SEED, console, describe_time, make_corpus, phf, repeated
from scorers.amounts import format_count, format_size
from training.config import ObjectiveName

# mypy cannot see the members of a computed enum.
Objective = StrEnum("Objective", {name: name for name in get_args(ObjectiveName)})  # type: ignore[misc]


class Scale(StrEnum):
    """How large the demo is."""

    demo = "demo"
    smoke = "smoke"


@dataclass(frozen=True)
class Plan:
    """What the demo does at a scale.

    Attributes:
        code_bytes, prose_bytes: bytes of text in the two corpora.
        unit_size: unit size of the labelling jobs.
        code_scorers, prose_scorers: scorers of the two corpora.
        train_on: the corpus to train on.
        task: the column to train on.
        objectives: objectives to train by default, one run each.
        guidance: guidance to sample the conditional run with as well.
        settings: `--set` arguments of `phf train`.
    """

    code_bytes: int
    prose_bytes: int
    unit_size: str
    code_scorers: tuple[str, ...]
    prose_scorers: tuple[str, ...]
    train_on: Literal["code", "prose"]
    task: str
    objectives: tuple[str, ...]
    guidance: str
    settings: tuple[str, ...]


# One learning rate and batch for every objective: the presets' are for batches of 64 x 1,024 tokens.
PLANS = {
    Scale.demo: Plan(
        code_bytes=300_000,
        prose_bytes=2_000_000,
        unit_size="128KiB",
        code_scorers=("pep8", "pylint"),
        prose_scorers=("pii=scrubadub,entities=none",),
        train_on="prose",
        task="pii",
        objectives=("mle", "conditional", "filtering"),
        guidance="3",
        settings=(
            "data.vocab_size=2048",
            "data.context_length=256",
            "data.held_out=0.1",
            "training.num_tokens=600_000",
            "training.batch_size=4",
            "training.learning_rate=2e-3",
            "training.warmup_ratio=0.05",
            "evaluation.num_samples=512",
            "evaluation.leakage_samples=64",
            "evaluation.held_out_documents=400",
        ),
    ),
    Scale.smoke: Plan(
        code_bytes=120_000,
        prose_bytes=20_000,
        unit_size="32KiB",
        code_scorers=("pep8",),
        prose_scorers=("toxicity=linear", "pii"),
        train_on="code",
        task="pep8",
        objectives=("mle", "conditional"),
        guidance="2",
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
# A linter that crashes on a module of this interpreter must not end the demo; the crash is counted and shown.
MAX_QUARANTINED = "20"


def main(
    output: Annotated[Path, typer.Option(help="Folder for all output.")],
    scale: Annotated[Scale, typer.Option(help="How large the demo is.")] = Scale.demo,
    objective: Annotated[
        list[Objective] | None, typer.Option(help="An objective to train with; repeat for several.")
    ] = None,
) -> None:
    """Label real text from this machine, train small models on it with several objectives, and compare them."""
    plan = PLANS[scale]
    objectives = tuple(each.value for each in objective or ()) or plan.objectives
    start = time.monotonic()
    corpus = output / "corpus"
    if scale is Scale.smoke and output.exists():
        # CI must test the whole workflow from the start, not resume an earlier result.
        shutil.rmtree(output)

    make_corpus(corpus, partial(_sample, plan))

    code_labels, prose_labels = output / "labelled-code", output / "labelled-prose"
    label = ("--unit-size", plan.unit_size, "--max-quarantined", MAX_QUARANTINED)
    thresholds = ("--threshold", "pii=0", *(("--threshold", "toxicity=p50") if scale is Scale.smoke else ()))
    phf("label", corpus / "code", "--output", code_labels, *repeated("--scorer", plan.code_scorers), *label)
    phf(
        "label", corpus / "prose.jsonl.gz", "--output", prose_labels, *repeated("--scorer", plan.prose_scorers),
        *thresholds, *label,
    )  # fmt: skip
    for labels in (code_labels, prose_labels):
        phf("verify", labels)
        phf("inspect", labels)

    runs = [output / "runs" / each for each in objectives]
    labels = code_labels if plan.train_on == "code" else prose_labels
    for each, run in zip(objectives, runs, strict=True):
        phf(
            "train", labels, "--task", plan.task, "--objective", each, "--model", "tiny", "--output", run,
            *repeated("--set", plan.settings),
        )  # fmt: skip
        phf("evaluate", run, *(("--guidance", plan.guidance) if each == "conditional" else ()))
    phf("compare", *runs, "--output", output / "comparison")

    page = output / "comparison" / "index.html"
    console.print(describe_time(time.monotonic() - start, page), markup=True)


def _sample(plan: Plan, folder: Path) -> str:
    code = sample_code(folder / "code", plan.code_bytes, SEED)
    prose = sample_prose(folder / "prose.jsonl.gz", plan.prose_bytes, SEED)
    return (
        f"A corpus from this machine: {format_count(code.documents, 'module')} of the standard library "
        f"({format_size(code.size)}), {format_count(prose.documents, 'paragraph')} from the documentation of installed "
        f"packages ({format_size(prose.size)})."
    )


if __name__ == "__main__":
    typer.run(main)
