"""From what the user asked for to what will be done: every default filled in, every contradiction refused."""

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.config import LabelConfig
from pipeline.dataset.manifest import ScorerEntry
from pipeline.dataset.schema import RESERVED_COLUMNS
from pipeline.labelling.worker import BASE_GROUP
from pipeline.sealing.thresholds import threshold_specs
from scorers.errors import UserError
from scorers.registry import ScorerSpec, build, resolve, runs_on_gpu


@dataclass(frozen=True)
class Resolved:
    """A job whose settings are complete.

    Attributes:
        config: with every option of every scorer, and a threshold for every column.
        specs: scorers by column, in the order of the schema.
        groups: columns by group of workers; the base group first, then each scorer on a GPU by itself.
    """

    config: LabelConfig
    specs: dict[str, ScorerSpec]
    groups: dict[str, list[str]]


def resolve_config(config: LabelConfig) -> Resolved:
    """Fill in what was left open; equal jobs have equal results, however they were written down.

    Raises:
        UserError: a column's name is taken, an option of a scorer is not valid, a threshold or a device is for a column
            that is not scored, or a device for a scorer that cannot use it.
    """
    for column in config.scorers:
        if column in RESERVED_COLUMNS or column == BASE_GROUP:
            raise UserError(
                f"A scorer cannot fill the column {column!r}: the dataset has such a column of its own. "
                f"Name another one, such as --scorer my_{column}={config.scorers[column].kind}."
            )
    specs = {column: resolve(column, spec) for column, spec in config.scorers.items()}
    groups: dict[str, list[str]] = {BASE_GROUP: []}
    for column, spec in specs.items():
        device = config.execution.devices.get(column, "cpu")
        if device == "cpu":
            groups[BASE_GROUP].append(column)
        elif runs_on_gpu(spec):
            groups[column] = [column]
        else:
            raise UserError(
                f"execution.devices.{column}: the scorer {spec.kind!r} runs on the CPU only, not on {device!r}."
            )
    for column in config.execution.devices:
        if column not in specs:
            raise UserError(
                f"execution.devices names {column!r}, but no scorer fills that column; the columns are: "
                f"{', '.join(specs)}."
            )
    thresholds = threshold_specs(list(specs), config.thresholds)
    return Resolved(config.model_copy(update={"scorers": specs, "thresholds": thresholds}), specs, groups)


def scorer_entries(specs: Mapping[str, ScorerSpec]) -> dict[str, ScorerEntry]:
    """What the manifest says of each scorer. Builds them all, which proves that they can run here.

    Raises:
        UserError: a scorer lacks a library, a model or its weights.
    """
    return {
        column: ScorerEntry(kind=spec.kind, options=spec.options, fingerprint=build(column, spec).fingerprint)
        for column, spec in specs.items()
    }
