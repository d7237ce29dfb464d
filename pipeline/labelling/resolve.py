"""Resolve the settings of a labelling job: fill in every default, and refuse every contradiction."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.config import LabelConfig, LabelExecution, language_fields
from pipeline.corpus.plan import Plan
from pipeline.dataset.manifest import ScorerEntry
from pipeline.dataset.schema import RESERVED_COLUMNS, spans_column
from pipeline.job.purged import Key
from pipeline.job.record import StoredJob
from pipeline.sealing.thresholds import threshold_specs
from scorers.contract import Execution
from scorers.errors import UserError
from scorers.registry import ScorerSpec, build, check_recorded, resolve, runs_on_gpu

# The workers of all scorers without a pool of their own; in the first layer, their parts hold the rows too.
BASE_GROUP = "cpu"


@dataclass(frozen=True)
class ResolvedJob:
    """One layer of a job, as the driver and its workers run it: nothing is left open.

    Attributes:
        config: settings with every option of every scorer of the layer, and a threshold for each of its columns.
        plan: sources and fingerprints; its units are left out on a cluster, since workers get them one by one.
        groups: columns by group of workers, from `groups_of`; `phf repair` may need only some of the groups.
        fingerprints: what the fingerprints of the scorers must be, by column.
        layer: layer of the dataset that the parts belong to; layers after the first hold no rows, and score those of
            the first.
        folder: the driver's working directory, to which relative inputs refer.
        purged: keys of records that are not to be labelled, because they were purged.
    """

    config: LabelConfig
    plan: Plan
    groups: dict[str, list[str]]
    fingerprints: dict[str, str]
    layer: int = 1
    folder: str = field(default_factory=os.getcwd)
    purged: frozenset[Key] = frozenset()


def resolve_config(config: LabelConfig, later: Mapping[str, ScorerSpec] | None = None) -> LabelConfig:
    """Fill in all options of the scorers and all thresholds, so that equal jobs have equal configurations.

    Args:
        config: the user's configuration.
        later: scorers of columns that were added after the job was begun; `execution` may name them too.

    Raises:
        UserError: a column's name is taken, an option of a scorer is invalid, a threshold, pool or deadline names a
            column that is not scored, a device is set for a scorer that cannot use it, or the field of languages is
            not kept.
    """
    for column in config.scorers:
        if column in RESERVED_COLUMNS or column == BASE_GROUP:
            raise UserError(
                f"A scorer cannot fill the column {column!r}: the dataset itself has a column of that name. "
                f"Choose another name, such as --scorer my_{column}={config.scorers[column].kind}."
            )
    for column, spec in config.scorers.items():
        if spec.spans and spans_column(column) in config.scorers:
            raise UserError(
                f"The spans of {column!r} fill the column {spans_column(column)!r}, which another scorer fills too. "
                "Choose another name for its column."
            )
    _check_languages(config)
    scorers = {column: resolve(column, spec) for column, spec in config.scorers.items()}
    _check_execution(config.execution, {**scorers, **(later or {})})
    thresholds = threshold_specs(list(scorers), config.thresholds)
    return config.model_copy(update={"scorers": scorers, "thresholds": thresholds})


def _check_languages(config: LabelConfig) -> None:
    for column, name in language_fields(config).items():
        # Later layers, and whoever reads the dataset, find the language there.
        if name in (config.text_field, config.id_field) or (
            config.meta_fields is not None and name not in config.meta_fields
        ):
            raise UserError(
                f"scorers.{column}.languages: the field {name!r} with the language of a record must be kept in the "
                "dataset. Name it in meta_fields, or choose another scorers."
                f"{column}.language_field; the fields of text and id are not kept there."
            )


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
    if execution.workers == 0:
        for key in ("address", "pools", "metrics_port"):
            if getattr(execution, key):
                raise UserError(
                    f"execution.workers=0 labels without Ray, but execution.{key} needs it. Give one of them."
                )


def resolve_layer(job: StoredJob, layer: int, execution: LabelExecution) -> ResolvedJob:
    """Resolve one layer of a stored job: its own columns, and the part of `execution` that concerns them.

    Raises:
        UserError: see `resolve_config`.
    """
    columns = job.columns([layer])
    config = job.config([1] if layer == 1 else [1, layer])
    concerned = {
        "pools": {column: pool for column, pool in execution.pools.items() if column in (*columns, BASE_GROUP)},
        "deadlines": {column: seconds for column, seconds in execution.deadlines.items() if column in columns},
    }
    changed = {
        "scorers": {column: config.scorers[column] for column in columns},
        "thresholds": {column: spec for column, spec in config.thresholds.items() if column in columns},
        "execution": execution.model_copy(update=concerned),
    }
    config = resolve_config(config.model_copy(update=changed))
    fingerprints = {column: entry.fingerprint for column, entry in columns.items()}
    return ResolvedJob(config, job.plan, groups_of(config), fingerprints, layer, purged=job.purged)


def groups_of(config: LabelConfig) -> dict[str, list[str]]:
    """Columns by group of workers; the base group first, then each scorer with a pool of its own."""
    groups: dict[str, list[str]] = {BASE_GROUP: []}
    for column in config.scorers:
        groups.setdefault(column if column in config.execution.pools else BASE_GROUP, []).append(column)
    return groups


def scorer_entries(specs: Mapping[str, ScorerSpec], execution: LabelExecution) -> dict[str, ScorerEntry]:
    """The manifest's entry for each scorer. Builds all scorers on the CPU, which checks that they can run here.

    Raises:
        UserError: a scorer lacks a library, a model or its weights.
    """
    plain = Execution(trusted_sha256=execution.trusted_sha256)
    return {
        column: ScorerEntry(
            kind=spec.kind,
            options=spec.options,
            fingerprint=build(column, spec, plain).fingerprint,
            spans=spec.spans,
            languages=spec.languages,
            language_field=spec.language_field,
        )
        for column, spec in specs.items()
    }


def check_layer(job: StoredJob, layer: int, execution: LabelExecution) -> None:
    """Refuse to continue a layer's columns with scorers that have changed.

    Raises:
        UserError: a scorer lacks something, or its fingerprint has changed.
    """
    begun = job.columns([layer])
    for column, entry in begun.items():
        check_recorded(column, entry.spec, entry.fingerprint, execution.trusted_sha256)
    now = scorer_entries({column: entry.spec for column, entry in begun.items()}, execution)
    for column, entry in begun.items():
        if now[column].fingerprint != entry.fingerprint:
            raise UserError(
                f"The scorer {column!r} is not the one that scored {job.storage.uri}: its fingerprint was "
                f"{entry.fingerprint}, now {now[column].fingerprint}: its libraries, weights or code have changed."
            )
