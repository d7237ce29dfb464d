"""Folders of datasets and inputs may have any name, and the printed commands quote it correctly."""

import shlex

import pytest
from typer.testing import CliRunner

from phf import app
from pipeline.corpus.inputs import find_inputs
from scorers.shell import phf
from tests.pipeline.committed import commit_units

ODD = "a b[1e-3]*?{x}'\"$HOME`%20#;&\\!"


@pytest.fixture
def dataset(tmp_path):
    units = [[{"text": f"Sentence {n}. Another!", "toxicity": [n / 20, n / 40]} for n in range(8)]]
    made = commit_units(tmp_path / ODD / "out", units, ["toxicity"])
    made.write_job()
    made.seal()
    return made.folder


def run(status, *words):
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == status, done.output
    return done.output


def test_every_command_works_in_oddly_named_folders(dataset):
    run(0, "verify", dataset)
    run(0, "inspect", dataset, "--show-text")
    run(0, "status", dataset)
    run(0, "retag", dataset, "--threshold", "toxicity=0.3")
    run(0, "gc", dataset)
    run(0, "export", dataset, "--column", "toxicity", "--output", dataset.parent / f"{ODD}.jsonl")
    run(0, "verify", dataset)
    shard = next(dataset.glob("data/*/*.parquet"))
    shard.write_bytes(shard.read_bytes()[:-1])
    assert phf("repair", dataset) in run(1, "verify", dataset)
    run(0, *shlex.split(phf("repair", dataset))[1:])
    (dataset / "data" / "0002" / "stray.parquet").write_bytes(b"")
    assert phf("gc", dataset, "--delete") in run(1, "verify", dataset)
    run(0, *shlex.split(phf("gc", dataset, "--delete"))[1:])
    run(0, "verify", dataset)


def test_inputs_are_found_in_oddly_named_folders(tmp_path):
    folder = tmp_path / ODD
    folder.mkdir()
    file = folder / f"{ODD}.jsonl"
    file.write_text('{"text": "A text."}\n')
    for given in (folder, file):
        assert [source.uri for source in find_inputs([str(given)]).sources] == [str(file)]
