"""A large plain file is split among many workers."""

from pathlib import Path

import pytest

from tests.pipeline.here import rows_of
from tests.pipeline.label_job import Labelling, wait_for


@pytest.mark.slow
def test_one_big_file_is_labelled_by_several_workers_at_once(tmp_path: Path) -> None:
    made = Labelling(tmp_path)
    texts = [f"Number {number}. {'x' * 200}" for number in range(200)]
    made.write(texts)
    made.hold(0)
    run = made.start("--unit-size", "4KB")
    try:
        wait_for(lambda: len(list(tmp_path.glob("scored.by-*"))) == 2, seconds=90)
    finally:
        made.release()
    _, stderr = run.communicate(timeout=120)
    assert run.returncode == 0, stderr
    assert [row["text"] for row in rows_of(made.output)] == texts
    assert set(made.scored().values()) == {1}
