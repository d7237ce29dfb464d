"""The benchmark against peers counts what an output lacks or has twice, and watches whole trees of processes."""

import gzip
import json
import os
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.benchmarks import peers
from tests.benchmarks.references.watched import PROGRESS

# A child that uses up CPU time before it exits.
BUSY = "import time\nwhile time.process_time() < 0.3: pass"
PARENT = f"""
import os, subprocess, sys
subprocess.run([sys.executable, "-c", {BUSY!r}])
open(os.environ[{PROGRESS!r}], "ab").write(b"...")
"""
# A child that nothing ends, whose number is known before anything was scored.
ENDLESS = f"""
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"], start_new_session=True)
open("child", "w").write(str(child.pid))
open(os.environ[{PROGRESS!r}], "ab").write(b"...")
child.wait()
"""


@given(st.dictionaries(st.text(min_size=1, max_size=3), st.tuples(st.integers(1, 99), st.integers(0, 3))))
def test_what_is_lost_and_what_is_there_twice_is_counted_in_records_and_bytes(corpus):
    sizes = {name: size for name, (size, _) in corpus.items()}
    found = {name: times for name, (_, times) in corpus.items() if times}
    counted = peers.account(sizes, found)
    assert counted.lost == len(sizes) - len(found)
    assert counted.duplicated == sum(found.values()) - len(found)
    kept = sum(sizes[name] * times for name, times in found.items())
    assert kept == sum(sizes.values()) - counted.lost_bytes + counted.duplicated_bytes
    assert (str(counted) == "nothing") == all(times == 1 for _, times in corpus.values())


def test_an_id_that_the_corpus_lacks_is_refused():
    with pytest.raises(ValueError, match="1 ids"):
        peers.account({"a": 1}, {"a": 1, "b": 1})


def lines(*names: str) -> bytes:
    return "".join(json.dumps({"id": name}) + "\n" for name in names).encode()


def test_every_format_is_read_and_torn_files_are_counted(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.jsonl").write_bytes(lines("a", "b"))
    (data / "torn.jsonl").write_bytes(lines("b", "c") + b'{"id": "d')
    (data / "e.jsonl.gz").write_bytes(gzip.compress(lines("e")))
    (data / "torn.jsonl.gz").write_bytes(gzip.compress(os.urandom(9999))[:-9])
    (data / "unfinished.partial").write_bytes(lines("x"))
    pq.write_table(pa.table({"id": ["f"], "text": [""]}), data / "f.parquet")
    pq.write_table(pa.table({"doc_id": ["g", "g"]}), data / "g.parquet")
    (data / "torn.parquet").write_bytes((data / "f.parquet").read_bytes()[:-5])
    (tmp_path / "log.jsonl").write_bytes(lines("y"))
    found = peers.read_output(tmp_path)
    assert found.ids == Counter("abbcefgg")
    assert found.unreadable == 3


def watch(folder: Path, code: str, **options) -> peers.Run:
    env = {**os.environ, PROGRESS: str(folder / "progress")}
    return peers.watch([sys.executable, "-c", code], env, folder / "log", **options)


def test_cpu_time_of_children_and_scored_records_are_counted(tmp_path):
    run = watch(tmp_path, PARENT)
    assert run.ending == "exit 0"
    assert run.scored == 3
    assert run.cpu >= 0.3


def test_kill_ends_every_process(tmp_path):
    run = watch(tmp_path, ENDLESS, kill_after=2)
    assert run.ending == "killed"
    assert run.scored == 3
    # A dead one may still wait for its parent to notice.
    with suppress(FileNotFoundError, ProcessLookupError):
        state = (Path("/proc") / (tmp_path / "child").read_text() / "stat").read_text()
        assert state.rpartition(")")[2].split()[0] in "ZX"


def test_a_command_that_scores_nothing_more_or_all_again_is_ended(tmp_path):
    assert watch(tmp_path, ENDLESS, most=2).ending == "endless"
    assert watch(tmp_path, "import signal; signal.pause()", patience=0.1).ending == "hung"
    assert watch(tmp_path, "raise SystemExit(3)").ending == "exit 3"


def test_a_peer_that_cannot_be_installed_is_left_out_with_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    with pytest.raises(peers.MissingPeerError, match=r"^no-such-peer==1 could not be installed: \S"):
        peers.install(tmp_path / "venvs", "peer", ["no-such-peer==1"])


def test_a_peer_labels_a_corpus_and_skips_what_is_there(tmp_path, monkeypatch):
    # The plain pool needs nothing that phf does not.
    monkeypatch.setattr(peers, "install", lambda *_: Path(sys.executable))
    pool = next(peer for peer in peers.PEERS if peer.script == "peer_pool.py" and not peer.plain)
    bench = peers.Bench(tmp_path, tmp_path, [f"Sentence {number}. And another one." for number in range(32)])
    runs = peers.label(bench, [pool], 0)
    assert runs[pool.name].scored == 32
    assert bench.run(pool, "round-0").scored == 0
    (bench.output(pool, "round-0") / "data" / "00.jsonl").unlink()
    lost, unreadable = bench.account(pool, "round-0")
    assert lost == peers.Account(2, sum(bench.sizes[f"record-{number}"] for number in range(2)), 0, 0)
    assert not unreadable
    assert bench.run(pool, "round-0").scored == 2
