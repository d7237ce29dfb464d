"""What reports and their tables refuse, whoever wrote them."""

from pathlib import Path

import pyarrow as pa
import pytest
from pydantic import ValidationError

from scorers.errors import UserError
from training.runs.folder import RunFolder
from training.runs.report import Estimate
from training.runs.tables import SAMPLES_SCHEMA, read_table, write_table


@pytest.mark.parametrize("field", ["value", "low", "high"])
@pytest.mark.parametrize("number", ["1e308", "-1e101", "1e999"])
def test_figures_whose_sums_would_overflow_are_refused(field: str, number: str) -> None:
    text = {"value": "1", "low": "0", "high": "2", field: number}
    content = ", ".join(f'"{name}": {each}' for name, each in text.items())
    with pytest.raises(ValidationError, match=f"{field}\n  .*(at most 1e\\+100|finite)"):
        Estimate.model_validate_json(f"{{{content}}}")


@pytest.mark.parametrize("score", [1e308, -1e101, float("inf"), float("nan")])
def test_scores_whose_sums_would_overflow_are_refused(tmp_path: Path, score: float) -> None:
    columns = {
        "ids": [[1], [2]],
        "ended": [True, True],
        "sentences": [1, 1],
        "score": [0.5, score],
        "reason": [None] * 2,
    }
    write_table(tmp_path / "samples.parquet", pa.table(columns, schema=SAMPLES_SCHEMA))
    with pytest.raises(
        UserError, match=r"samples\.parquet is damaged: it lacks values, or holds infinite or huge ones"
    ):
        read_table(tmp_path / "samples.parquet", SAMPLES_SCHEMA, RunFolder(tmp_path), 2)
