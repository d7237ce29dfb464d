"""A red-team attack whose prompts an endpoint writes: what is asked, what is kept, and what is refused."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import phf
from scorers.errors import IncompleteError
from tests.training.completions_server import CompletionsServer
from tests.training.real_runs import make_code_dataset, make_real_run
from training import endpoint as client
from training.attack.attackers import RemoteImitation
from training.attack.find_attacker import find_attacker
from training.attack.run_red_team import RedTeamRequest, attack_run
from training.attack.run_target import RunTarget
from training.attack.stored_proposals import StoredProposals
from training.endpoint import Endpoint
from training.evaluation.generating import open_writer
from training.measuring_config import EvaluationConfig, RedTeamConfig
from training.runs.folder import RunFolder
from training.runs.red_team_report import RedTeamReport, proposals_path, read_red_team, red_team_folder

CONFIG = RedTeamConfig(
    rounds=2, trials=1, proposals=4, continuations=2, examples=2, pool=5, prompt_words=6, max_new_tokens=16
)
PROMPTS = ["value_1 = 3", "value_2=3 ;x=1", "value_3 = \u00e9", "x"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("red-team")
    return make_real_run(make_code_dataset(folder / "labelled", 40), folder / "mle", steps=30)


@pytest.fixture(scope="module")
def one_server(run: RunFolder) -> Iterator[CompletionsServer]:
    with CompletionsServer(open_writer(run.model, "cpu")) as found:
        yield found


@pytest.fixture
def server(run: RunFolder, one_server: CompletionsServer, monkeypatch: pytest.MonkeyPatch) -> CompletionsServer:
    """A server whose seeds do not help: it never answers the same twice."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(client, "_RETRIES", 0)
    shutil.rmtree(red_team_folder(run), ignore_errors=True)
    one_server.reset()

    def number(answer: dict[str, Any]) -> dict[str, Any]:
        count = len(one_server.requests)
        choices = [{**each, "text": f" x{count} {each['index']}{each['text']}"} for each in answer["choices"]]
        return {**answer, "choices": choices}

    one_server.change = number
    return one_server


def attack(run: RunFolder, server: CompletionsServer, config: RedTeamConfig = CONFIG) -> RedTeamReport:
    return attack_run(RedTeamRequest(run, config, find_attacker(server.address, "cpu"), PROMPTS))


def proposals(run: RunFolder, rounds: int = 2) -> list[Any]:
    return [json.loads(proposals_path(run, 0, number).read_text()) for number in range(1, rounds + 1)]


def test_prompts_come_from_the_endpoint(run: RunFolder, server: CompletionsServer) -> None:
    report = attack(run, server)
    assert report.attacker_name == f"tiny at {server.address}"
    assert [facts.prompts for facts in report.trials[0]] == [4, 4, 4]
    probe, first, second = server.requests
    assert probe["max_tokens"] == 1
    assert (len(first["prompt"]), first["max_tokens"], first["n"]) == (4, 48, 1)
    # Groups of examples, one a line.
    assert all(set(each.split("\n")) <= {*PROMPTS, ""} and each.count("\n") == 2 for each in first["prompt"])
    assert first["seed"] != second["seed"]
    found = proposals(run)
    assert all(prompt.startswith(f"x{number} ") for number, each in enumerate(found, 2) for prompt in each)
    assert all(len(prompt.split()) <= 6 for each in found for prompt in each)


