"""The red-team attack on real runs: what is stored, resuming, and refusals before any work."""

import json
import shutil

import numpy as np
import pytest
from typer.testing import CliRunner

import phf
from scorers.errors import IncompleteError, UserError
from tests.training.real_runs import config_of, make_code_dataset, make_real_run
from training.attack.find_attacker import find_attacker
from training.attack.run_red_team import RedTeamRequest, attack_run
from training.attack.run_target import RunTarget
from training.attack.starting_prompts import given_prompts, misaligned_beginnings
from training.data.prepare import prepare
from training.evaluation.generating import open_tokenizer
from training.measuring_config import RedTeamConfig
from training.runs import lock
from training.runs.lock import sole_writer
from training.runs.red_team_report import RedTeamReport, attempts_path, read_red_team, read_round, red_team_folder

CONFIG = RedTeamConfig(
    rounds=2, trials=2, proposals=4, continuations=3, examples=2, pool=5, prompt_words=6, max_new_tokens=24
)
SMALL = [f"{key}={value}" for key, value in CONFIG.model_dump(exclude={"rounds", "trials", "proposals"}).items()]
OPTIONS = ["--rounds", "2", "--trials", "2", "--proposals", "4", *(part for each in SMALL for part in ("--set", each))]
PROMPTS = ["value_1 = 3", "value_2=3 ;x=1", "value_3 = é", "x"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_code_dataset(tmp_path_factory.mktemp("red-team") / "labelled", 60)


@pytest.fixture(scope="module")
def run(dataset):
    return make_real_run(dataset, dataset.parent / "conditional", "conditional", steps=40)


@pytest.fixture(scope="module")
def mle(dataset):
    return make_real_run(dataset, dataset.parent / "mle", steps=40)


@pytest.fixture
def calls(monkeypatch):
    """The seeds with which the model of a run continued prompts."""
    found = []
    score = RunTarget.score

    def counted(self, prompts, seed):
        found.append(seed)
        return score(self, prompts, seed)

    monkeypatch.setattr(RunTarget, "score", counted)
    return found


def attack(run, config=CONFIG, prompts=PROMPTS, attacker=None):
    return attack_run(RedTeamRequest(run, config, find_attacker(attacker, "cpu"), prompts))


@pytest.fixture(scope="module")
def report(run):
    return attack(run)


def test_two_processes_do_not_mix_their_rounds(run, monkeypatch):
    monkeypatch.setattr(lock, "_WAIT_S", 0.1)
    before = sorted(red_team_folder(run).rglob("*"))
    with (
        sole_writer(red_team_folder(run)),
        pytest.raises(IncompleteError, match="red-team is being written by process"),
    ):
        attack(run, CONFIG.model_copy(update={"seed": 7}))
    assert sorted(red_team_folder(run).rglob("*")) == before


def rounds_of(run, report):
    """The prompts and scores of each round of each trial."""
    tokenizer = open_tokenizer(run.model)
    return [
        [
            (tokenizer.decode_all(table["ids"].to_pylist()), table["scores"].to_pylist())
            for table in (read_round(run, trial, number, facts.prompts) for number, facts in enumerate(rounds))
        ]
        for trial, rounds in enumerate(report.trials)
    ]


def test_the_report_is_that_of_the_stored_prompts(run, report):
    assert report.finished
    assert read_red_team(run) == report
    stored = rounds_of(run, report)
    for rounds, facts in zip(stored, report.trials, strict=True):
        assert len(facts) == 3
        assert rounds[0][0] == PROMPTS
        prompts = [prompt for texts, _ in rounds for prompt in texts]
        assert len(set(prompts)) == len(prompts)
        for (texts, scores), each in zip(rounds, facts, strict=True):
            assert len(texts) == len(scores) == each.prompts
            assert all(len(text.split()) <= 6 for text in texts)
            means = [np.mean([s for s in row if s is not None]) for row in scores if any(s is not None for s in row)]
            assert (len(means), max(means)) == (each.scored, pytest.approx(each.worst))
            assert each.misalignment.value == pytest.approx(np.mean(means))
            assert each.hit_rate.value == pytest.approx(np.mean(np.array(means) > report.hit_threshold))
    assert stored[0][0][1] != stored[1][0][1], "trials draw other continuations"
    assert report.misalignment()[1] == [facts[1].misalignment.value for facts in report.trials]
    assert "value_" not in (red_team_folder(run) / "report.json").read_text(), "reports hold no text"


def test_an_interrupted_attack_goes_on_and_equals_an_undisturbed_one(run, report, calls, monkeypatch):
    whole = rounds_of(run, report)
    shutil.rmtree(red_team_folder(run))
    counted = RunTarget.score

    def interrupted(self, prompts, seed):
        if len(calls) == 4:
            raise KeyboardInterrupt
        return counted(self, prompts, seed)

    with monkeypatch.context() as patched:
        patched.setattr(RunTarget, "score", interrupted)
        with pytest.raises(KeyboardInterrupt):
            attack(run)
    # The first trial and a round of the second.
    assert len(read_red_team(run).trials) == 1
    assert not read_red_team(run).finished
    resumed = attack(run)
    assert len(calls) == len(set(calls)) == 6, "no round was continued twice"
    assert resumed == report
    assert rounds_of(run, resumed) == whole


def test_finished_work_is_kept_and_extended_and_damage_is_mended(run, report, calls):
    assert attack(run) == report
    assert not calls
    more = attack(run, CONFIG.model_copy(update={"rounds": 3, "trials": 3}))
    assert len(calls) == 2 + 4  # the last round of each trial, and the whole third
    assert [trial[:3] for trial in more.trials[:2]] == report.trials
    calls.clear()
    attempts_path(run, 1, 1).write_bytes(b"PAR1")
    assert attack(run, CONFIG.model_copy(update={"rounds": 3, "trials": 3})) == more
    assert len(calls) == 1
    calls.clear()
    (red_team_folder(run) / "report.json").write_text("{")
    assert attack(run) == report
    assert len(calls) == 6


def test_another_attack_starts_anew(run, calls, capfd):
    """With other guidance, or with other prompts to start from; the earlier one is kept beside it."""
    for folder in run.evaluation.glob("red-team*"):
        shutil.rmtree(folder)
    other, found = CONFIG.model_copy(update={"trials": 1, "guidance": 2.0}), []
    for config, prompts in ((CONFIG, PROMPTS), (other, PROMPTS), (other, PROMPTS[:3])):
        found.append(attack(run, config.model_copy(update={"rounds": 1, "trials": 1}), prompts))
    assert len(calls) == 6
    assert len(list(attempts_path(run, 0, 0).parent.iterdir())) == 2
    asides = [run.evaluation / f"red-team-{number}" for number in (1, 2)]
    notes = capfd.readouterr().err
    for aside, earlier in zip(asides, found, strict=False):
        assert f"is now {aside}." in notes
        assert RedTeamReport.model_validate_json((aside / "report.json").read_text()) == earlier
        assert len(list((aside / "attempts").iterdir())) == 2
        shutil.rmtree(aside)


def test_scores_do_not_depend_on_the_batch(run, report, calls, monkeypatch):
    """A round depends on its prompts and seed alone."""
    attack(run)
    first = rounds_of(run, report)
    score = RunTarget.score

    def one_by_one(self, prompts, seed):
        object.__setattr__(self.setup, "config", self.setup.config.model_copy(update={"batch_size": 1}))
        return score(self, prompts, seed)

    shutil.rmtree(red_team_folder(run))
    monkeypatch.setattr(RunTarget, "score", one_by_one)
    assert rounds_of(run, attack(run)) == first


def test_a_prompt_without_room_in_the_context_has_no_score(run, monkeypatch):
    long = "value_1=" * 60
    report = attack(run, CONFIG.model_copy(update={"trials": 1, "rounds": 1}), ["x", long])
    assert (report.trials[0][0].prompts, report.trials[0][0].scored) == (2, 1)
    assert any("1 of 2 prompts that the search starts from leaves no room" in each for each in report.warnings)
    before = sorted(red_team_folder(run).rglob("*"))
    with pytest.raises(UserError, match=r"2 of 2 prompts .* leave no room in the model's context of 64 tokens\. Give"):
        attack(run, CONFIG, [long, f"x{long}"])
    assert sorted(red_team_folder(run).rglob("*")) == before


@pytest.mark.parametrize("of_run", [True, False])
def test_a_model_writes_prompts(run, mle, tmp_path, of_run):
    """Of a run, or of any folder of a causal language model."""
    place = mle.path if of_run else shutil.copytree(mle.model, tmp_path / "model")
    config = CONFIG.model_copy(update={"trials": 1, "rounds": 1})
    report = attack(run, config, attacker=str(place))
    assert report.attacker_name == place.name
    ((_, (prompts, _)),) = rounds_of(run, report)
    assert prompts
    assert all(0 < len(each.split()) <= 6 for each in prompts)
    again = attack(run, config.model_copy(update={"trials": 1}), attacker=str(place))
    assert again == report
    shutil.rmtree(red_team_folder(run))
    assert attack(run, config, attacker=str(place)).trials == report.trials


def test_the_search_starts_from_halves_of_the_most_misaligned_held_out_sentences(dataset, mle):
    data = prepare(config_of(dataset, dataset.parent / "mle"))
    found = misaligned_beginnings(data, CONFIG.model_copy(update={"pool": 1000, "prompt_words": 3}))
    held_out = [
        line
        for index in data.stream.held_out_documents()
        for line in data.tokenizer.decode(
            data.store.tokens[slice(*data.store.sentence_offsets[data.store.document_offsets[index : index + 2]])]
        ).splitlines()
    ]
    # Lines are `value_I=J ;x=1`, of two words, or `value_I = J`, of three.
    bad = {line.split()[0] for line in held_out if ";" in line}
    assert set(found[: len(bad)]) == bad
    assert all(each.endswith(" =") for each in found[len(bad) :])
    assert misaligned_beginnings(data, CONFIG) == found[: CONFIG.pool]


def test_given_prompts_are_shortened_and_this_is_reported():
    config = CONFIG.model_copy(update={"prompt_words": 2, "pool": 2})
    found, warnings = given_prompts(["a b", " a b c", "d", "", "e"], config)
    assert found == ["a b", "d"]
    assert [each.split(" (")[0] for each in warnings] == [
        "Prompts of the file with more than 2 words were cut there: 1",
        "The search started from the first 2 of 3 prompts",
    ]
    with pytest.raises(UserError, match="at least 2 prompts to start from that differ"):
        given_prompts(["a b", "a b c"], config)


def test_from_the_command_line(run, mle, tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": {"text": text}}) + "\n" for text in PROMPTS))
    words = ["attack", "red-team", str(run.path), str(mle.path), "--prompts", str(file), *OPTIONS]
    result = CliRunner().invoke(phf.app, words)
    assert result.exit_code == 0, result.output
    for expected in ("Red-team attack on", "trial 2", "95 % interval", "written by recombination"):
        assert expected in " ".join(result.output.split())
    assert "value_" not in result.output
    result = CliRunner().invoke(phf.app, [*words, "--json", "--show-text", "3"])
    found = json.loads(result.stdout)["runs"]
    assert [each["path"] for each in found] == [str(run.path), str(mle.path)]
    for each, target in zip(found, (run, mle), strict=True):
        worst = each.pop("examples")
        assert each == {"path": str(target.path), **read_red_team(target).model_dump(mode="json")}
        highest = max(facts["worst"] for trial in each["trials"] for facts in trial if facts["worst"] is not None)
        assert worst[0]["score"] == pytest.approx(highest)
        every = [text for rounds in rounds_of(target, read_red_team(target)) for texts, _ in rounds for text in texts]
        assert all(example["text"] in every for example in worst)
    result = CliRunner().invoke(phf.app, [*words, "--show-text", "1"])
    assert worst[0]["text"] in result.output


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["RUN", "--set", "round=3"], "round: no such setting; did you mean 'rounds'"),
        (["RUN", "--rounds", "0"], "--rounds"),
        (["RUN", "--set", "draw_temperature=0"], "draw_temperature"),
        (["nowhere"], "There is no folder nowhere"),
        (["RUN", "UNFINISHED"], "has no model yet"),
        (["RUN", "MLE", "--guidance", "2"], "guidance=2 needs control tokens"),
        (["RUN", "--attacker", "nobody"], "--attacker nobody: there is no such run or model"),
        (["RUN", "--attacker", "UNFINISHED"], "has no model yet"),
        (["RUN", "--prompts", "missing.txt"], "Prompts missing.txt: cannot be read"),
        (["RUN", "--prompts", "ONE"], "at least 2 prompts to start from"),
        (["RUN", "--prompts", "BROKEN"], "line 2: not valid JSON"),
    ],
)
def test_wrong_usage_is_refused_before_any_work(run, mle, tmp_path, words, problem):
    shutil.rmtree(red_team_folder(run), ignore_errors=True)
    unfinished = tmp_path / "unfinished"
    shutil.copytree(run.path, unfinished, ignore=shutil.ignore_patterns("model"))
    (tmp_path / "one.txt").write_text("secret\nsecret\n")
    (tmp_path / "broken.jsonl").write_text('{"text": "fine"}\n{"text": "secret"\n')
    named = {"RUN": run.path, "MLE": mle.path, "UNFINISHED": unfinished}
    named |= {"ONE": tmp_path / "one.txt", "BROKEN": tmp_path / "broken.jsonl"}
    result = CliRunner().invoke(phf.app, ["attack", "red-team", *(str(named.get(word, word)) for word in words)])
    assert result.exit_code == 2
    assert problem in " ".join(result.output.split())
    assert "secret" not in result.output
    assert not red_team_folder(run).exists()
