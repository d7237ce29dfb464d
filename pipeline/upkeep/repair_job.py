"""Repair the files that define a job, from the sealed manifest and the inputs; check that inputs are unchanged."""

import hashlib
from dataclasses import replace
from functools import partial

from pipeline.checking.files import compare_bytes
from pipeline.checking.job import JobCheck
from pipeline.config import LabelConfig, stored_config
from pipeline.corpus.inputs import Source, cannot_read, find_inputs
from pipeline.corpus.plan import Plan
from pipeline.corpus.streams import SourceFile
from pipeline.dataset.manifest import Manifest, ScorerEntry, SourceEntry
from pipeline.job.plan_files import PlanFile, encode_plan, plan_path, read_part
from pipeline.job.purged import TOMBSTONES, tombstones_path
from pipeline.job.record import JOB, JobRecord, LayerRecord, layer_path
from pipeline.job.unit_rows import read_rows
from pipeline.job.unit_store import UnitStore
from pipeline.labelling.monitoring.console import Reporter
from pipeline.labelling.prepare import read_inputs
from pipeline.storage.checked_json import from_checked, to_checked
from pipeline.upkeep.repair_steps import Repairs
from scorers import sentences
from scorers.errors import UserError


def check_input(source: Source, entry: SourceEntry) -> None:
    """Check cheaply that an input exists with its original size.

    Raises:
        UserError: it is missing, cannot be read, or has another size.
    """
    try:
        with SourceFile(source) as file:
            size = file.size
    except UserError as error:
        place = " Run the command in the folder where `phf label` was run." if "://" not in source.uri else ""
        raise UserError(f"{error}{place}") from None
    if size != entry.size:
        raise _changed(source)


def check_input_bytes(source: Source, entry: SourceEntry) -> None:
    """Check that the content of an input is what it was when the job was planned; reads all of it.

    Raises:
        UserError: it has changed, or cannot be read.
    """
    found = hashlib.sha256()
    try:
        with SourceFile(source, found.update) as file:
            file.drain()
    except OSError as error:
        raise UserError(cannot_read(source.uri, error)) from None
    if found.hexdigest() != entry.sha256:
        raise _changed(source)


def _changed(source: Source) -> UserError:
    return UserError(
        f"The input {source.uri} has changed since it was labelled. Put the file back as it was, or label the corpus "
        "into another output."
    )


_MOST_ROWS = 200
_FROM_MANIFEST = "rewritten from the manifest"


def repair_job(repairs: Repairs, check: JobCheck, manifest: Manifest | None, reporter: Reporter) -> None:
    """Repair the files below `job/`, or record why that is impossible.

    Raises:
        StoppedError: a newer run has claimed the output.
        OSError: the storage fails.
    """
    for number in check.purges:
        repairs.leave(tombstones_path(number), "only it holds the keys of the purged documents; restore it from a copy")
    damaged = [JOB] * check.config + [layer_path(layer) for layer in check.layers]
    columns = _lost_columns(repairs, check, manifest) if manifest is not None and len(damaged) == 1 else {}
    if damaged and not columns:
        for path in damaged:
            repairs.leave(path, "its content cannot be recovered from other files; restore it from a copy")
    if check.config and (manifest is None or not columns):
        for number in check.plans:
            repairs.leave(plan_path(number), f"the plan depends on {JOB}, which cannot be repaired")
        return
    try:
        known = None if manifest is None else stored_config(manifest.config, repairs.storage.uri)
        config = (
            known if check.config and known is not None else stored_config(_job(repairs).config, repairs.storage.uri)
        )
        if known is not None and (lacking := columns.keys() - known.scorers.keys()):
            raise ValueError(f"scorers: {min(lacking)} is missing")
    except ValueError as error:
        for path in damaged or [plan_path(number) for number in check.plans]:
            repairs.leave(path, f"the configuration of the job is invalid ({error}); restore it from a copy")
        return
    plans = _Plans(repairs, config, manifest, reporter)
    for number in sorted(check.plans):
        plans.repair(number, check.plans[number])
    if manifest is None or not columns:
        return
    thresholds = {column: str(each) for column, each in manifest.config["thresholds"].items() if column in columns}
    if check.config:
        _repair_config(repairs, check, manifest, columns, thresholds)
    for layer in check.layers:
        scored, _ = _known_columns(repairs, check)
        located = [column for column in columns if column in scored]
        record = to_checked(LayerRecord(scorers=columns, thresholds=thresholds, located=located), indent=2)
        repairs.do(layer_path(layer), _FROM_MANIFEST, partial(repairs.storage.put, layer_path(layer), record))


def _job(repairs: Repairs) -> JobRecord:
    return from_checked(JobRecord, repairs.storage.read(JOB))


def _lost_columns(repairs: Repairs, check: JobCheck, manifest: Manifest) -> dict[str, ScorerEntry]:
    """The columns of the only layer with a damaged record: those of the manifest that the others do not fill."""
    scored, located = _known_columns(repairs, check)
    lost = {}
    for column, entry in manifest.scorers.items():
        if column not in scored:
            lost[column] = entry.without_spans() if column in located else entry
        elif entry.spans and not scored[column] and column not in located:
            lost[column] = entry
    return lost


