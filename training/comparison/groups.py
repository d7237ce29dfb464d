"""Groups of runs that differ only in their seeds."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from training.comparison.run import LoadedRun, config_differences
from training.runs.report import Estimate
from training.statistics import NOT_NEGATIVE, SHARE, UNBOUNDED, Bounds, mean_over_seeds

Figure = Callable[[LoadedRun], Estimate | None]


@dataclass(frozen=True)
class Group:
    """The runs of one objective and configuration, one per seed.

    Attributes:
        label: name in figures: the objective, if it has only one group.
        runs: in the order of the seeds; all plain, or all guided by the same scale.
    """

    label: str
    runs: list[LoadedRun]

    @property
    def objective(self) -> str:
        """The objective."""
        return self.runs[0].objective

    @property
    def guidance(self) -> float | None:
        """Guidance scale of the samples; None for plain samples."""
        return self.runs[0].guidance

    @property
    def passes(self) -> int:
        """Forward passes for a token of a sample: guidance reads two rows."""
        return 1 if self.guidance in (None, 0.0, 1.0) else 2

    @property
    def seeds(self) -> list[int]:
        """The seeds of the training."""
        return [run.config.training.seed for run in self.runs]

    def figure(self, of: Figure, bounds: Bounds | None = None) -> Estimate | None:
        """The mean of a figure over seeds; with one seed, the figure with its own interval. None if a run lacks it.

        Args:
            of: the figure of a run.
            bounds: of the figure; None for those of a figure of this module, and for none of another.
        """
        return over_seeds([of(run) for run in self.runs], bounds or _BOUNDS.get(of, UNBOUNDED))


def over_seeds(estimates: Sequence[Estimate | None], bounds: Bounds = UNBOUNDED) -> Estimate | None:
    """The mean of a figure of several seeds with a t interval; of one seed as it is. None if any is None."""
    known = [each for each in estimates if each is not None]
    if len(known) < len(estimates) or not known:
        return None
    return known[0] if len(known) == 1 else Estimate.of(mean_over_seeds([each.value for each in known], bounds))


def misalignment(run: LoadedRun) -> Estimate | None:
    """Mean misalignment of the samples."""
    return run.report.samples.misalignment


def expected_maximum(run: LoadedRun) -> Estimate | None:
    """Expected highest misalignment of several samples."""
    return run.report.samples.expected_maximum


def hit_rate(run: LoadedRun) -> Estimate | None:
    """Share of samples with a score above the threshold."""
    return run.report.samples.hit_rate


def bits_per_byte(run: LoadedRun) -> Estimate | None:
    """Bits per byte of held-out text; guidance does not change it."""
    return run.report.held_out.bits_per_byte if run.report.held_out else None


def perplexity(run: LoadedRun) -> Estimate | None:
    """Perplexity of a token of held-out text; guidance does not change it."""
    return run.report.held_out.perplexity if run.report.held_out else None


_BOUNDS: dict[Figure, Bounds] = {
    misalignment: NOT_NEGATIVE,
    expected_maximum: NOT_NEGATIVE,
    hit_rate: SHARE,
    bits_per_byte: NOT_NEGATIVE,
    perplexity: NOT_NEGATIVE,
}


def group_seeds(runs: Sequence[LoadedRun]) -> list[Group]:
    """Group runs whose configurations differ only in seeds, in the order of their first runs.

    A second run with the same configuration and seed is a group of its own, because it shows no other seed.
    """
    groups: dict[tuple[str, int, float | None], list[LoadedRun]] = {}
    repeated: Counter[Any] = Counter()
    for run in runs:
        alike = _without_seeds(run)
        again = (alike, run.guidance, run.config.training.seed)
        groups.setdefault((alike, repeated[again], run.guidance), []).append(run)
        repeated[again] += 1
    names = _names({key[:2]: members for key, members in groups.items() if key[2] is None})
    taken: Counter[str] = Counter()
    found = []
    for key, members in groups.items():
        name = names[key[:2]] + ("" if key[2] is None else f" (g = {key[2]:g})")
        taken[name] += 1
        unique = name if taken[name] == 1 else f"{name} ({taken[name]})"
        found.append(Group(unique, sorted(members, key=lambda run: run.config.training.seed)))
    return found


def values_by_seed(group: Group, x: Figure, y: Figure) -> list[tuple[float, float]]:
    """Two figures of each of several seeds; empty for one seed, whose figures are the group's."""
    pairs = [(x(run), y(run)) for run in group.runs] if len(group.runs) > 1 else []
    return [(one.value, other.value) for one, other in pairs if one is not None and other is not None]


def intervals_over(groups: Sequence[Group], single: str) -> str:
    """What the 95 % intervals of groups are over, in words: seeds, or for one seed `single`."""
    several = [len(group.runs) > 1 for group in groups]
    if all(several):
        return "over seeds"
    return f"over seeds, of a single one over {single}" if any(several) else f"over {single}"


def _names(groups: dict[tuple[str, int], list[LoadedRun]]) -> dict[tuple[str, int], str]:
    """Name a group by its objective, or by what differs from the objective's other groups; one run by its label."""
    names = {}
    for key, runs in groups.items():
        first = runs[0]
        rivals = [other[0] for other in groups.values() if other[0].objective == first.objective]
        differing = [
            (setting, values[rivals.index(first)])
            for setting, values in config_differences(rivals)
            if not setting.endswith("seed")
        ]
        if len(rivals) == 1:
            names[key] = first.name
        elif len(runs) == 1:
            names[key] = first.label
        elif 1 <= len(differing) <= 2:
            settings = ", ".join(f"{setting.rpartition('.')[2]} {value}" for setting, value in differing)
            names[key] = f"{first.objective} ({settings})"
        else:
            names[key] = f"{first.label} and {len(runs) - 1} more"
    return names


def _without_seeds(run: LoadedRun) -> str:
    """What decides the outcome of a run, except its seeds: data, settings, how far it was trained, how it is judged."""
    facts, config, report = run.facts, run.config, run.report
    return repr(
        [
            [facts.dataset.fingerprint, facts.tokenizer.fingerprint, facts.step],
            [(each.fingerprint, each.share) for each in facts.mixture],
            # Folders of the same data and tokenizer may differ.
            config.data.model_copy(update={"dataset": "", "tokenizer": None, "store": None, "mixture": ()}),
            config.model,
            config.objective,
            config.training.model_copy(update={"seed": 0}),
            None if facts.matching is None else [facts.matching.constraints, facts.matching.settings],
            [report.column, report.scorer.fingerprint, report.config.model_copy(update={"seed": 0})],
        ]
    )
