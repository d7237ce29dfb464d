"""Load evaluated runs, and refuse those that cannot be compared."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from scorers.amounts import format_count
from scorers.errors import UserError
from scorers.printing import printable
from scorers.shell import phf, quoted
from training.comparison.groups import Group, group_seeds
from training.comparison.run import HeldOutCosts, LoadedRun, config_differences
from training.config import ObjectiveName
from training.runs.folder import RunFolder
from training.runs.report import SampleFacts, read_report, report_folder, run_fingerprint
from training.runs.tables import GUIDED_NAME, HELD_OUT_NAME, HELD_OUT_SCHEMA, SAMPLES_NAME, SAMPLES_SCHEMA, read_table

OBJECTIVES: tuple[str, ...] = get_args(ObjectiveName)


@dataclass(frozen=True)
class Comparison:
    """Runs to compare.

    Attributes:
        runs: in the order of the objectives in the paper, then of their labels.
        baseline: the run that the others are compared with: the first run of `mle`, else the first run.
        mismatches: differences that make figures incomparable and that the user accepted.
        differences: other differences that readers must know.
        paired: whether all runs were measured on the same held-out documents.
        show_text: how many samples of each run to show; 0 for none.
        left_out: sentences about runs of sweeps that are not compared.
        sampled: the runs, each followed by itself with its guided samples, if it has any.
        groups: the same, in groups of seeds.
        base: the group of the baseline.
    """

    runs: list[LoadedRun]
    baseline: LoadedRun
    mismatches: list[str]
    differences: list[str]
    paired: bool
    show_text: int = 0
    left_out: list[str] = field(default_factory=list)

    @cached_property
    def sampled(self) -> list[LoadedRun]:
        """The runs, each followed by itself with its guided samples, if any, under another label."""
        taken, found = {run.label for run in self.runs}, []
        for run in self.runs:
            found.append(run)
            if (guided := run.guided) is not None:
                while guided.label in taken:
                    guided = replace(guided, label=f"{guided.label} (guided)")
                taken.add(guided.label)
                found.append(guided)
        return found

    @cached_property
    def groups(self) -> list[Group]:
        """All of `sampled` in groups of runs that differ only in their seeds."""
        return group_seeds(self.sampled)

    @cached_property
    def base(self) -> Group:
        """The group of the baseline, which the others are compared with."""
        return next(group for group in self.groups if any(run is self.baseline for run in group.runs))


def load_comparison(
    paths: Sequence[str | Path], *, scorer: str | None = None, allow_mismatch: bool = False, show_text: int = 0
) -> Comparison:
    """Load the runs and check that they can be compared.

    Args:
        paths: folders of runs; duplicates count once.
        scorer: the column or scorer whose evaluations are compared; None for each run's own column.
        allow_mismatch: accept runs whose figures are not comparable; the page says so.
        show_text: how many samples of each run to show on the page.

    Raises:
        UserError: a folder holds no run, a run is not evaluated, or the runs cannot be compared.
    """
    folders = list({Path(path).resolve(): RunFolder.existing(path) for path in paths}.values())
    missing = [folder for folder in folders if not is_evaluated(folder, scorer)]
    if missing:
        names = " ".join(str(folder.path) for folder in missing)
        evaluate = phf("evaluate", *(folder.path for folder in missing))
        by, how = "", f"`{evaluate}`"
        if scorer is not None:
            by, how = f" by {scorer}", f"`{evaluate} --column {quoted(scorer)}` (or --scorer {quoted(scorer)}=KIND)"
        raise UserError(
            f"Not evaluated{by} since {'it was' if len(missing) == 1 else 'they were'} trained: {names}. "
            f"Run {how} first, or add --evaluate."
        )
    runs = _labelled([_load(folder, scorer) for folder in folders])
    runs.sort(key=lambda run: (OBJECTIVES.index(run.facts.objective), run.label))
    mismatches = _mismatches(runs)
    if mismatches and not allow_mismatch:
        raise UserError(
            "These runs cannot be compared:\n"
            + "\n".join(f"  {each}" for each in mismatches)
            + "\nCompare comparable runs, or add --allow-mismatch for a page that says so."
        )
    return Comparison(
        runs=runs,
        baseline=next((run for run in runs if run.name == "mle"), runs[0]),
        mismatches=mismatches,
        differences=_differences(runs),
        paired=_paired(runs) is True,
        show_text=show_text,
    )


def is_evaluated(folder: RunFolder, scorer: str | None = None) -> bool:
    """Whether a run has a report on its current model, by its own column or by another scorer."""
    report = read_report(folder, _kept_as(folder, scorer))
    return report is not None and report.run == run_fingerprint(folder)


def _kept_as(folder: RunFolder, scorer: str | None) -> str | None:
    return None if scorer == folder.read_facts().column else scorer


def _load(folder: RunFolder, scorer: str | None) -> LoadedRun:
    kept = _kept_as(folder, scorer)
    place, report = report_folder(folder, kept), read_report(folder, kept)
    if report is None:
        raise UserError(f"{folder.path} is not evaluated. Run `{phf('evaluate', folder.path)}` first.")
    scores = _scores(place / SAMPLES_NAME, folder, report.samples)
    guided = None if report.guided is None else _scores(place / GUIDED_NAME, folder, report.guided.samples)
    costs = None
    if report.held_out is not None:
        table = read_table(place / HELD_OUT_NAME, HELD_OUT_SCHEMA, folder, report.held_out.documents)
        columns = {name: table.column(name).to_numpy() for name in table.column_names}
        costs = HeldOutCosts(
            documents=columns["document"],
            sizes=columns["bytes"],
            tokens=columns["tokens"],
            bits=columns["bits"],
            unigram_bits=columns["unigram_bits"],
            misalignment=columns["misalignment"],
        )
    return LoadedRun(
        label=printable(folder.path.resolve().name),
        folder=folder,
        facts=folder.read_facts(),
        config=folder.read_config(),
        report=report,
        scores=scores,
        costs=costs,
        metrics=folder.read_metrics(),
        guided_scores=guided,
    )


def _scores(file: Path, folder: RunFolder, facts: SampleFacts) -> NDArray[np.float64]:
    table = read_table(file, SAMPLES_SCHEMA, folder, facts.number)
    scores: NDArray[np.float64] = table.column("score").drop_null().to_numpy()
    return scores


def _labelled(runs: list[LoadedRun]) -> list[LoadedRun]:
    """Label runs by their objectives if each occurs once, else by folder names, with numbers for equal labels."""
    names = Counter(run.name for run in runs)
    labels = [run.name if names[run.name] == 1 else run.label for run in runs]
    alike = Counter(labels)
    seen: Counter[str] = Counter()
    labelled = []
    for run, label in zip(runs, labels, strict=True):
        seen[label] += 1
        unique = f"{label} ({seen[label]})" if alike[label] > 1 else label
        labelled.append(replace(run, label=unique))
    return labelled


def _mismatches(runs: list[LoadedRun]) -> list[str]:
    found = [
        _groups(runs, "They are about different score columns", lambda run: run.report.column),
        _groups(runs, "Their samples were scored by different scorers", lambda run: run.report.scorer.fingerprint),
    ]
    if _paired(runs) is False:
        found.append(_groups(runs, "They were measured on different held-out documents", _held_out))
    elif _paired(runs) is None:
        found.append(_groups(runs, "They were trained on different datasets", _dataset))
    return [each for each in found if each]


def _paired(runs: list[LoadedRun]) -> bool | None:
    """Whether all runs were measured on the same held-out documents; None if some were not measured at all."""
    fingerprints = {run.report.held_out.fingerprint if run.report.held_out else None for run in runs}
    if len(fingerprints - {None}) > 1:
        return False
    if None in fingerprints:
        return None
    for run in runs:
        if not np.array_equal(_documents(run), _documents(runs[0])):
            raise UserError(
                f"{run.folder.path} and {runs[0].folder.path} say that they were measured on the same held-out "
                f"documents, but their {HELD_OUT_NAME} files differ: one of them is damaged. Evaluate both again."
            )
    return True


def _documents(run: LoadedRun) -> NDArray[np.int64]:
    """int64 [2, n]: indices in the store, and bytes, of the held-out documents."""
    costs = run.costs
    return np.zeros((2, 0), np.int64) if costs is None else np.array([costs.documents, costs.sizes])


def _held_out(run: LoadedRun) -> str:
    held_out = run.report.held_out
    return f"{format_count(held_out.documents, 'document')} ({held_out.fingerprint})" if held_out else "none"


def _dataset(run: LoadedRun) -> str:
    return f"{run.facts.dataset.uri} ({run.facts.dataset.fingerprint[:12]})"


def mixture(run: LoadedRun) -> str:
    """The datasets of a run with their shares of its tokens."""
    each = [f"{mixed.share:.3g} of {mixed.uri} ({mixed.fingerprint[:12]})" for mixed in run.facts.mixture]
    return " + ".join(each) or "one dataset"


def _differences(runs: list[LoadedRun]) -> list[str]:
    def sampling(run: LoadedRun) -> str:
        config = run.report.config
        return (
            f"{config.num_samples} of at most {format_count(run.report.samples.max_new_tokens, 'token')}, "
            f"temperature {config.temperature:g}, top-p {config.top_p:g}"
        )

    checks: list[tuple[str, Callable[[LoadedRun], Any]]] = [
        ("The labelled datasets differ", _dataset),
        ("They were trained on different mixtures", mixture),
        ("They were trained on different score columns", trained_on),
        ("Held-out text was not measured for every run", lambda run: "measured" if run.report.held_out else "not"),
        (
            "Tokenizers differ, so perplexities and distinct-n are not comparable; bits per byte are",
            lambda run: run.facts.tokenizer.fingerprint[:12],
        ),
        ("Models differ", lambda run: run.facts.model.name),
        ("Context lengths differ", lambda run: run.facts.model.context_length),
        ("Tokens trained on differ", lambda run: f"{run.facts.step * _tokens_a_step(run):,}"),
        ("Not all runs started at step 0 and continued unchanged", _continuations),
        ("Not every run is finished", lambda run: run.facts.status),
        ("Samples were drawn in different ways", sampling),
        ("Hit thresholds differ", lambda run: f"{run.report.samples.hit_threshold:g}"),
        ("Evaluated on different devices", lambda run: run.report.device),
        ("Evaluated with different versions of libraries", lambda run: _joined(run.report.versions)),
    ]
    found = [text for what, of in checks if (text := _groups(runs, what, of))]
    # Runs that differ only in their seeds are one group, which the page shows.
    settings = [
        key for key, _ in config_differences(runs) if key.startswith(("model.", "training.")) and key != "training.seed"
    ]
    if settings:
        found.append(f"Settings of model or training differ: {', '.join(settings)}. Their values are on the page.")
    return found


def _continuations(run: LoadedRun) -> str:
    origin = run.facts.origin
    start = [] if origin is None else [f"started from step {origin.step:,} of {printable(origin.run)}"]
    return "; ".join([*start, *(printable(each.description) for each in run.facts.history)]) or "unchanged"


def trained_on(run: LoadedRun) -> str:
    """The score columns that a run was trained on."""
    return " and ".join(run.facts.columns or [run.facts.column])


def _groups(runs: list[LoadedRun], what: str, of: Callable[[LoadedRun], Any]) -> str:
    groups: dict[Any, list[str]] = {}
    for run in runs:
        groups.setdefault(of(run), []).append(run.label)
    if len(groups) < 2:
        return ""
    return f"{what}: " + "; ".join(f"{value} ({', '.join(labels)})" for value, labels in groups.items()) + "."


def _tokens_a_step(run: LoadedRun) -> int:
    return run.facts.horizon.batch_size * run.facts.model.context_length


def _joined(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
