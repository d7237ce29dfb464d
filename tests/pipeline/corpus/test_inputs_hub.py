"""Datasets of the Hugging Face hub, served by a local server; the real hub is never contacted."""

import io
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from typer.testing import CliRunner

from phf import app
from pipeline.corpus import hub as hub_inputs
from pipeline.corpus.inputs import find_sources
from pipeline.corpus.records import Record
from scorers.errors import UserError
from tests.pipeline.corpora import flat, make_config, read_all
from tests.pipeline.here import rows_of, run
from tests.pipeline.hub_server import FakeHub, serve


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    hub_inputs._commit.cache_clear()
    with serve() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield server
    hub_inputs._commit.cache_clear()


def lines(*texts: str) -> bytes:
    return b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)


def parquet(*texts: str) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": list(texts)}), sink)
    return sink.getvalue()


def uris(*inputs: str) -> list[str]:
    return [source.uri for source in find_sources(inputs)]


FILES = {
    "README.md": b"# card",
    ".hidden.jsonl": lines("no"),
    "data/train-0.parquet": parquet("eins", "zwei"),
    "data/train 1%.jsonl": lines("drei"),
    "data/deep/test.jsonl.zst": zstandard.compress(lines("vier")),
}


def test_a_dataset_resolves_to_its_files_at_its_commit(hub: FakeHub) -> None:
    commit = hub.push("org/name", FILES)
    root = f"hf://datasets/org/name@{commit}"
    everything = [f"{root}/data/deep/test.jsonl.zst", f"{root}/data/train 1%.jsonl", f"{root}/data/train-0.parquet"]
    assert uris("hf://datasets/org/name") == everything
    assert uris("hf://datasets/org/name@main/data/") == everything
    assert uris(f"{root}/data/train-0.parquet") == [f"{root}/data/train-0.parquet"]
    assert uris("hf://datasets/org/name/data/*") == everything[1:]
    assert uris("hf://datasets/org/name/**/*.zst") == everything[:1]
    _, units = read_all(make_config("hf://datasets/org/name"))
    records = flat(units)
    assert [record.text for record in records] == ["vier", "drei", "eins", "zwei"]
    assert isinstance(records[3], Record)
    assert records[3].doc_id == f"{root}/data/train-0.parquet#1"


def test_one_job_reads_one_commit(hub: FakeHub) -> None:
    first = hub.push("org/name", {"a.jsonl": lines("old"), "b.jsonl": lines("old too")})
    config = make_config("hf://datasets/org/name/a.jsonl", "hf://datasets/org/name/b.jsonl")
    sources = find_sources(config.inputs)
    hub.push("org/name", {"a.jsonl": lines("new"), "b.jsonl": lines("new")})
    _, units = read_all(config)
    assert [record.text for record in flat(units)] == ["old", "old too"]
    assert {source.uri.rpartition("/")[0] for source in sources} == {f"hf://datasets/org/name@{first}"}
    assert uris(f"hf://datasets/org/name@{first}") == [source.uri for source in sources]


def test_revisions(hub: FakeHub) -> None:
    hub.push("org/name", {"a.jsonl": lines("main")})
    other = hub.push("org/name", {"a.jsonl": lines("dev")}, branch="dev")
    for name in ("refs/convert/parquet", "my/branch"):
        hub.branches["org/name", name] = other
    for revision in ("dev", "refs/convert/parquet", "refs%2Fconvert%2Fparquet", "my%2Fbranch"):
        assert uris(f"hf://datasets/org/name@{revision}/a.jsonl") == [f"hf://datasets/org/name@{other}/a.jsonl"]


def test_a_large_file_is_read_in_ranges(hub: FakeHub) -> None:
    texts = [f"{index:01000}" for index in range(20_000)]
    hub.push("org/name", {"a.jsonl": lines(*texts)})
    _, units = read_all(make_config("hf://datasets/org/name", unit_size=2_000_000))
    assert [record.text for record in flat(units)] == texts
    assert len(units) > 5


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("hf://datasets/org/gone", "There is no dataset org/gone at .*or it is private.*HF_TOKEN"),
        ("hf://datasets/org/private", "There is no dataset org/private at .*or it is private.*HF_TOKEN"),
        ("hf://datasets/org/gated", "org/gated is gated"),
        ("hf://datasets/org/name@nope", "org/name has no revision 'nope'"),
        ("hf://datasets/org/name/nope.jsonl", "There is no input hf://datasets/org/name/nope.jsonl"),
        ("hf://datasets/org/name/nope/*.jsonl", "holds no input"),
        ("hf://datasets/org/name/README.md", "holds no input"),
        ("hf://datasets/org/empty", "holds no input"),
        ("hf://datasets/squad", "not of the form hf://datasets/OWNER/NAME"),
        ("hf://org/name", "not of the form"),
    ],
)
def test_invalid_inputs_are_refused(hub: FakeHub, argument: str, message: str) -> None:
    hub.push("org/name", FILES)
    hub.push("org/empty", {"README.md": b"x"})
    for name in ("org/private", "org/gated"):
        hub.push(name, FILES)
    hub.private.add("org/private")
    hub.gated.add("org/gated")
    with pytest.raises(UserError, match=message) as caught:
        find_sources([argument])
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_the_token_comes_from_the_environment(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.push("org/private", {"a.jsonl": lines("mine")})
    hub.private.add("org/private")
    monkeypatch.setenv("HF_TOKEN", hub.token)
    plan, units = read_all(make_config("hf://datasets/org/private"))
    assert [record.text for record in flat(units)] == ["mine"]
    assert hub.token not in repr(plan)


def test_a_hub_that_does_not_answer_is_reported_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub_inputs._commit.cache_clear()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    start = time.monotonic()
    result = CliRunner().invoke(
        app, ["label", "hf://datasets/org/name", "--output", str(tmp_path / "out"), "--scorer", "toxicity=column"]
    )
    assert result.exit_code == 2
    assert "Cannot reach the hub at http://127.0.0.1:9" in result.stderr
    assert time.monotonic() - start < 10
    assert not (tmp_path / "out").exists()


def test_a_transient_fault_is_retried(hub: FakeHub) -> None:
    hub.push("org/name", {"a.jsonl": lines("eins")})
    hub.failing = 1
    _, units = read_all(make_config("hf://datasets/org/name"))
    assert [record.text for record in flat(units)] == ["eins"]


def test_a_published_dataset_is_labelled_from_the_hub(hub: FakeHub, tmp_path: Path) -> None:
    row = {"texts": ["One. ", "Two."], "meta": {}, "scores": [0.5, 0.25], "avg_score": 0.375, "num_sents": 2}
    commit = hub.push("org/pile-chunk3", {"data/train.jsonl": json.dumps(row).encode() + b"\n"})
    command = (
        *("label", "hf://datasets/org/pile-chunk3", "--text-field", "texts", "--scorer", "toxicity=column:scores"),
        *("--output", tmp_path / "out"),
    )
    run(*command)
    (found,) = rows_of(tmp_path / "out")
    assert (found["text"], found["ends"], found["toxicity"]) == ("One. Two.", [5, 9], [0.5, 0.25])
    assert found["source"] == f"hf://datasets/org/pile-chunk3@{commit}/data/train.jsonl"
    assert run("verify", tmp_path / "out", "--inputs")["ok"]
    hub.push("org/pile-chunk3", {"data/train.jsonl": b"{}\n"})
    hub_inputs._commit.cache_clear()
    refused = run(*command, expect=2)
    assert f"gone: hf://datasets/org/pile-chunk3@{commit}/data/train.jsonl" in refused
