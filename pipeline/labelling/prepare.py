"""Resolve and check a labelling job before it starts, and write its record.

Every default is filled in, and every contradiction is refused here.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from pipeline.config import LabelConfig, LabelExecution
from pipeline.corpus.fields import settle_sentences
from pipeline.corpus.inputs import Source, find_inputs
from pipeline.corpus.plan import Plan
from pipeline.corpus.planning import make_plan
from pipeline.dataset.manifest import ScorerEntry, SourceEntry
from pipeline.dataset.schema import RESERVED_COLUMNS
from pipeline.job.plan_files import read_plan, write_plan
from pipeline.job.record import (
    JOB,
    JobRecord,
    StoredJob,
    load_job,
    read_job,
    read_layers,
    refuse_changes,
    refuse_other_inputs,
)
from pipeline.labelling.monitoring.console import Reporter
from pipeline.labelling.monitoring.log_file import STDERR
from pipeline.labelling.on_ray.cluster import check_address
from pipeline.labelling.windows import check_windows
from pipeline.labelling.workers.worker import BASE_GROUP
from pipeline.sealing.thresholds import threshold_specs
from pipeline.storage.base import Storage
from pipeline.storage.checked_json import to_checked
from scorers import sentences
from scorers.contract import Execution
from scorers.errors import IncompleteError, UserError
from scorers.registry import ScorerSpec, build, check_recorded, resolve, runs_on_gpu


@dataclass(frozen=True)
class Resolved:
    """A job with complete settings.

    Attributes:
        config: configuration with every option of every scorer, and a threshold for every column.
        specs: scorers by column, in the order of the schema.
        groups: columns by group of workers; the base group first, then each scorer with a pool of its own.
    """

    config: LabelConfig
    specs: dict[str, ScorerSpec]
    groups: dict[str, list[str]]


def resolve_config(config: LabelConfig, later: Mapping[str, ScorerSpec] | None = None) -> Resolved:
    """Fill in all defaults, so that equal jobs have equal configurations.

    Args:
        config: the user's configuration.
        later: scorers of columns that were added after the job was begun; `execution` may name them too.

    Raises:
        UserError: a column's name is taken, an option of a scorer is invalid, a threshold, pool or deadline names a
            column that is not scored, or a device is set for a scorer that cannot use it.
    """
    for column in config.scorers:
        if column in RESERVED_COLUMNS or column == BASE_GROUP:
            raise UserError(
                f"A scorer cannot fill the column {column!r}: the dataset itself has a column of that name. "
                f"Choose another name, such as --scorer my_{column}={config.scorers[column].kind}."
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
    """The manifest's entry for each scorer. Builds all scorers on the CPU, which checks that they can run here.

    Raises:
        UserError: a scorer lacks a library, a model or its weights.
    """
    plain = Execution(trusted_sha256=execution.trusted_sha256)
    return {
        column: ScorerEntry(kind=spec.kind, options=spec.options, fingerprint=build(column, spec, plain).fingerprint)
        for column, spec in specs.items()
    }


# If the inputs have fewer bytes than this, they are read again on resume to check that their content is unchanged;
# otherwise only names, formats and sizes are compared.
_REREAD_BYTES = 250_000_000


@dataclass(frozen=True)
class Prepared:
    """A job that has passed all checks: its settings, record and plan.

    Attributes:
        resolved: the settings.
        record: the job's record, stored or about to be.
        plan: the whole plan.
        added: number and content of the plan file that is still to be written; None if there is none.
    """

    resolved: Resolved
    record: JobRecord
    plan: Plan
    added: tuple[int, Plan] | None = None


def prepare(storage: Storage, config: LabelConfig, reporter: Reporter, *, extend: bool = False) -> Prepared:
    """Check everything, cheapest first, and plan the job or read the plan of the one to resume. Writes nothing.

    Args:
        storage: the output.
        config: the user's configuration.
        reporter: shows the progress.
        extend: accept inputs that were added since the job was begun, and plan them too.

    Raises:
        UserError: invalid inputs, settings or scorers, a cluster that does not answer, or an output that cannot be
            used, holds something else or a job with other settings or inputs.
        IncompleteError: the output's disk or store fails.
    """
    resolved = resolve_config(config, _later_scorers(storage) if extend else None)
    log = [] if config.execution.log in {None, STDERR} else [str(config.execution.log)]
    found = find_inputs(config.inputs, config.kind, output=config.output, own=log)
    sources = found.sources
    storage.check()
    if config.execution.address:
        check_address(config.execution.address)
    with _reading(storage):
        begun, stored = read_job(storage), read_plan(storage)
    if extend and stored is None:
        raise UserError(f"{storage.uri} holds no job to extend. Leave --extend out to begin one.")
    before = None if begun is None else begun.config.get("sentences")
    resolved = replace(resolved, config=settle_sentences(sources, resolved.config, before))
    check_windows(sources, config.execution)
    reporter.step("Loading the scorers")
    record = JobRecord(
        config=resolved.config.semantic(),
        scorers=scorer_entries(resolved.specs, config.execution),
        sentences=sentences.fingerprint(),
    )
    if begun is not None:
        if stored is not None:
            inputs = {"inputs": record.config["inputs"] if extend else stored.inputs}
            begun = begun.model_copy(update={"config": begun.config | inputs})
        refuse_changes(storage, begun, record)
    if stored is None:
        plan = replace(read_inputs(resolved.config, sources, reporter), left_out=found.left_out)
        return Prepared(resolved, record, plan, (1, plan))
    known = {each.uri: each for each in stored.plan.sources}
    new = [each for each in sources if each.uri not in known]
    refuse_other_inputs(storage, known, {each.uri: each for each in sources}, extend=extend)
    if sum(source.size for source in sources) <= _REREAD_BYTES:
        now = read_inputs(resolved.config, [each for each in sources if each.uri in known], reporter).entries
        refuse_other_inputs(storage, _content(stored.plan.entries), _content(now))
    if not new:
        return Prepared(resolved, record, stored.plan)
    added = replace(read_inputs(resolved.config, new, reporter), left_out=found.left_out)
    return Prepared(resolved, record, stored.plan.then(added), (stored.parts + 1, added))


def _content(entries: Sequence[SourceEntry]) -> dict[str, tuple[str, int]]:
    """By URI, what must not change in an input. Leaves out `unread`, which older versions did not record."""
    return {each.uri: (each.sha256, each.records) for each in entries}


def write_job(storage: Storage, prepared: Prepared) -> StoredJob:
    """Write the job's record and plan unless an earlier run has; return the job as stored.

    Raises:
        UserError: another job was begun here at the same moment.
        OSError: the storage fails.
    """
    if not storage.put_if_absent(JOB, to_checked(prepared.record, indent=2)):
        begun = read_job(storage)
        if begun is not None:
            inputs = {"inputs": prepared.record.config["inputs"]}
            refuse_changes(storage, begun.model_copy(update={"config": begun.config | inputs}), prepared.record)
    if prepared.added is not None:
        number, plan = prepared.added
        write_plan(storage, number, prepared.resolved.config.inputs, plan)
    job = load_job(storage)
    if [each.uri for each in job.plan.sources] != [each.uri for each in prepared.plan.sources]:
        raise UserError(
            f"Another run has just begun at {storage.uri}, with other inputs. Run the same command again to see how "
            "they differ."
        )
    return job


def resolve_layer(job: StoredJob, layer: int, execution: LabelExecution) -> Resolved:
    """Resolve the settings of one layer of a job: its own columns, and the part of `execution` that concerns them.

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
    return resolve_config(config.model_copy(update=changed))