def test_an_interrupted_attack_goes_on_from_what_was_proposed(
    run: RunFolder, server: CompletionsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    score, scored = RunTarget.score, []

    def interrupted(self: RunTarget, prompts: Any, seed: int) -> Any:
        scored.append(list(prompts))
        if len(scored) == 3:
            raise KeyboardInterrupt
        return score(self, prompts, seed)

    monkeypatch.setattr(RunTarget, "score", interrupted)
    with pytest.raises(KeyboardInterrupt):
        attack(run, server)
    found, requests = proposals(run), len(server.requests)
    assert found == scored[1:]
    report = attack(run, server)
    assert scored[3:] == [found[1]], "only the interrupted round is scored"
    assert len(server.requests) == requests + 1, "only the probe"
    assert proposals(run) == found
    assert attack(run, server) == report
    more = attack(run, server, CONFIG.model_copy(update={"rounds": 3}))
    assert more.trials[0][:3] == report.trials[0]
    assert proposals(run) == found
    assert len(proposals(run, 3)[2]) == 4


def test_an_endpoint_that_fails_meanwhile_costs_its_round(run: RunFolder, server: CompletionsServer) -> None:
    server.status = lambda: (500, {}, b"value_1 secret") if len(server.requests) == 3 else None
    with pytest.raises(IncompleteError, match=r"answers with status 500\. What is finished is kept") as caught:
        attack(run, server)
    assert "secret" not in str(caught.value)
    (first,) = proposals(run, 1)
    assert attack(run, server).finished
    assert proposals(run)[0] == first


@pytest.mark.parametrize("damage", ["{", '["a", 1]', '["a", ""]', json.dumps(["a"] * 5), '["\\ud800"]', None])
def test_damaged_proposals_are_made_anew_with_all_that_follow(tmp_path: Path, damage: str | None) -> None:
    run = RunFolder(tmp_path)
    stored, other = StoredProposals(run, trial=0, most=4), StoredProposals(run, trial=1, most=4)
    for number in (1, 2, 3):
        assert stored(number, lambda number=number: [f"a{number}", "\u00e9"]) == [f"a{number}", "\u00e9"]
    assert other(3, lambda: ["of the other trial"]) == ["of the other trial"]
    if damage is None:
        proposals_path(run, 0, 2).unlink()
    else:
        proposals_path(run, 0, 2).write_text(damage)
    assert stored(1, list) == ["a1", "\u00e9"]
    assert stored(2, lambda: ["new"]) == ["new"]
    assert not proposals_path(run, 0, 3).exists()
    assert stored(3, list) == []
    assert stored(3, lambda: ["never"]) == []
    assert other(3, list) == ["of the other trial"]


def test_what_an_endpoint_writes_is_cleaned(server: CompletionsServer) -> None:
    texts = [
        "\n\n \x1b[31mred\u202e \x00green\r\nnext",
        "x" * 10_000,
        "",
        " \n ",
        "caf\u00e9 \ufffd",
        "a\tb\x85c",
    ]
    server.change = lambda answer: {
        "choices": [{**each, "text": text} for each, text in zip(answer["choices"], texts, strict=True)]
    }
    attacker = RemoteImitation(Endpoint(server.address, "tiny", "--attacker"), EvaluationConfig())
    found = attacker.propose([["a"]] * 6, np.random.default_rng(0))
    assert found == ["[31mred green", "x" * 4096, "", "", "caf\u00e9", "a\tbc"]
    server.change = lambda answer: {"choices": answer["choices"][:1]}
    with pytest.raises(Exception, match="sent 1 completions of other numbers than the 6 requested"):
        attacker.propose([["a"]] * 6, np.random.default_rng(0))


def test_from_the_command_line(run: RunFolder, server: CompletionsServer, tmp_path: Any) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(PROMPTS) + "\n")
    server.names = ["tiny", "large"]
    words = ["attack", "red-team", str(run.path), "--prompts", str(file), "--rounds", "1", "--trials", "1",
             "--proposals", "3", "--set", "continuations=2", "--set", "max_new_tokens=8",
             "--attacker", server.address]  # fmt: skip
    result = CliRunner().invoke(phf.app, words)
    assert result.exit_code == 2
    assert "serves 2 models (tiny, large): name one with --attacker-model" in " ".join(result.output.split())
    assert not red_team_folder(run).exists()
    result = CliRunner().invoke(phf.app, [*words, "--attacker-model", "large"])
    assert result.exit_code == 0, result.output
    assert f"written by large at {server.address}" in " ".join(result.output.split())
    report = read_red_team(run)
    assert report is not None
    assert report.finished
    assert server.requests[-1]["model"] == "large"


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--attacker", "https://key:secret@host/v1"], "without user, password and options"),
        (["--attacker", "http://127.0.0.1:9/v1"], "--attacker http://127.0.0.1:9/v1 cannot be reached"),
        (["--attacker-model", "m"], "--attacker-model m is for an endpoint"),
    ],
)
def test_wrong_usage_is_refused_before_any_work(
    run: RunFolder, server: CompletionsServer, words: list[str], problem: str
) -> None:
    result = CliRunner().invoke(phf.app, ["attack", "red-team", str(run.path), *words])
    assert result.exit_code == 2
    assert problem in " ".join(result.output.split())
    assert "secret" not in result.output
    assert not red_team_folder(run).exists()
