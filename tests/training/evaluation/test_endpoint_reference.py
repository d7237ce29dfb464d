"""KL from a model behind an endpoint: exact values, what is kept, and servers that cannot be a reference."""

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import phf
from scorers.errors import IncompleteError, UserError
from tests.training.completions_server import END, CompletionsServer
from tests.training.real_runs import make_code_dataset, make_real_run
from tests.training.tiny_writer import WORDS, folder_of_words
from training import endpoint as client
from training.evaluation.generating import open_writer
from training.evaluation.likelihood import log_probabilities
from training.evaluation.references import samples as stored
from training.evaluation.references.endpoint_samples import spells
from training.evaluation.references.reference import find_reference
from training.evaluation.references.text_model import open_folder
from training.measuring_config import EvaluationConfig
from training.runs.folder import RunFolder
from training.runs.reference_report import read_reference_reports

CONFIG = EvaluationConfig(reference_samples=40, reference_tokens=4, seed=3)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("words")
    return [folder_of_words(folder / f"model {seed}", seed) for seed in (1, 2)]


@pytest.fixture(scope="module")
def of_words(words: list[Path]) -> Iterator[CompletionsServer]:
    with CompletionsServer(open_writer(words[0], "cpu")) as found:
        yield found


@pytest.fixture
def server(of_words: CompletionsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CompletionsServer:
    monkeypatch.setenv("PHF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    of_words.reset()
    return of_words


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("runs")
    return make_real_run(make_code_dataset(folder / "labelled", 30), folder / "mle", steps=20)


def invoke(*arguments: Any) -> Any:
    return CliRunner().invoke(phf.app, ["evaluate", *map(str, arguments)])


def test_kl_is_that_of_all_texts_of_two_words(server: CompletionsServer, words: list[Path]) -> None:
    reference, other = (open_folder(folder, "cpu") for folder in words)
    every = [
        [],
        *([word] for word in range(1, 1 + WORDS)),
        *map(list, itertools.product(range(1, 1 + WORDS), repeat=2)),
    ]
    ended = [len(ids) < 2 for ids in every]
    p, q = (log_probabilities(each.model, each.law, every, ended).nats for each in (reference, other))
    exact = float((np.exp(p) * (p - q)).sum())
    wanted = EvaluationConfig(reference_samples=1000, reference_tokens=2)
    drawn = find_reference(server.address, "cpu").samples(wanted, None)
    known = {" ".join("abcde"[each - 1] for each in ids): nats for ids, nats in zip(every, p, strict=True)}
    assert drawn.nats == pytest.approx([known[text] for text in drawn.texts.texts])
    assert drawn.texts.ended == [len(text.split()) < 2 for text in drawn.texts.texts]
    measured = other.measure(drawn.texts)
    assert len(measured.chosen) == 1000
    differences = drawn.nats - measured.likelihood.nats
    assert differences.mean() == pytest.approx(exact, abs=4 * differences.std() / math.sqrt(1000))


def test_an_interruption_costs_one_block(server: CompletionsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = find_reference(server.address, "cpu").samples(CONFIG, None)
    assert len(set(whole.texts.texts)) > 5
    requests = len(server.requests)
    shown: list[tuple[int, int]] = []
    monkeypatch.setattr(stored, "_BLOCK", 16)
    monkeypatch.setattr(stored, "_REVISION", 99)
    reference = find_reference(server.address, "cpu")

    def fail(answer: Any) -> Any:
        return b"" if len(server.requests) > requests + 2 else answer

    server.change = fail
    with pytest.raises(IncompleteError, match=r"not JSON.*run the same command again"):
        reference.samples(CONFIG, None)
    server.change = lambda answer: answer
    before = len(server.requests)
    # Each sample has its own seed, so the size of the blocks does not matter to this server.
    resumed = reference.samples(CONFIG, lambda done, total: shown.append((done, total)))
    assert resumed.texts == whole.texts
    assert (resumed.nats == whole.nats).all()
    assert len(server.requests) == before + 2
    assert shown == [(32, 40), (40, 40)]
    again = reference.samples(CONFIG, None)
    assert (again.texts, len(server.requests)) == (whole.texts, before + 2)


def test_another_prompt_model_seed_or_length_is_another_reference(server: CompletionsServer) -> None:
    server.names = ["tiny", "other"]
    found = [
        find_reference(server.address, "cpu", model=model, prompt=prompt)
        for model, prompt in (("tiny", ""), ("other", ""), ("tiny", "a"))
    ]
    assert len({each.facts.fingerprint for each in found}) == 3
    port = server.address.split(":")[2].removesuffix("/v1")
    assert [each.name for each in found[:2]] == [f"tiny-127.0.0.1-{port}", f"other-127.0.0.1-{port}"]
    for changes in ({}, {"seed": 4}, {"reference_tokens": 3}, {"reference_samples": 20}):
        before = len(server.requests)
        found[0].samples(CONFIG.model_copy(update=changes), None)
        assert len(server.requests) > before


def test_a_server_that_sends_one_sample_at_a_time_is_asked_more_often(server: CompletionsServer) -> None:
    server.change = lambda answer: {**answer, "choices": answer["choices"][:1]}
    drawn = find_reference(server.address, "cpu").samples(CONFIG, None)
    assert len(drawn.texts) == 40
    assert len(set(drawn.texts.texts)) > 5
    assert len({each["seed"] for each in server.requests[1:]}) == 40


def each_choice(change: Any) -> Any:
    return lambda answer: {**answer, "choices": [{**each, **change(each)} for each in answer["choices"]]}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (each_choice(lambda each: {"finish_reason": "content_filter"}), "neither `stop` nor `length`"),
        (each_choice(lambda each: {"finish_reason": None}), "neither `stop` nor `length`"),
        (
            each_choice(lambda _: {"text": "a a", "finish_reason": "length",
                                   "logprobs": {"tokens": ["a", "a"], "token_logprobs": [-20.0, -20.0]}}),
            "sent the same sample 16 times",
        ),
    ],
)  # fmt: skip
def test_samples_that_are_not_those_of_a_model_are_refused(
    server: CompletionsServer, change: Any, problem: str
) -> None:
    reference = find_reference(server.address, "cpu")
    server.change = change
    with pytest.raises(UserError, match=problem):
        reference.samples(CONFIG, None)


def test_the_token_that_ends_a_text_has_to_be_sent(server: CompletionsServer) -> None:
    reference = find_reference(server.address, "cpu")
    server.sends_end = False
    with pytest.raises(UserError, match="no log-probability of the token that ends a text"):
        reference.samples(CONFIG, None)


def test_a_text_that_its_tokens_do_not_spell_is_left_out(server: CompletionsServer, words: list[Path]) -> None:
    reference = find_reference(server.address, "cpu")
    server.change = each_choice(lambda each: {"text": each["text"] + "a"} if each["index"] == 0 else {})
    drawn = reference.samples(CONFIG, None)
    measured = open_folder(words[1], "cpu").measure(drawn.texts)
    assert set(range(40)) - set(measured.chosen.tolist()) == {0, 16, 32}


@pytest.mark.parametrize(
    ("tokens", "text", "expected"),
    [
        ([], "", True),
        (["a", " b"], "a b", True),
        (["a", "b"], "a b", True),  # SentencePiece
        (["a", "b"], "a  b", False),
        (["a"], "ab", False),
        (["a", "b"], "a", False),
        (["a", "\ufffd", "\ufffd", "b"], "a\u00e9b", True),
        (["a", "bytes:\\xc3", "bytes:\\xa9", "b"], "a\u00e9b", True),
        (["a", "", "\u00e9", "b"], "a\u00e9b", True),
        (["a", "\ufffd"], "a", False),  # cut inside a character
        (["a", ""], "a", False),
        (["a", "bytes:\\xc3"], "a", False),
    ],
)
def test_tokens_spell_a_text(tokens: list[str], text: str, expected: bool) -> None:
    assert spells(tokens, text) is expected


def test_from_the_command_line(run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with CompletionsServer(open_writer(run.model, "cpu")) as server:
        server.adds_first_token = False
        words = [
            run.path,
            "--reference",
            server.address,
            "--set",
            "reference_samples=24",
            "--set",
            "reference_tokens=8",
        ]
        result = invoke(*words)
        assert result.exit_code == 2
        assert "refuses the request (status 400)" in " ".join(result.output.split())
        assert "--reference-prompt '<|endoftext|>'" in " ".join(result.output.split())
        words += ["--reference-prompt", END]
        result = invoke(*words, "--json")
        assert result.exit_code == 0, result.output
        (found,) = json.loads(result.stdout)["runs"]
        assert found["reference"] == {
            "kind": "endpoint", "place": server.address, "fingerprint": found["reference"]["fingerprint"],
            "objective": None, "model": "tiny", "prompt": END,
        }  # fmt: skip
        assert found["divergence"]["reencoded"]
        assert found["divergence"]["texts"] + sum(found["divergence"]["left_out"].values()) == 24
        (report,) = read_reference_reports(run).values()
        assert {"path": str(run.path), **report.model_dump(mode="json")} == found
        before = len(server.requests)
        assert json.loads(invoke(*words, "--json").stdout)["runs"] == [found]
        assert len(server.requests) == before + 1, "only the probe"
        result = invoke(*words)
        assert "KL from the reference, nats per text" in result.output
        (run.evaluation / "references" / f"{report.name}.json").unlink()
        assert invoke(*words).exit_code == 0
        assert len(server.requests) == before + 3, "samples are kept"
    written = [each for each in [*run.path.rglob("*"), *tmp_path.rglob("*")] if each.is_file()]
    assert written
    assert not any(b"sk-secret" in each.read_bytes() for each in written)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--reference", "http://user:secret@host/v1"], "without user, password and options"),
        (["--reference", "RUN", "--reference-model", "m"], "no --reference is the address of one"),
        (["--reference-prompt", "x"], "--reference-prompt has no effect here"),
        (["--scenario", "unconditional", "--reference-model", "m"], "--reference-model has no effect here"),
        (["--reference", "http://127.0.0.1:9/v1", "--reference", "RUN"], "http://127.0.0.1:9/v1 cannot be reached"),
    ],
)
def test_wrong_usage_is_refused_before_any_work(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, words: list[str], problem: str
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(client, "_RETRIES", 0)
    result = invoke(run.path, *(str(run.path) if each == "RUN" else each for each in words))
    assert result.exit_code == 2, result.output
    assert problem in " ".join(result.output.split())
    assert "secret" not in result.output
