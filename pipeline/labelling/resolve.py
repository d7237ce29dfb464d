"""From what the user asked for to what will be done: every default filled in, every contradiction refused."""

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.config import LabelConfig, LabelExecution
from pipeline.dataset.manifest import ScorerEntry
from pipeline.dataset.schema import RESERVED_COLUMNS
from pipeline.labelling.workers.worker import BASE_GROUP
from pipeline.sealing.thresholds import threshold_specs
from scorers.contract import Execution
from scorers.errors import UserError
from scorers.registry import ScorerSpec, build, resolve, runs_on_gpu


@dataclass(frozen=True)
class Resolved:
    """A job whose settings are complete.

    Attributes:
        config: with every option of every scorer, and a threshold for every column.
        specs: scorers by column, in the order of the schema.
        groups: columns by group of workers; the base group first, then each scorer with a pool of its own.
    """

    config: LabelConfig
    specs: dict[str, ScorerSpec]
    groups: dict[str, list[str]]


def resolve_config(config: LabelConfig, later: Mapping[str, ScorerSpec] | None = None) -> Resolved:
    """Fill in what was left open; equal jobs have equal results, however they were written down.

    Args:
        config: what is asked for.
        later: scorers of columns that were added after the job was begun; `execution` may speak of them too.

    Raises:
        UserError: a column's name is taken, an option of a scorer is not valid, a threshold, a pool or a deadline is
            for a column that is not scored, or a device for a scorer that cannot use it.
    """
    for column in config.scorers:
        if column in RESERVED_COLUMNS or column == BASE_GROUP:
            raise UserError(
                f"A scorer cannot fill the column {column!r}: the dataset has such a column of its own. "
                f"Name another one, such as --scorer my_{column}={config.scorers[column].kind}."
            )
    specs = {column: resolve(column, spec) for column, spec in config.scorers.items()}
    groups: dict[str, list[str]] = {BASE_GROUP: []}
    for column in specs:
        groups.setdefault(column if column in config.execution.pools else BASE_GROUP, []).append(column)
    _check_execution(config.execution, {**specs, **(later or {})})
    thresholds = threshold_specs(list(specs), config.thresholds)
    return Resolved(config.model_copy(update={"scorers": specs, "thresholds": thresholds}), specs, groups)


def _check_execution(execution: LabelExecution, specs: Mapping[str, ScorerSpec]) -> None:
    for key, columns in (("pools", execution.pools), ("deadlines", execution.deadlines)):
        for column in columns:
            if column not in specs and (key, column) != ("pools", BASE_GROUP):
                raise UserError(
                    f"execution.{key} names {column!r}, but no scorer fills that column; the columns are: "
                    f"{', '.join(specs)}."
                )
    for column, pool in execution.pools.items():
        if pool.device == "cpu":
            continue
        if column == BASE_GROUP:
            raise UserError(
                f"execution.pools.cpu.device: these workers are on the CPU, not on {pool.device!r}. Give the scorer a "
                f"pool of its own, such as execution.pools.{next(iter(specs))}={pool.device}."
            )
        if not runs_on_gpu(specs[column]):
            raise UserError(
                f"execution.pools.{column}: the scorer {specs[column].kind!r} runs on the CPU only, not on "
                f"{pool.device!r}."
            )
    base = execution.pools.get(BASE_GROUP)
    if execution.workers is not None and base is not None and base.model_fields_set & {"min", "max"}:
        raise UserError("Give execution.workers or execution.pools.cpu.min and .max, not both.")


def scorer_entries(specs: Mapping[str, ScorerSpec], execution: LabelExecution) -> dict[str, ScorerEntry]:
    """What the manifest says of each scorer. Builds them all, on the CPU, which proves that they can run here.

    Raises:
        UserError: a scorer lacks a library, a model or its weights.
    """
    plain = Execution(trusted_sha256=execution.trusted_sha256)
    return {
        column: ScorerEntry(kind=spec.kind, options=spec.options, fingerprint=build(column, spec, plain).fingerprint)
        for column, spec in specs.items()
    }
