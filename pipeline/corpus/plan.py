"""The plan of a job: every input fingerprinted, and the corpus cut into units that do not depend on the workers."""

import json
from dataclasses import asdict, dataclass

from pipeline.corpus.inputs import Source
from pipeline.corpus.records import Quarantined
from pipeline.dataset.manifest import SourceEntry


@dataclass(frozen=True, slots=True)
class Slice:
    """A part of a source: bytes `[start, stop)` of a plain `.jsonl` file, else its records `[start, stop)`."""

    source: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Unit:
    """The piece of work that is committed, or lost, as a whole."""

    index: int
    slices: tuple[Slice, ...]

    @property
    def name(self) -> str:
        """Names the unit in the output folder."""
        return f"{self.index:08d}"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a job reads.

    Attributes:
        sources: in order.
        entries: their fingerprints, in the same order.
        units: that cover every record once, in order; there are none where no source holds a record.
        cut: for each source that ends early, what is missing: one entry, beside the records.
    """

    sources: list[Source]
    entries: list[SourceEntry]
    units: list[Unit]
    cut: list[Quarantined]

    @property
    def records(self) -> int:
        """Records of all sources, those included that will be quarantined."""
        return sum(entry.records for entry in self.entries)

    def to_json(self) -> str:
        """The same bytes for equal plans."""
        value = {
            "sources": [asdict(source) for source in self.sources],
            "entries": [entry.model_dump() for entry in self.entries],
            "units": [[[part.source, part.start, part.stop] for part in unit.slices] for unit in self.units],
            "cut": [asdict(each) for each in self.cut],
        }
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> "Plan":
        """What `to_json` wrote."""
        value = json.loads(text)
        return cls(
            sources=[Source(**each) for each in value["sources"]],
            entries=[SourceEntry(**each) for each in value["entries"]],
            units=[Unit(index, tuple(Slice(*part) for part in slices)) for index, slices in enumerate(value["units"])],
            cut=[Quarantined(**each) for each in value["cut"]],
        )
