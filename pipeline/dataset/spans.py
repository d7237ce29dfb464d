"""Read the spans of a dataset: where its scorers found something. The dataset may be somebody else's."""

from collections.abc import Sequence

import pyarrow as pa

from pipeline.dataset.manifest import DamagedError
from pipeline.dataset.reader import LabelledDataset
from pipeline.dataset.schema import spans_column
from scorers.errors import UserError
from scorers.shell import phf
from scorers.spans import Finding, why_invalid


def require_spans(dataset: LabelledDataset, column: str) -> None:
    """Refuse a dataset that has no spans of a score column.

    Raises:
        UserError: the column or its spans are missing; the message names the columns that have some.
    """
    dataset.require_column(column)
    if column not in dataset.manifest.spans:
        raise UserError(
            f"{dataset.uri} has no spans of {column!r}; it has those of: "
            f"{', '.join(dataset.manifest.spans) or 'none'}. "
            f"To add them: {phf('score', dataset.uri, '--spans', column)}"
        )


def columns_of_spans(column: str) -> list[str]:
    """The columns of a dataset that `spans_of` reads."""
    return ["ends", column, spans_column(column)]


def spans_of(
    dataset: LabelledDataset, batch: pa.RecordBatch, column: str, rows: Sequence[int] | None = None
) -> list[list[Finding] | None]:
    """Return the findings of each row, in code points of its text, None where the column is null.

    Args:
        dataset: has spans of the column.
        batch: rows of it with `columns_of_spans(column)`.
        column: the score column.
        rows: indices of the rows to return, in order; None for all.

    Raises:
        DamagedError: spans are not inside sentences with a score above 0, not sorted, or have types that no scorer of
            ours could give; nothing of them is quoted.
    """
    if rows is not None:
        batch = batch.select(columns_of_spans(column)).take(pa.array(rows, pa.int64()))
    found: list[list[Finding] | None] = []
    for ends, scores, spans in zip(*(batch.column(name).to_pylist() for name in columns_of_spans(column)), strict=True):
        try:
            findings = None if spans is None else [Finding(**each) for each in spans]
            problem = (
                "its spans are null where its scores are not"
                if (findings is None) != (scores is None)
                else findings and why_invalid(findings, ends, scores)
            )
        except (TypeError, IndexError):  # nulls, or a score a sentence is missing
            problem = "a span is incomplete"
        if problem:
            raise DamagedError(
                f"{dataset.uri} is damaged: in a row of {spans_column(column)!r} {problem}. Run "
                f"`{phf('verify', dataset.uri)}` to find it."
            )
        found.append(findings)
    return found
