"""Compare a labelled dataset with its inputs, record by record, to prove that labelling was lossless."""

from collections.abc import Iterator

from pipeline.checking.problems import Findings
from pipeline.config import LabelConfig, stored_config
from pipeline.corpus.cut_units import make_plan
from pipeline.corpus.inputs import find_sources
from pipeline.corpus.plan import Plan
from pipeline.corpus.readers import UnitReader
from pipeline.corpus.records import Quarantined, Record
from pipeline.dataset import LabelledDataset
from pipeline.dataset.manifest import MANIFEST_NAME

Key = tuple[str, int]
_ROW = ("source", "position", "doc_id", "text", "meta")
_FOLDER = "data"
NOT_LABELLED = "is among the inputs now, but was not labelled"


def compare_with_inputs(dataset: LabelledDataset, quarantined: set[Key], findings: Findings) -> None:
    """Read every input again, and compare its hash and each record's text, id and meta with the dataset.

    Args:
        dataset: the dataset, whose manifest names the inputs; relative paths start from the current folder.
        quarantined: keys of the quarantined records.
        findings: collects the differences.

    Raises:
        UserError: an input is missing or cannot be read.
        DamagedError: a shard cannot be read.
    """
    try:
        config = stored_config(dataset.manifest.config, dataset.uri)
    except ValueError as error:
        findings.add(MANIFEST_NAME, f"is damaged at config.{error}")
        return
    # Inputs that were added later follow the earlier ones, whatever their names.
    order = {entry.uri: index for index, entry in enumerate(dataset.manifest.sources)}
    sources = find_sources(config.inputs, config.kind, output=config.output)
    plan = make_plan(config, sources=sorted(sources, key=lambda source: order.get(source.uri, len(order))))
    if not _same_sources(dataset, plan, findings):
        return
    rows = _rows(dataset)
    row = next(rows, None)
    for record in _records(plan, config):
        key = (record.source, record.position)
        if row is None or row[:2] != key:
            if key not in quarantined:
                findings.add_rows(_FOLDER, "a record of the inputs is neither a row nor in quarantine", [_name(key)])
            continue
        if isinstance(record, Quarantined):
            findings.add_rows(_FOLDER, f"is a row, though its record cannot be labelled: {record.reason}", [_name(key)])
        else:
            for name, found, read in zip(_ROW[2:], row[2:], (record.doc_id, record.text, record.meta), strict=True):
                if found != read:
                    findings.add_rows(_FOLDER, f"`{name}` differs from the input", [_name(key)])
        row = next(rows, None)
    if row is not None:
        findings.add_rows(_FOLDER, "matches no record of the inputs", [_name(row[:2])])


def _same_sources(dataset: LabelledDataset, plan: Plan, findings: Findings) -> bool:
    # Ignore `unread`, which older versions did not record.
    before, now = (
        {entry.uri: entry.model_copy(update={"unread": 0}) for entry in entries}
        for entries in (dataset.manifest.sources, plan.entries)
    )
    for uri in sorted(before.keys() | now.keys()):
        if uri not in now:
            findings.add(uri, "was labelled, but is not among the inputs now")
        elif uri not in before:
            findings.add(uri, NOT_LABELLED)
        elif before[uri] != now[uri]:
            findings.add(uri, "has changed since it was labelled")
    return before == now


def _records(plan: Plan, config: LabelConfig) -> Iterator[Record | Quarantined]:
    reader = UnitReader(plan, config)
    try:
        for unit in plan.units:
            yield from reader.read(unit)
    finally:
        reader.close()


def _rows(dataset: LabelledDataset) -> Iterator[tuple[str, int, str, str, str]]:
    for batch in dataset.read_batches(_ROW):
        yield from zip(*(batch.column(name).to_pylist() for name in _ROW), strict=True)


def _name(key: Key) -> str:
    return f"{key[0]}#{key[1]}"
