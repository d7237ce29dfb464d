"""The datasets that a configuration names, opened, and whether they can be trained on together."""

from dataclasses import dataclass
from fractions import Fraction

from pipeline.dataset import LabelledDataset, Manifest, open_dataset
from pipeline.dataset.manifest import ScorerEntry
from scorers.errors import UserError
from training.config import MixtureConfig, TrainConfig
from training.data.places import dataset_identity
from training.objectives import MLE, OBJECTIVES


@dataclass(frozen=True)
class Source:
    """A dataset that a run trains on.

    Attributes:
        uri: what the user called it.
        dataset: opened.
        share: of the run's blocks.
        column: its score column.
        task: whose preset its threshold is from, where it has none of its own.
        threshold: given for it; see `training.config.MixtureConfig`.
        store: where its tokens go, if that is given.
    """

    uri: str
    dataset: LabelledDataset
    share: Fraction
    column: str
    task: str
    threshold: float | None
    store: str | None

    @property
    def manifest(self) -> Manifest:
        """Of the dataset."""
        return self.dataset.manifest

    @property
    def scorer(self) -> ScorerEntry:
        """What made the column."""
        return self.manifest.scorers[self.column]


def open_sources(config: TrainConfig) -> list[Source]:
    """The dataset, and those that are mixed into it, in the order of the configuration.

    Args:
        config: with the columns filled in.

    Raises:
        UserError: a dataset is missing, unfinished or without the column, or is named twice, under whatever name.
    """
    data, task, given = config.data, config.task, config.objective.threshold
    shares = data.shares
    column = data.column or task
    main = Source(data.dataset, _open(data.dataset, column), shares[0], column, task, given, data.store)
    for each in data.columns:
        main.dataset.require_column(each)
    found = [main]
    for entry, share in zip(data.mixture, shares[1:], strict=True):
        own = entry.column or column
        dataset = _open(entry.dataset, own)
        same = dataset.manifest.scorers[own].fingerprint == main.scorer.fingerprint
        threshold = entry.threshold if entry.threshold is not None else given if same else None
        found.append(Source(entry.dataset, dataset, share, own, task if own == column else own, threshold, entry.store))
    _refuse_twice(found)
    _refuse_thresholds(config, data.mixture, given)
    return found


def refuse_mixed_scorers(sources: list[Source], config: TrainConfig) -> tuple[str, ...]:
    """Refuse scores of different scorers in one loss, or warn of them where the user has allowed them.

    Tags and filters have a threshold for each dataset, so what they make of the scores can be mixed; a loss that
    computes with the scores takes them all for numbers on one scale.

    Returns:
        Warnings.

    Raises:
        UserError: they are mixed, and that is not allowed.
    """
    name = config.objective.name
    main = sources[0]
    others = [each for each in sources[1:] if each.scorer.fingerprint != main.scorer.fingerprint]
    masked = config.objective.mask_above is not None
    if not others or (issubclass(OBJECTIVES[name], MLE) and not masked):
        return ()
    what = f"{name} with objective.mask_above" if masked else name
    listed = "; ".join(f"{each.uri}: {each.column} by {each.scorer.fingerprint}" for each in [main, *others])
    if config.data.allow_mixed_scorers:
        return (f"The objective {what} computes with scores of different scorers as if they had one scale ({listed}).",)
    instead = "choose conditional or filtering, which have a threshold each"
    if masked:
        instead = "leave objective.mask_above out"
    raise UserError(
        f"The objective {what} computes with the scores themselves, and these datasets are scored differently "
        f"({listed}). Label them with the same scorer, {instead}, or add --set data.allow_mixed_scorers=true if the "
        "scores do have one scale."
    )


def _open(uri: str, column: str) -> LabelledDataset:
    dataset = open_dataset(uri)
    dataset.require_column(column)
    return dataset


def _refuse_twice(sources: list[Source]) -> None:
    seen: dict[str, str] = {}
    for source in sources:
        identity = dataset_identity(source.manifest)
        if identity in seen:
            raise UserError(
                f"{source.uri} is the same dataset as {seen[identity]}: its documents would be repeated. "
                "Name it once, with the share that it shall have; where it is small, it goes through more epochs."
            )
        seen[identity] = source.uri


def _refuse_thresholds(config: TrainConfig, mixture: tuple[MixtureConfig, ...], given: float | None) -> None:
    kind = OBJECTIVES[config.objective.name]
    if kind.tags or kind.filters:
        return
    for entry in mixture:
        if entry.threshold is not None and entry.threshold != given:
            raise UserError(
                f"The objective {kind.name} has no threshold of its own for {entry.dataset}. Remove the threshold from "
                "data.mixture" + (", or set objective.threshold, which is for all." if kind.thresholds else ".")
            )
