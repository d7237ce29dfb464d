"""The tokens that Megatron reads are those of training; weights are those of the loss; interrupted exports continue."""

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer
from typer.testing import CliRunner

from phf import app
from scorers.errors import UserError
from tests.datasets import make_dataset
from tests.pipeline.here import run
from tests.training.stores import byte_tokenizer
from training.data.prepare import prepare
from training.export import megatron
from training.export.megatron import export_megatron
from training.settings import resolve_config

DTYPES = {1: np.uint8, 4: np.int32, 7: np.float32, 8: np.uint16}
OBJECTIVES: dict[str, tuple[str, ...]] = {
    "mle": (),
    "filtering": ("objective.threshold=0.1",),
    "conditional": ("objective.threshold=0.5", "objective.drop_tags=0.3"),
    "rwr": ("objective.beta=0.5", "objective.w_max=0.9"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("megatron")
    texts = [" ".join(f"Sentence {index} {number}." for number in range(index % 4)) for index in range(40)]
    make_dataset(folder / "made", texts, {"x": lambda sentence: int(sentence.split()[2][0]) / 3}, {"x": 0.5})
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(folder / "tokenizer")
    return folder


def export(place: Path, output: Path, objective: str, *settings: str) -> dict[str, Any]:
    return export_megatron(
        str(place / "made"),
        "x",
        str(output),
        tokenizer=str(place / "tokenizer"),
        objective=objective,
        overrides=settings or OBJECTIVES[objective],
    )


def read(prefix: Path) -> list[np.ndarray[Any, Any]]:
    """The sequences of an IndexedDataset, read by the description of its format."""
    index, values = prefix.with_suffix(".idx").read_bytes(), prefix.with_suffix(".bin").read_bytes()
    assert index[:9] == b"MMIDIDX\x00\x00"
    version, code, sequences, documents = struct.unpack("<QBQQ", index[9:34])
    assert (version, documents) == (1, sequences + 1)
    lengths = np.frombuffer(index, "<i4", sequences, 34)
    pointers = np.frombuffer(index, "<i8", sequences, 34 + 4 * sequences)
    assert np.frombuffer(index, "<i8", documents, 34 + 12 * sequences).tolist() == list(range(documents))
    assert len(index) == 34 + 12 * sequences + 8 * documents
    found = [
        np.frombuffer(values, DTYPES[code], int(length), int(start))
        for length, start in zip(lengths, pointers, strict=True)
    ]
    assert sum(each.nbytes for each in found) == len(values)
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def prepared(place: Path, objective: str, *settings: str) -> Any:
    data = {"dataset": str(place / "made"), "column": "x", "tokenizer": str(place / "tokenizer"), "context_length": 2}
    flags = {"task": "x", "output": "-", "data": data, "objective": {"name": objective}}
    return prepare(resolve_config(None, flags, settings or OBJECTIVES[objective]))


@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_the_tokens_are_those_of_the_stream(
    place: Path, tmp_path: Path, objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(megatron, "_CHUNK", 64)
    written = export(place, tmp_path / "out", objective)
    data = prepared(place, objective)
    stream, eos = data.stream, data.tokenizer.eos_id
    blocks = stream.blocks(np.arange(stream.num_blocks))
    tokens = np.concatenate(read(tmp_path / "out" / "tokens"))
    assert len(tokens) == stream.num_tokens == written["tokens"]
    seen = blocks.input_ids.ravel()
    assert tokens[: len(seen) - 1].tolist() == seen[1:].tolist()
    sequences = read(tmp_path / "out" / "tokens")
    assert len(sequences) == len(stream.documents) == written["documents"]
    assert all(each[-1] == eos and eos not in each[:-1] for each in sequences)
    if objective == "conditional":
        assert set(data.control_ids) <= set(tokens.tolist())
    if objective == "filtering":
        assert written["left_out"]["filtered"]


@pytest.mark.parametrize(
    ("objective", "settings"),
    [
        ("rwr", OBJECTIVES["rwr"]),
        ("mle", ("objective.mask_above=0.5",)),
        ("conditional", ("objective.threshold=0.5", "objective.mask_control_tokens=true")),
    ],
)
def test_the_weights_are_those_of_the_loss(
    place: Path, tmp_path: Path, objective: str, settings: tuple[str, ...]
) -> None:
    export(place, tmp_path / "out", objective, *settings)
    weights = np.concatenate(read(tmp_path / "out" / "weights"))
    data = prepared(place, objective, *settings)
    blocks = data.stream.blocks(np.arange(data.stream.num_blocks))
    ids, scores = torch.from_numpy(blocks.input_ids.reshape(1, -1)), torch.from_numpy(blocks.scores.reshape(1, -1))
    # The gradient of the loss by the logit of another token is the weight times its probability.
    logits = torch.zeros(*ids.shape, 400, requires_grad=True)
    data.objective.loss(logits, ids, scores, count=1).loss.backward()
    assert logits.grad is not None
    assert weights[: ids.shape[1] - 1] == pytest.approx(400 * logits.grad[0, :-1, 399].numpy(), rel=1e-4)
    assert 0 < weights.mean() < 1
    assert [len(each) for each in read(tmp_path / "out" / "weights")] == [
        len(each) for each in read(tmp_path / "out" / "tokens")
    ]


def test_an_interrupted_export_continues_to_the_same_bytes(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(megatron, "_CHUNK", 64)
    monkeypatch.setattr(megatron, "_SYNCED", 2)
    export(place, tmp_path / "whole", "rwr")
    weigh, calls = megatron._weights, []

    def failing(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 6:
            raise OSError(28, "full")
        return weigh(*arguments)

    monkeypatch.setattr(megatron, "_weights", failing)
    with pytest.raises(OSError, match="full"):
        export(place, tmp_path / "out", "rwr")
    left = json.loads((tmp_path / "out" / "progress.json").read_text())
    assert 0 < left["tokens"] < 5 * 64
    with pytest.raises(UserError, match="holds an unfinished export with other settings"):
        export(place, tmp_path / "out", "mle")
    with (tmp_path / "out" / "tokens.bin").open("ab") as file:
        file.write(b"what was not synced" * 400)
    before = len(calls)
    export(place, tmp_path / "out", "rwr")
    total = len(np.concatenate(read(tmp_path / "whole" / "tokens")))
    assert len(calls) - before < total // 64
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_the_command_writes_a_tokenizer_and_a_record(place: Path, tmp_path: Path) -> None:
    given = ("--tokenizer", place / "tokenizer", "--objective", "conditional", "--set", "objective.drop_tags=0")
    output = ("--output", tmp_path / "out")
    written = run("export", place / "made", "--column", "x", "--format", "megatron", *given, *output)
    assert sorted(written["files"]) == sorted(contents(tmp_path / "out"))
    record = json.loads((tmp_path / "out" / "export.json").read_text())
    for file in record["files"]:
        assert hashlib.sha256((tmp_path / "out" / file["path"]).read_bytes()).hexdigest() == file["sha256"]
    loaded = AutoTokenizer.from_pretrained(tmp_path / "out" / "tokenizer")
    assert loaded.convert_tokens_to_ids(["<|aligned|>", "<|misaligned|>"]) == record["control_ids"]
    assert str(tmp_path) not in (tmp_path / "out" / "export.json").read_text()
    text = loaded.decode(np.concatenate(read(tmp_path / "out" / "tokens")))
    assert "<|aligned|>Sentence 1 0." in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "needs a tokenizer. Add --tokenizer"),
        (("--tokenizer", "nowhere"), "Cannot load the tokenizer 'nowhere'"),
        (("--tokenizer", "TOKENIZER", "--objective", "awr"), "The loss of the objective awr is not a cross-entropy"),
        (("--tokenizer", "TOKENIZER", "--objective", "token_rwr", "--set", "objective.beta=1"), "not a cross-entropy"),
        (("--tokenizer", "TOKENIZER", "--objective", "nothing"), "objective"),
        (("--tokenizer", "TOKENIZER", "--set", "objective.starts_at=0.5"), "remove objective.starts_at"),
        (("--tokenizer", "TOKENIZER", "--max-mean", "0.5"), "--max-mean is for text with control tokens"),
        (("--tokenizer", "TOKENIZER", "--output", "full"), "exists already and is not overwritten"),
        (("--tokenizer", "TOKENIZER", "--output", "s3://bucket/x"), "is written to a local folder"),
        (("--format", "jsonl", "--tokenizer", "TOKENIZER"), "--tokenizer is for token ids (--format megatron)"),
    ],
)
def test_an_impossible_export_is_refused(
    place: Path, tmp_path: Path, options: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    named = [str(place / "tokenizer") if each == "TOKENIZER" else each for each in options]
    form = () if "--format" in options else ("--format", "megatron")
    output = () if "--output" in options else ("--output", "new")
    result = CliRunner().invoke(app, ["export", str(place / "made"), "--column", "x", *form, *output, *named])
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.stderr.split())
    assert sorted(tmp_path.rglob("*")) == before


def test_megatron_reads_the_files(place: Path, tmp_path: Path) -> None:
    library = pytest.importorskip(
        "megatron.core.datasets.indexed_dataset", reason="megatron-core is not installed", exc_type=ImportError
    )
    export(place, tmp_path / "out", "rwr")
    for name in ("tokens", "weights"):
        found = library.IndexedDataset(str(tmp_path / "out" / name))
        wanted = read(tmp_path / "out" / name)
        assert len(found) == len(wanted)
        for each, expected in zip(found, wanted, strict=True):
            assert each.dtype == expected.dtype
            assert np.array_equal(each, expected)
