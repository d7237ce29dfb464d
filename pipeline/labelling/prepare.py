"""Check a labelling job and plan it before it starts, and write its record."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from pipeline.config import LabelConfig
from pipeline.corpus.cut_units import make_plan
from pipeline.corpus.fields import settle_sentences
from pipeline.corpus.inputs import Inputs, Source, find_inputs
from pipeline.corpus.plan import Plan
from pipeline.dataset.manifest import SourceEntry
from pipeline.job.plan_files import StoredPlan, read_plan, write_plan
from pipeline.job.record import (
    JOB,
    JobRecord,
    StoredJob,
    load_job,
    read_job,
    read_layers,
    refuse_changes,
    refuse_other_inputs,
    refuse_purging,
)
from pipeline.labelling.monitoring.console import Reporter
from pipeline.labelling.monitoring.log_file import STDERR
from pipeline.labelling.on_ray.cluster import check_address
from pipeline.labelling.resolve import resolve_config, scorer_entries
from pipeline.labelling.windows import check_windows
from pipeline.sealing.generations import sealed_manifest
from pipeline.storage.base import Storage
from pipeline.storage.checked_json import to_checked
from pipeline.storage.open import open_storage, storage_uri
from scorers import sentences
from scorers.errors import IncompleteError, UserError
from scorers.registry import ScorerSpec
from scorers.rehearsal import Rehearsal

# If the inputs have fewer bytes than this, they are read again on resume to check that their content is unchanged;
# otherwise only names, formats and sizes are compared.
_REREAD_BYTES = 250_000_000


@dataclass(frozen=True)
class Prepared:
    """A job that has passed all checks: its settings, record and plan.

    Attributes:
        config: the resolved settings.
        record: the job's record, stored or about to be.
        plan: the whole plan.
        added: number and content of the plan file that is still to be written; None if there is none.
    """

    config: LabelConfig
    record: JobRecord
    plan: Plan
    added: tuple[int, Plan] | None = None


@dataclass(frozen=True)
class _Checked:
    """What is known before scorers are loaded; `begun` has the inputs that the job may have now."""

    config: LabelConfig
    found: Inputs
    begun: JobRecord | None
    stored: StoredPlan | None


def check_before_submitting(config: LabelConfig, *, extend: bool, rehearsal: Rehearsal) -> str:
    """Check what can be checked without loading scorers or reading the corpus, and return the URI of the output.

    Args:
        config: the user's configuration.
        extend: as for `prepare`.
        rehearsal: where the job will run.

    Raises:
        UserError: see `prepare`.
        IncompleteError: the output's disk or store fails.
    """
    if rehearsal.cluster and config.execution.workers == 0:
        raise UserError(
            "--workers 0 labels without Ray, and this place labels on a Ray cluster. Leave --workers out, or submit "
            "the job --on local."
        )
    if not rehearsal.files:
        resolve_config(config)
        return storage_uri(config.output)
    storage = open_storage(config.output)
    checked = _check(storage, config.model_copy(update={"output": storage.uri}), extend=extend)
    if checked.begun is not None:
        now = checked.begun.model_copy(update={"config": checked.config.semantic()})
        with _reading(storage):
            refuse_other_settings(storage, checked.begun, now)
    return storage.uri


def _check(storage: Storage, config: LabelConfig, *, extend: bool) -> _Checked:
    """Check everything that needs no scorer, cheapest first."""
    config = resolve_config(config, _later_scorers(storage) if extend else None)
    log = [] if config.execution.log in {None, STDERR} else [str(config.execution.log)]
    found = find_inputs(config.inputs, config.kind, output=config.output, own=log)
    sources = found.sources
    storage.check()
    if config.execution.address:
        check_address(config.execution.address)
    with _reading(storage):
        begun, stored = read_job(storage), read_plan(storage)
    if begun is not None:
        refuse_purging(storage, begun)
    if extend and stored is None:
        raise UserError(f"{storage.uri} holds no job to extend. Leave --extend out to begin one.")
    before = None if begun is None else begun.config.get("sentences")
    config = settle_sentences(sources, config, before)
    check_windows(sources, config.execution)
    if begun is not None and stored is not None:
        begun = begun.with_inputs(config.inputs if extend else stored.inputs)
    return _Checked(config, found, begun, stored)


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
    checked = _check(storage, config, extend=extend)
    config, begun, stored, sources = checked.config, checked.begun, checked.stored, checked.found.sources
    reporter.step("Loading the scorers")
    record = JobRecord(
        config=config.semantic(),
        scorers=scorer_entries(config.scorers, config.execution),
        sentences=sentences.fingerprint(),
    )
    if begun is not None:
        with _reading(storage):
            refuse_other_settings(storage, begun, record)
    if stored is None:
        plan = replace(read_inputs(config, sources, reporter), left_out=checked.found.left_out)
        return Prepared(config, record, plan, (1, plan))
    purged = begun is not None and begun.purges > 0
    known = {each.uri: each for each in stored.plan.sources}
    new = [each for each in sources if each.uri not in known]
    refuse_other_inputs(storage, known, {each.uri: each for each in sources}, extend=extend, purged=purged)
    if sum(source.size for source in sources) <= _REREAD_BYTES:
        now = read_inputs(config, [each for each in sources if each.uri in known], reporter).entries
        refuse_other_inputs(storage, _content(stored.plan.entries), _content(now), purged=purged)
    if not new:
        return Prepared(config, record, stored.plan)
    added = replace(read_inputs(config, new, reporter), left_out=checked.found.left_out)
    return Prepared(config, record, stored.plan.then(added), (stored.parts + 1, added))


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
            refuse_other_settings(storage, begun.with_inputs(prepared.config.inputs), prepared.record)
    if prepared.added is not None:
        number, plan = prepared.added
        write_plan(storage, number, prepared.config.inputs, plan)
    job = load_job(storage)
    if [each.uri for each in job.plan.sources] != [each.uri for each in prepared.plan.sources]:
        raise UserError(
            f"Another run has just begun at {storage.uri}, with other inputs. Run the same command again to see how "
            "they differ."
        )
    return job


def refuse_other_settings(storage: Storage, begun: JobRecord, given: JobRecord) -> None:
    """Refuse to resume a job with other settings; thresholds may be those that the dataset has now.

    Raises:
        UserError: see `refuse_changes`.
    """
    manifest = sealed_manifest(storage)
    if manifest is not None:
        # `phf retag` may have changed them since the job was begun.
        thresholds = {
            column: spec
            if column not in manifest.thresholds or given.thresholds.get(column) == spec
            else manifest.thresholds[column].spec
            for column, spec in begun.thresholds.items()
        }
        begun = begun.model_copy(update={"config": begun.config | {"thresholds": thresholds}})
    refuse_changes(storage, begun, given)


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
    return {column: entry.spec for layer in layers for column, entry in layer.scorers.items()}


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
