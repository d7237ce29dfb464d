"""Planning finds exactly the lines that reading yields, many lines and several inputs at a time."""

import io
import json
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpus import survey
from pipeline.corpus.cut_units import make_plan
from pipeline.corpus.inputs import Source
from pipeline.corpus.scanning import scan_lines
from pipeline.corpus.streams import read_lines
from scorers.errors import UserError
from tests.pipeline.corpora import flat, make_config, read_all, write_lines, write_records

LINES = st.lists(
    st.sampled_from(
        [b"", b" ", b"\t \r", b"\r", b"x", b" x ", b"xyz" * 9, b" " * 9, b"\xef\xbb\xbf", b"\xef\xbb\xbf \r"]
    ),
    max_size=12,
)


class Dribble(io.BytesIO):
    """A stream that returns at most `most` bytes per read."""

    def __init__(self, content: bytes, most: int) -> None:
        super().__init__(content)
        self._most = most

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(self._most)


@settings(max_examples=300)
@given(lines=LINES, last=st.booleans(), most=st.integers(3, 40), limit=st.sampled_from([1, 5, 1000]))
def test_scanning_finds_the_lines_that_reading_yields(lines: list[bytes], last: bool, most: int, limit: int) -> None:
    content = b"\n".join(lines) + (b"\n" if last else b"")
    expected = [(offset, size) for offset, size, _ in read_lines(io.BytesIO(content), limit=limit)]
    found = list(scan_lines(Dribble(content, most), limit=limit))
    offsets = [int(each) for array, _ in found for each in array]
    sizes = [int(each) for _, array in found for each in array]
    assert list(zip(offsets, sizes, strict=True)) == expected


def test_one_big_file_is_cut_into_many_units(tmp_path: Path) -> None:
    path = write_records(tmp_path / "a.jsonl", *({"text": f"{n} " * (n % 97)} for n in range(5_000)))
    plan, units = read_all(make_config(path, unit_size=10_000))
    sizes = [sum(part.stop - part.start for part in unit.slices) for unit in plan.units]
    assert len(plan.units) > 50
    assert max(sizes) <= 10_000
    assert [each.text for each in flat(units)] == [f"{n} " * (n % 97) for n in range(5_000)]


@pytest.mark.parametrize("apart", [0, 10**9])
def test_the_plan_does_not_depend_on_the_number_of_threads(
    tmp_path: Path, apart: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(survey, "_HASH_APART_BYTES", apart)
    for index in range(12):
        lines = b"".join(json.dumps({"text": "x" * (n % 300)}).encode() + b"\n" for n in range(index * 40))
        write_lines(tmp_path / f"{index:02}.jsonl{['', '.gz', '.zst'][index % 3]}", lines)
    (tmp_path / "cut.jsonl.gz").write_bytes((tmp_path / "10.jsonl.gz").read_bytes()[:-9])
    config = make_config(tmp_path, unit_size=3_000)
    read: Counter[str] = Counter()

    def progress(source: Source, size: int) -> None:
        before = read[source.uri]
        time.sleep(0)
        read[source.uri] = before + size

    plans = [make_plan(config, progress, threads=threads) for threads in (1, 2, 13)]
    assert plans[0] == plans[1] == plans[2]
    assert len(plans[0].units) > 10
    assert len(plans[0].cut) == 1
    assert read == {source.uri: 3 * source.size for source in plans[0].sources if source.size}


def test_inputs_are_read_in_parallel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(3):
        write_records(tmp_path / f"{index}.jsonl", {"text": "x"})
    real, together = survey.survey, threading.Barrier(3, timeout=30)
    monkeypatch.setattr("pipeline.corpus.cut_units.survey", lambda *given: (together.wait(), real(*given))[1])
    assert make_plan(make_config(tmp_path), threads=3).records == 3


def test_an_error_of_one_input_stops_the_others(tmp_path: Path) -> None:
    write_records(tmp_path / "a.jsonl", *({"text": "x" * 1000} for _ in range(50_000)))
    write_records(tmp_path / "b.jsonl", {"text": "x"})
    seen: list[str] = []

    def progress(source: Source, _: int) -> None:
        seen.append(source.uri[-7])
        if source.uri.endswith("b.jsonl"):
            raise UserError("b is bad")
        time.sleep(0.02)

    threads = threading.active_count()
    with pytest.raises(UserError, match="b is bad"):
        make_plan(make_config(tmp_path), progress, threads=2)
    assert threading.active_count() == threads
    assert seen.count("a") < 20


def test_planning_needs_no_memory_per_record(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", b'{"text": "1"}\n' * 200_000)
    found = survey.survey(_source(path), make_config(path), lambda _: None)
    assert found.entry.records == 200_000
    assert found.blocks.shape == (11, 3)
    assert found.blocks.dtype == np.int64


def _source(path: Path) -> Source:
    return Source(str(path), "jsonl", None, "prose", path.stat().st_size)