def check_layer(job: StoredJob, layer: int, execution: LabelExecution) -> None:
    """Refuse to continue a layer's columns with scorers that have changed.

    Raises:
        UserError: a scorer lacks something, or its fingerprint has changed.
    """
    begun = job.columns([layer])
    specs = {column: ScorerSpec(kind=each.kind, **each.options) for column, each in begun.items()}
    for column, entry in begun.items():
        check_recorded(column, specs[column], entry.fingerprint, execution.of(column).trusted_sha256)
    now = scorer_entries(specs, execution)
    for column, entry in begun.items():
        if now[column].fingerprint != entry.fingerprint:
            raise UserError(
                f"The scorer {column!r} is not the one that scored {job.storage.uri}: its fingerprint was "
                f"{entry.fingerprint}, now {now[column].fingerprint}: its libraries, weights or code have changed."
            )


@contextmanager
def _reading(storage: Storage) -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        raise UserError(f"Cannot read {storage.uri}: {error.strerror or error}.") from None
    except OSError as error:
        raise IncompleteError(
            f"Cannot read {storage.uri}: {error.strerror or error}. The same command continues once that is fixed."
        ) from None


def _later_scorers(storage: Storage) -> dict[str, ScorerSpec]:
    with _reading(storage):
        layers = read_layers(storage)
    return {
        column: ScorerSpec(kind=entry.kind, **entry.options)
        for layer in layers
        for column, entry in layer.scorers.items()
    }


def read_inputs(config: LabelConfig, sources: Sequence[Source], reporter: Reporter) -> Plan:
    """Read and plan some sources, and report the progress.

    Raises:
        UserError: a source cannot be read.
    """
    total = sum(source.size for source in sources)
    done = 0

    def progress(_: Source, size: int) -> None:
        nonlocal done
        done += size
        reporter.measure("Reading the inputs", done, total)

    reporter.step("Reading the inputs")
    try:
        return make_plan(config, progress, sources=sources)
    except OSError as error:
        raise UserError(f"Cannot read the inputs: {error.strerror or error} ({error.filename}).") from None
