"""Everything that can be refused before a labelling job starts anything, and the job's own record of what it is."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline.config import LabelConfig
from pipeline.corpus.inputs import Source, find_sources
from pipeline.corpus.plan import Plan
from pipeline.corpus.planning import make_plan
from pipeline.labelling.cluster import check_address
from pipeline.labelling.job import JOB, PLAN, JobRecord, read_job, read_plan, refuse_changes, refuse_other_inputs
from pipeline.labelling.reporter import Reporter
from pipeline.labelling.resolve import Resolved, resolve_config, scorer_entries
from pipeline.storage import Storage
from scorers import sentences
from scorers.errors import IncompleteError, UserError

# Inputs of fewer bytes than this are read again before a job goes on, to see that their content is still the same; of
# larger ones names, formats and sizes are compared.
_REREAD_BYTES = 250_000_000


@dataclass(frozen=True)
class Prepared:
    """A job that nothing speaks against: its complete settings, the record of it, and its plan."""

    resolved: Resolved
    record: JobRecord
    plan: Plan


def prepare(storage: Storage, config: LabelConfig, reporter: Reporter) -> Prepared:
    """Check everything, cheapest first, and plan the job, or read the plan of the one to go on with. Writes nothing.

    Raises:
        UserError: bad inputs, settings or scorers, a cluster that does not answer, or an output that cannot be used,
            holds something else or a job with other settings or inputs.
        IncompleteError: the output's disk or store fails.
    """
    resolved = resolve_config(config)
    sources = find_sources(config.inputs, config.kind, output=config.output)
    storage.check()
    if config.execution.address:
        check_address(config.execution.address)
    try:
        begun, plan = read_job(storage), read_plan(storage)
    except PermissionError as error:
        raise UserError(f"Cannot read {storage.uri}: {error.strerror or error}.") from None
    except OSError as error:
        raise IncompleteError(
            f"Cannot read {storage.uri}: {error.strerror or error}. The same command goes on once that is mended."
        ) from None
    reporter.step("Loading the scorers")
    record = JobRecord(
        config=resolved.config.semantic(), scorers=scorer_entries(resolved.specs), sentences=sentences.fingerprint()
    )
    if begun is not None:
        refuse_changes(storage, begun, record)
    if plan is None:
        return Prepared(resolved, record, _read_inputs(resolved.config, sources, reporter))
    refuse_other_inputs(storage, {each.uri: each for each in plan.sources}, {each.uri: each for each in sources})
    if sum(source.size for source in sources) <= _REREAD_BYTES:
        now = _read_inputs(resolved.config, sources, reporter).entries
        refuse_other_inputs(storage, {each.uri: each for each in plan.entries}, {each.uri: each for each in now})
    return Prepared(resolved, record, plan)


def write_job(storage: Storage, prepared: Prepared) -> Prepared:
    """Write down what the job is, unless an earlier run has; returns the job with the plan that holds.

    Raises:
        UserError: another job was begun in this very moment.
        OSError: the storage fails.
    """
    if not storage.put_if_absent(JOB, prepared.record.model_dump_json(indent=2).encode()):
        begun = read_job(storage)
        if begun is not None:
            refuse_changes(storage, begun, prepared.record)
    if not storage.put_if_absent(PLAN, prepared.plan.to_json().encode()):
        return replace(prepared, plan=read_plan(storage) or prepared.plan)
    return prepared


def _read_inputs(config: LabelConfig, sources: Sequence[Source], reporter: Reporter) -> Plan:
    total = sum(source.size for source in sources)
    done = 0

    def progress(_: Source, size: int) -> None:
        nonlocal done
        done += size
        reporter.measure("Reading the inputs", done, total)

    reporter.step("Reading the inputs")
    try:
        return make_plan(config, progress)
    except OSError as error:
        raise UserError(f"Cannot read the inputs: {error.strerror or error} ({error.filename}).") from None
