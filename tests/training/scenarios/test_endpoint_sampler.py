"""Scenarios whose samples a server of the run's model draws: what is asked, what is stored, and what is refused."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import phf
from tests.training.completions_server import CompletionsServer
from tests.training.real_runs import make_code_dataset, make_real_run
from training import endpoint as client
from training.evaluation.generating import open_tokenizer, open_writer
from training.runs.folder import RunFolder
from training.runs.scenario_report import SCENARIO_SAMPLES_SCHEMA, ScenarioReport, read_scenario, scenario_folder
from training.runs.tables import SAMPLES_NAME, read_table
from training.scenarios import run_scenario

PROMPTS = ["value_1", "value_2=3 ;", "va"]
SMALL = [
    "--set",
    "continuations=6",
    "--set",
    "max_new_tokens=12",
    "--set",
    "min_new_tokens=4",
    "--set",
    "control=before",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("sampler")
    dataset = make_code_dataset(folder / "labelled", 40)
    return make_real_run(dataset, folder / "conditional", "conditional", steps=30)


@pytest.fixture(scope="module")
def one_server(run: RunFolder) -> Iterator[CompletionsServer]:
    with CompletionsServer(open_writer(run.model, "cpu")) as found:
        yield found


@pytest.fixture
def server(run: RunFolder, one_server: CompletionsServer, monkeypatch: pytest.MonkeyPatch) -> CompletionsServer:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(client, "_RETRIES", 0)
    shutil.rmtree(run.evaluation, ignore_errors=True)
    one_server.reset()
    return one_server


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("\n".join(PROMPTS) + "\n")
    return path


def invoke(run: RunFolder, file: Path, *words: str) -> Any:
    return CliRunner().invoke(phf.app, ["evaluate", str(run.path), "--scenario", f"prompted={file}", *SMALL, *words])


def stored(run: RunFolder) -> tuple[ScenarioReport, list[dict[str, Any]]]:
    report = read_scenario(run, "prompts")
    assert report is not None
    path = scenario_folder(run, "prompts") / SAMPLES_NAME
    return report, read_table(path, SCENARIO_SAMPLES_SCHEMA, run, report.samples.number).to_pylist()


def test_prompts_are_continued_at_the_server_after_covers_drawn_here(
    run: RunFolder, server: CompletionsServer, file: Path
) -> None:
    assert invoke(run, file).exit_code == 0
    here, own = stored(run)
    result = invoke(run, file, "--sampler", server.address)
    assert result.exit_code == 0, result.output
    assert f"Drawn by tiny at {server.address}" in " ".join(result.output.split())
    report, samples = stored(run)
    assert (here.sampler, report.sampler) == (None, f"tiny at {server.address}")
    assert report.fingerprint != here.fingerprint
    words, tokenizer = run.read_facts().tokenizer, open_tokenizer(run.model)
    assert len(samples) == len(own) == 18
    assert any(each["cover"] for each in samples)
    assert [each["ids"][: each["cover"]] for each in samples] == [each["ids"][: each["cover"]] for each in own]
    assert [each["ids"] for each in samples] != [each["ids"] for each in own], "the server has its own random numbers"
    assert len({tuple(each["ids"]) for each in samples}) > 12
    probe, check, *requests = server.requests
    assert probe["return_token_ids"] is True
    assert (check["prompt"], check["n"]) == ([[words.eos_id, words.control_ids[0]]], 4)
    assert sum(each["n"] for each in requests) == 18
    assert len({each["seed"] for each in requests}) == len(requests)
    for each in requests:
        assert (each["temperature"], each["top_p"], each["max_tokens"], each["min_tokens"]) == (0.7, 0.9, 12, 4)
        assert each["logit_bias"] | dict.fromkeys(map(str, words.control_ids), -100) == each["logit_bias"]
        ((bos, tag, *prompt),) = each["prompt"]
        assert (bos, tag) == (words.eos_id, words.control_ids[0])
        assert any(tokenizer.decode(prompt).startswith(text) for text in PROMPTS)
    for each in samples:
        assert not set(each["ids"]) & {words.eos_id, *words.control_ids}
        length = len(each["ids"]) - each["cover"]
        assert 4 <= length <= 12
        assert each["ended"] == (length < 12) or length == 12


def test_finished_pieces_are_kept(
    run: RunFolder, server: CompletionsServer, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_scenario, "_PIECE", 6)
    assert invoke(run, file, "--sampler", server.address).exit_code == 0
    whole, requests = stored(run)[1], len(server.requests)
    shutil.rmtree(run.evaluation)
    server.status = lambda: (500, {}, b"value_1") if len(server.requests) == 2 * requests else None
    result = invoke(run, file, "--sampler", server.address)
    assert result.exit_code == 4
    assert "What is finished is kept: run the same command again" in " ".join(result.output.split())
    assert "value_" not in result.output
    before = len(server.requests)
    assert invoke(run, file, "--sampler", server.address).exit_code == 0
    assert stored(run)[1] == whole
    assert len(server.requests) - before < requests
    before = len(server.requests)
    assert invoke(run, file, "--sampler", server.address).exit_code == 0
    assert len(server.requests) == before + 1, "only the probe"


def each_choice(change: Any) -> Any:
    return lambda answer: {**answer, "choices": [{**each, **change(each)} for each in answer["choices"]]}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (each_choice(lambda _: {"token_ids": None}), "sends no token ids (return_token_ids)"),
        (each_choice(lambda each: {"token_ids": [2] * len(each["token_ids"])}), "has another model"),
        (each_choice(lambda each: {"token_ids": [99_999] * len(each["token_ids"])}), "sent other tokens"),
        (each_choice(lambda _: {"token_ids": []}), "sent other tokens"),
    ],
)
def test_a_server_without_the_model_is_refused(
    run: RunFolder, server: CompletionsServer, file: Path, change: Any, problem: str
) -> None:
    server.change = change
    result = invoke(run, file, "--sampler", server.address)
    assert result.exit_code == 2, result.output
    assert problem in " ".join(result.output.split())
    assert read_scenario(run, "prompts") is None


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda each: {"finish_reason": "stop", "token_ids": [5, 5, 5, 5]}, "without the token that ends a text"),
        (lambda each: {"finish_reason": "length", "token_ids": [5] * 5}, "cut a sample at 5 tokens"),
        (lambda each: {"finish_reason": "stop", "token_ids": [5, 0]}, "cut a sample at 1 tokens"),
        (lambda each: {"finish_reason": "length", "token_ids": [TAG] * 12}, "drew tokens that were banned"),
        (lambda each: {"finish_reason": "length", "token_ids": [99_999] * 12}, "drew tokens that were banned"),
        (lambda each: {"finish_reason": "length", "token_ids": [5] * 50}, "sent more tokens than were requested"),
    ],
)
def test_a_server_that_ignores_settings_is_refused(
    run: RunFolder, server: CompletionsServer, file: Path, change: Any, problem: str
) -> None:
    words = run.read_facts().tokenizer
    assert words.eos_id == 0

    def later(answer: Any) -> Any:
        if len(server.requests) < 3:
            return answer
        changed = each_choice(change)(answer)
        text = json.dumps(changed).replace(str(TAG), str(words.control_ids[0]))
        return json.loads(text)

    server.change = later
    result = invoke(run, file, "--sampler", server.address)
    assert result.exit_code in (2, 4), result.output
    assert problem in " ".join(result.output.split())
    assert read_scenario(run, "prompts") is None


TAG = 7_654_321  # stands for the control token, which the parameters do not know


def test_another_model_of_the_same_run_is_refused(run: RunFolder, server: CompletionsServer, file: Path) -> None:
    writer = open_writer(run.model, "cpu")
    with torch.no_grad():
        for each in writer.model.parameters():
            each.mul_(1.3)
    with CompletionsServer(writer) as other:
        result = invoke(run, file, "--sampler", other.address)
    assert result.exit_code == 2
    assert "has another model: its log-probabilities differ by" in " ".join(result.output.split())
    assert read_scenario(run, "prompts") is None


def test_wrong_usage_is_refused_before_any_work(run: RunFolder, server: CompletionsServer, file: Path) -> None:
    for words, problem in (
        (["--sampler", server.address, "--guidance", "2"], "--sampler cannot guide samples"),
        ([str(run.path), "--sampler", server.address], "--sampler serves the model of one run"),
        (["--sampler", "http://127.0.0.1:9/v1"], "--sampler http://127.0.0.1:9/v1 cannot be reached"),
        (["--sampler-model", "m"], "there is no --sampler"),
    ):
        result = invoke(run, file, *words)
        assert result.exit_code == 2, result.output
        assert problem in " ".join(result.output.split())
    result = CliRunner().invoke(phf.app, ["evaluate", str(run.path), "--sampler", server.address])
    assert "--sampler has no effect here" in " ".join(result.output.split())
    server.only_openai = True
    result = invoke(run, file, "--sampler", server.address)
    assert "A sampler needs settings of vLLM (return_token_ids, min_tokens)" in " ".join(result.output.split())
    assert read_scenario(run, "prompts") is None