def _known_columns(repairs: Repairs, check: JobCheck) -> tuple[dict[str, bool], set[str]]:
    """The columns that the intact layers score, and whether with spans; and those to which one of them adds spans."""
    scored = {} if check.config else {column: entry.spans for column, entry in _job(repairs).scorers.items()}
    located: set[str] = set()
    for layer in range(2, check.layer_count + 1):
        if layer not in check.layers:
            record = from_checked(LayerRecord, repairs.storage.read(layer_path(layer)))
            located |= set(record.located)
            scored |= {column: entry.spans for column, entry in record.scorers.items() if column not in located}
    return scored, located


def _repair_config(
    repairs: Repairs,
    check: JobCheck,
    manifest: Manifest,
    columns: dict[str, ScorerEntry],
    thresholds: dict[str, str],
) -> None:
    storage = repairs.storage
    inputs = manifest.config["inputs"]
    if 1 not in check.plans:
        named, plan = read_part(storage, plan_path(1))
        inputs = named.inputs
        if not _splits_alike(repairs, plan):
            repairs.leave(
                JOB,
                "the sentence splitter installed here ends sentences elsewhere than the labelled rows do; install the "
                f"version of spaCy that {manifest.created_by} was run with",
            )
            return
    elif repairs.epoch is not None:
        repairs.leave(JOB, "the plan cannot be repaired")
        return
    scorers = {column: entry.spec.model_dump(mode="json") for column, entry in columns.items()}
    changed = {"inputs": inputs, "scorers": scorers, "thresholds": thresholds}
    # Whether the last purge was finished is lost: `phf purge` finds that out.
    purges = sum(name.endswith(".json") for name in storage.children(TOMBSTONES))
    record = JobRecord(
        version=2 if purges else 1,
        config=manifest.config | changed,
        scorers=columns,
        sentences=sentences.fingerprint(),
        purges=purges,
    )
    repairs.do(JOB, _FROM_MANIFEST, partial(storage.put, JOB, to_checked(record, indent=2)))


def _splits_alike(repairs: Repairs, plan: Plan) -> bool:
    """Whether the installed splitter reproduces the sentence ends of the first rows of the units."""
    kinds = {source.uri: source.kind for source in plan.sources}
    store = UnitStore(repairs.storage)
    seen = 0
    for unit in range(len(plan.units)):
        try:
            rows = read_rows(repairs.storage, store.read(unit), [])
        except (OSError, UserError):
            continue  # this unit is damaged too
        for row in rows.select(["source", "text", "ends"]).slice(0, _MOST_ROWS - seen).to_pylist():
            if sentences.split(row["text"], kinds[row["source"]]).tolist() != row["ends"]:
                return False
        seen += rows.num_rows
        if seen >= _MOST_ROWS:
            break
    return True


class _Plans:
    """Plans parts of a plan again. A part is correct if its files have their former hashes or names."""

    def __init__(self, repairs: Repairs, config: LabelConfig, manifest: Manifest | None, reporter: Reporter) -> None:
        self._repairs = repairs
        self._config = config
        self._manifest = manifest
        self._reporter = reporter

    def repair(self, number: int, known: PlanFile | None) -> None:
        """Repair a part whose files `known` names; None if that file itself is damaged or lost."""
        path = plan_path(number)
        try:
            inputs = self._config.inputs if known is None else known.inputs
            plan = self._plan_again(number, inputs)
        except UserError as error:
            self._repairs.leave(path, str(error))
            return
        named, files = encode_plan(inputs, plan)
        if known is None:
            if not (self._exist(named) or self._is_sealed(number, plan)):
                self._repairs.leave(path, "the inputs cannot be shown to be those that were planned")
                return
            self._write(path, to_checked(named, indent=2))
        elif (named.sources, named.units) != (known.sources, known.units):
            self._repairs.leave(path, "the inputs differ from those that were planned; restore them as they were")
            return
        for file in (named.sources, named.units):
            if compare_bytes(self._repairs.storage, file, "", lambda _: None) is not None:
                self._write(file.path, files[file.path])

    def _write(self, path: str, data: bytes) -> None:
        self._repairs.do(path, "planned again from the inputs", partial(self._repairs.storage.put, path, data))

    def _plan_again(self, number: int, inputs: list[str]) -> Plan:
        found = find_inputs(inputs, self._config.kind, output=self._repairs.storage.uri)
        sources, left_out = found.sources, found.left_out
        earlier = [
            source.uri
            for other in range(1, number)
            for source in read_part(self._repairs.storage, plan_path(other))[1].sources
        ]
        sources = [source for source in sources if source.uri not in earlier]
        sealed = [] if self._manifest is None else [source.uri for source in self._manifest.sources]
        if self._manifest is not None and len(sealed) > len(earlier):
            left_out = self._manifest.left_out
            # Inputs that were added since then do not belong to this part.
            later = self._later(number)
            sources = [source for source in sources if source.uri in sealed and source.uri not in later]
        return replace(read_inputs(self._config, sources, self._reporter), left_out=left_out)

    def _later(self, number: int) -> set[str]:
        found: set[str] = set()
        while self._repairs.storage.exists(plan_path(number := number + 1)):
            try:
                found |= {source.uri for source in read_part(self._repairs.storage, plan_path(number))[1].sources}
            except UserError:
                break
        return found

    def _exist(self, named: PlanFile) -> bool:
        """Whether the files exist. They are named by their content, so the same inputs were planned here before."""
        return all(
            compare_bytes(self._repairs.storage, file, "", lambda _: None) is None
            for file in (named.sources, named.units)
        )

    def _is_sealed(self, number: int, plan: Plan) -> bool:
        manifest = self._manifest
        return (
            manifest is not None
            and number == 1
            and manifest.sources == plan.entries
            and manifest.ledger.units == len(plan.units)
        )
