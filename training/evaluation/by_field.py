"""Held-out figures by the value of a metadata field of the documents, such as the corpus that each comes from."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.dataset import LabelledDataset
from pipeline.dataset.metadata import INPUTS, group_column, group_values, parse_metadata
from scorers.errors import UserError
from training import statistics
from training.evaluation.held_out_loss import HeldOutLoss
from training.runs.report import Estimate, FieldFacts, GroupFacts

MOST_GROUPS = 20
_LONGEST_VALUE = 80  # in characters
_NAMES_SHOWN = 20
_MOST_NAMES = 10_000  # remembered for a message


@dataclass(frozen=True)
class MetadataField:
    """A field of the metadata of a dataset's documents, or their inputs; `name` is as in `group_values`."""

    dataset: LabelledDataset
    name: str

    def check(self) -> None:
        """Refuse a field that no document has.

        Raises:
            UserError: names the fields that there are.
        """
        names: Counter[str] = Counter()
        for batch in self.dataset.read_batches([group_column(self.name)]):
            if any(value is not None for value in group_values(batch, self.name)):
                return
            for text in batch["meta"].to_pylist() if self.name != INPUTS else ():
                if len(names) < _MOST_NAMES:
                    names.update(parse_metadata(text).keys())
        there = ", ".join(map(repr, sorted(names, key=lambda name: (-names[name], name))[:_NAMES_SHOWN]))
        raise UserError(
            f"evaluation.by={self.name}: no document of {self.dataset.uri} has that metadata field. "
            + (f"They have: {there}." if there else "They have no metadata fields.")
        )

    def values(self, documents: NDArray[np.int64]) -> list[str | None]:
        """The value of each document, at most 80 characters; None where it is missing or null.

        Args:
            documents: int64 [n], rows of the dataset, ascending.
        """
        found: list[str | None] = []
        start = 0
        for shard in self.dataset.manifest.shards:
            own = documents[(documents >= start) & (documents < start + shard.rows)] - start
            start += shard.rows
            first = 0
            for batch in self.dataset.read_shard(shard, [group_column(self.name)]) if len(own) else ():
                here = own[(own >= first) & (own < first + batch.num_rows)] - first
                values = group_values(batch.take(pa.array(here)), self.name)
                found += [None if value is None else value[:_LONGEST_VALUE] for value in values]
                first += batch.num_rows
        return found


def figures_by_field(
    name: str, values: list[str | None], loss: HeldOutLoss, misalignment: NDArray[np.float64]
) -> FieldFacts:
    """The held-out figures of the documents of each value, with bootstrap intervals over its documents.

    The formulas are those of all documents: bits over bytes, and 2 to the power of bits over tokens. The 20 values with
    the most bytes have figures of their own; the documents of all others are one group.

    Args:
        name: of the field.
        values: of each document, from `MetadataField.values`.
        loss: of each document.
        misalignment: float64 [n], mean score of each document; NaN if it has none.
    """
    sizes: Counter[str | None] = Counter()
    for value, size in zip(values, loss.sizes.tolist(), strict=True):
        sizes[value] += size
    largest = sorted(sizes, key=lambda value: (-sizes[value], value is None, value or ""))[:MOST_GROUPS]
    rows = {value: np.array([each == value for each in values], dtype=np.bool_) for value in largest}
    rest = np.array([each not in rows for each in values], dtype=np.bool_)
    return FieldFacts(
        field=name,
        groups=[_group(value, chosen, loss, misalignment) for value, chosen in rows.items()],
        rest=_group(None, rest, loss, misalignment) if rest.any() else None,
    )


def _group(
    value: str | None, rows: NDArray[np.bool_], loss: HeldOutLoss, misalignment: NDArray[np.float64]
) -> GroupFacts:
    bits, sizes, means = loss.bits[rows], loss.sizes[rows].astype(np.float64), misalignment[rows]
    return GroupFacts(
        value=value,
        documents=int(rows.sum()),
        bytes=int(loss.sizes[rows].sum()),
        bits_per_byte=Estimate.of(statistics.ratio(bits, sizes)),
        perplexity=Estimate.of(statistics.perplexity(loss.nats[rows], loss.tokens[rows])),
        misalignment=Estimate.of(statistics.mean(means[~np.isnan(means)])),
    )
