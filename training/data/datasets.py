"""Open the datasets that a configuration names, and check that they can be trained on together."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction

from pipeline.dataset import LabelledDataset, Manifest, open_dataset
from pipeline.dataset.derived import dataset_identity
from pipeline.dataset.manifest import ScorerEntry
from scorers.contract import DocumentKind
from scorers.errors import UserError
from scorers.registry import ScorerSpec, documents_of
from training.config import MixtureConfig, ResolvedConfig
from training.objectives import MLE, OBJECTIVES


def document_kind(manifest: Manifest, column: str) -> DocumentKind:
    """Return the kind of a column's documents: the job's setting, else its scorer's kind, else that of most bytes."""
    setting = manifest.config.get("kind")
    if setting == "python" or setting == "prose":
        return "python" if setting == "python" else "prose"
    entry = manifest.scorers[column]
    applies = documents_of(ScorerSpec(kind=entry.kind, **entry.options))
    if applies is not None:
        return applies
    python = sum(source.size for source in manifest.sources if source.uri.lower().endswith(".py"))
    return "python" if 2 * python > sum(source.size for source in manifest.sources) else "prose"


@dataclass(frozen=True)
class Source:
    """A dataset that a run trains on.

    Attributes:
        uri: as the user gave it.
        dataset: the open dataset.
        share: of the run's blocks.
        column: its score column.
        task: the preset that supplies its threshold if nothing else does.
        threshold: from the settings; see `training.config.MixtureConfig`.
        thresholds: from the settings, by column, if there are several.
        store: folder of its token store, from the settings.
    """

    uri: str
    dataset: LabelledDataset
    share: Fraction
    column: str
    task: str
    threshold: float | None
    thresholds: Mapping[str, float]
    store: str | None

    @property
    def manifest(self) -> Manifest:
        """The dataset's manifest."""
        return self.dataset.manifest

    @property
    def scorer(self) -> ScorerEntry:
        """The scorer of the column."""
        return self.manifest.scorers[self.column]


def open_sources(config: ResolvedConfig) -> list[Source]:
    """Open the main dataset and the datasets of the mixture, in the order of the configuration.

    Args:
        config: with the columns filled in.

    Raises:
        UserError: a dataset is missing, incomplete, without the column, or named twice (also under two names).
    """
    data, objective, task = config.data, config.objective, config.task
    shares = data.shares
    column = data.column
    dataset = _open(data.dataset, [column, *data.columns])
    given, by_column = objective.threshold, objective.thresholds
    found = [Source(data.dataset, dataset, shares[0], column, task, given, by_column, data.store)]
    known = dataset.manifest.scorers
    for entry, share in zip(data.mixture, shares[1:], strict=True):
        own = entry.column
        dataset = _open(entry.dataset, [own, *data.columns])
        scorers = dataset.manifest.scorers
        same = scorers[own].fingerprint == known[column].fingerprint
        threshold = entry.threshold if entry.threshold is not None else given if same else None
        shared = {
            each: limit for each, limit in by_column.items() if scorers[each].fingerprint == known[each].fingerprint
        }
        thresholds = {**shared, **entry.thresholds}
        task_of_own = task if own == column else own
        found.append(Source(entry.dataset, dataset, share, own, task_of_own, threshold, thresholds, entry.store))
    _refuse_twice(found)
    _refuse_thresholds(config, data.mixture, given)
    return found


def refuse_mixed_scorers(sources: list[Source], config: ResolvedConfig) -> tuple[str, ...]:
    """Refuse a loss over scores of different scorers, or warn about it if the user allows it.

    Tags and filters have a threshold for each dataset, so they can be mixed; a loss that computes with the scores
    assumes that they share one scale.

    Returns:
        Warnings.

    Raises:
        UserError: the scorers differ, and `data.allow_mixed_scorers` is false.
    """
    name = config.objective.name
    main = sources[0]
    scales = [_scorers(each, config.data.columns) for each in sources]
    limits = [name for name in ("mask_above", "hide_above") if getattr(config.objective, name) is not None]
    masked = bool(limits)
    if all(each == scales[0] for each in scales) or (issubclass(OBJECTIVES[name], MLE) and not masked):
        return ()
    what = f"{name} with objective.{' and '.join(limits)}" if masked else name
    listed = "; ".join(
        f"{each.uri}: " + ", ".join(f"{column} by {fingerprint}" for column, fingerprint in scale.items())
        for each, scale in zip(sources, scales, strict=True)
        if each is main or scale != scales[0]
    )
    if config.data.allow_mixed_scorers:
        return (f"The objective {what} computes with scores of different scorers as if they had one scale ({listed}).",)
    instead = "choose conditional or filtering, which use a threshold for each dataset"
    if masked:
        instead = f"remove objective.{' and '.join(limits)}"
    raise UserError(
        f"The objective {what} computes with the scores themselves, and these datasets are scored differently "
        f"({listed}). Label them with the same scorer, {instead}, or add --set data.allow_mixed_scorers=true if the "
        "scores do have one scale."
    )


def _scorers(source: Source, columns: Iterable[str]) -> dict[str, str]:
    return {column: source.manifest.scorers[column].fingerprint for column in columns or [source.column]}


def _open(uri: str, columns: Iterable[str]) -> LabelledDataset:
    dataset = open_dataset(uri)
    for column in columns:
        dataset.require_column(column)
    return dataset


def _refuse_twice(sources: list[Source]) -> None:
    seen: dict[str, str] = {}
    for source in sources:
        identity = dataset_identity(source.manifest)
        if identity in seen:
            raise UserError(
                f"{source.uri} is the same dataset as {seen[identity]}: its documents would be repeated. "
                "Name it once, with its full share; a small dataset goes through more epochs."
            )
        seen[identity] = source.uri


def _refuse_thresholds(config: ResolvedConfig, mixture: tuple[MixtureConfig, ...], given: float | None) -> None:
    kind = OBJECTIVES[config.objective.name]
    if kind.tags or kind.filters:
        return
    for entry in mixture:
        if entry.threshold not in (None, given) or (entry.thresholds and not kind.thresholds):
            raise UserError(
                f"The objective {kind.name} has no threshold of its own for {entry.dataset}. Remove the threshold from "
                "data.mixture" + (", or set objective.threshold, which applies to all." if kind.thresholds else ".")
            )
