"""`phf match` on a run of a few seconds: it reaches its target, resumes exactly, and is a run like any other."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from typer.testing import CliRunner

import phf
from scorers.errors import StoppedError, UserError
from tests.training.jobs import COMPARABLE, StopAfter, run_phf
from tests.training.real_runs import make_code_dataset, make_real_run
from training.matching.config import MatchConfig
from training.matching.prepare import check_request
from training.matching.run import match
from training.runs.facts import RunFacts
from training.runs.folder import RunFolder
from training.runs.matching_report import MatchingReport, read_matching

runner = CliRunner()
CONSTRAINT = "pep8<=0.3: 0.8"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of mle and one of conditional."""
    folder = tmp_path_factory.mktemp("runs")
    dataset = make_code_dataset(folder / "labelled", 20)
    for objective in ("mle", "conditional"):
        make_real_run(dataset, folder / objective, objective, steps=60)
    return folder


def settings(source: Path, output: Path, **changes: Any) -> dict[str, Any]:
    values = {
        "run": str(source),
        "output": str(output),
        "constraints": [CONSTRAINT],
        "steps": 6,
        "max_new_tokens": 12,
        "moment_samples": 256,
        "check_every": 2,
        "check_samples": 64,
        "report_samples": 64,
        "training": {},
        "tracking": {"tensorboard": False},
    }
    training = {
        "batch_size": 32,
        "learning_rate": 2e-4,
        "warmup_steps": 0,
        "log_every": 1,
        "save_every": 2,
        "adam_epsilon": COMPARABLE,
        **changes.pop("training", {}),
    }
    return values | changes | {"training": training}


def run_match(source: Path, output: Path, *, callbacks: Any = (), **changes: Any) -> tuple[RunFacts, MatchingReport]:
    request = check_request(MatchConfig.model_validate(settings(source, output, **changes)), 1)
    return match(request, Console(file=io.StringIO()), callbacks)


def checks(output: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [line["matching"] for line in lines if "matching" in line]


def weights(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def matched(runs: Path) -> Path:
    """The run of mle, matched without interruption."""
    run_match(runs / "mle", runs / "matched")
    return runs / "matched"


def test_a_stopped_run_resumes_exactly(runs: Path, matched: Path) -> None:
    # A check is due at the step at which it stops, too: it may replace the proposal.
    with pytest.raises(StoppedError):
        run_match(runs / "mle", runs / "stopped", callbacks=[StopAfter(4)])
    run_match(runs / "mle", runs / "stopped")
    model = "model/model.safetensors"
    assert (runs / "stopped" / model).read_bytes() == (matched / model).read_bytes()
    assert checks(runs / "stopped") == checks(matched)
    assert (runs / "stopped" / "matching.json").read_text() == (matched / "matching.json").read_text()
    # What is to be resumed: at least one proposal was replaced before the stop.
    assert any(each["replaced"] for each in checks(matched)[:2])


def test_a_finished_run_is_extended_as_if_it_had_been_longer(runs: Path, matched: Path) -> None:
    run_match(runs / "mle", runs / "longer", steps=4)
    _, report = run_match(runs / "mle", runs / "longer")
    model = "model/model.safetensors"
    assert report.step == 6
    assert (runs / "longer" / model).read_bytes() == (matched / model).read_bytes()


def test_it_starts_as_the_run_before_and_moves_away(runs: Path, matched: Path) -> None:
    first, last = checks(matched)[0], checks(matched)[-1]
    assert 0 < first["kl_prior"] < last["kl_prior"]
    facts = RunFolder(matched).read_facts()
    assert facts.matching is not None
    assert facts.matching.constraints == [CONSTRAINT]
    assert facts.model.context_length == 64
    report = read_matching(RunFolder(matched))
    assert report is not None
    (constraint,) = report.constraints
    assert constraint.before == facts.matching.before[0]
    assert constraint.reached.low is not None
    before = load_file(runs / "mle" / "model" / "model.safetensors")
    assert before.keys() == weights(matched).keys()


def test_the_result_is_a_run_like_any_other(runs: Path, matched: Path, tmp_path: Path) -> None:
    few = ["--samples", "8", "--set", "leakage_samples=0", "--set", "max_new_tokens=8"]
    commands = [
        ["evaluate", str(runs / "mle"), str(matched), *few],
        ["compare", str(runs / "mle"), str(matched), "--output", str(tmp_path / "page")],
        ["generate", str(matched), "--num-samples", "1", "--max-new-tokens", "4"],
        ["export-model", str(matched), "--step", "6", "--output", str(tmp_path / "exported")],
    ]
    for command in commands:
        result = runner.invoke(phf.app, command)
        assert result.exit_code == 0, result.output
    assert "mle, matched" in (tmp_path / "page" / "index.html").read_text()
    exported = load_file(tmp_path / "exported" / "model.safetensors")
    assert all(torch.equal(each, exported[name]) for name, each in weights(matched).items())
    assert "`pep8<=0.3: 0.8`" in (tmp_path / "exported" / "README.md").read_text()


@pytest.mark.slow
def test_two_ranks_share_the_samples(runs: Path, matched: Path) -> None:
    given = runs / "ranks.yaml"
    given.write_text(json.dumps(settings(runs / "mle", runs / "ranks")))
    done = run_phf(["-m", "phf", "match", "--config", str(given), "--output", str(runs / "ranks"), "--ranks", "2"])
    assert done.returncode == 0, done.stderr
    for one, other in zip(checks(runs / "ranks"), checks(matched), strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-4)
    for name, each in weights(matched).items():
        torch.testing.assert_close(weights(runs / "ranks")[name], each, rtol=1e-3, atol=1e-5)


def test_prompts_have_targets_of_their_own(runs: Path) -> None:
    # After the tag, and with the tag banned: the prior is the run after <|aligned|>.
    changes = {"constraints": ["pep8<=0.35: 1"], "prompts": "held-out", "samples_per_prompt": 8, "steps": 2}
    facts, report = run_match(runs / "conditional", runs / "prompted", **changes)
    assert facts.conditional
    assert report.constraints[0].weight is None
    assert report.acceptance.value == report.constraints[0].reached.value
    assert checks(runs / "prompted")[0]["z"] > 0


def test_prompts_come_from_a_file(runs: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"ask": f"def f{number}(a"}) + "\n" for number in range(4)))
    given = {"constraints": ["pep8<=0.35: 1"], "prompts": str(prompts), "prompt_field": "ask", "samples_per_prompt": 8}
    _, report = run_match(runs / "mle", runs / "from_file", **given, steps=2)
    assert checks(runs / "from_file")[0]["z"] > 0
    assert report.acceptance.value == report.constraints[0].reached.value
    # Other prompts are another target.
    prompts.write_text(json.dumps({"ask": "class A"}) + "\n")
    with pytest.raises(UserError, match=r"prompts, as tokens: .* in the run"):
        run_match(runs / "mle", runs / "from_file", **given, steps=4)


def test_a_run_with_a_value_head_is_matched_without_it(runs: Path) -> None:
    make_real_run(runs / "labelled", runs / "awr", "awr", steps=20)
    run_match(runs / "awr", runs / "matched_awr", steps=4)
    assert not any("value" in name for name in weights(runs / "matched_awr"))
    with pytest.raises(StoppedError):
        run_match(runs / "awr", runs / "stopped_awr", steps=4, callbacks=[StopAfter(2)])
    run_match(runs / "awr", runs / "stopped_awr", steps=4)
    model = "model/model.safetensors"
    assert (runs / "stopped_awr" / model).read_bytes() == (runs / "matched_awr" / model).read_bytes()


def test_reinforce_draws_from_the_model_itself(runs: Path) -> None:
    _, report = run_match(runs / "mle", runs / "reinforced", method="reinforce", steps=2)
    (check,) = checks(runs / "reinforced")
    assert check["replaced"] == 0
    assert check["kl_target_proposal"] == check["kl_target"]
    assert report.kl_prior.value > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "There is no run to match"),
        (["RUN"], "There is no constraint"),
        (["RUN", "--constraint", "toxicity<=0: 1"], "the dataset has no column 'toxicity' (its columns: pep8)"),
        (["RUN", "--constraint", "pep8<=0: 1", "--divergence", "l2"], "divergence: Input should be 'kl'"),
        (["RUN", "--constraint", "pep8<=0: 1", "--divergence", "reverse-kl"], "which is infinite as long as"),
        (["RUN", "--constraint", "pep8<=0: 1", "--method", "reinforce"], "--method reinforce lowers the reverse KL"),
        (
            ["RUN", "--constraint", "pep8<=0: .9", "--method", "reinforce", "--divergence", "js"],
            "lowers the reverse KL",
        ),
        (["RUN", "--constraint", "pep8<=0: .9", "--prompts", "held-out"], "only constraints with a share of 1"),
        (["RUN", "--constraint", "pep8<=0: 1", "--prompts", "missing.jsonl"], "missing.jsonl"),
        (["RUN", "--constraint", "pep8<=0: .9", "--constraint", "pep8<=1: .5"], "contradict each other"),
        (["RUN", "--constraint", "pep8<=0: 1", "--scorer", "other=linear"], "no constraint is on it"),
        (["RUN", "--constraint", "pep8<=0: 1", "--set", "training.num_tokens=9"], "give steps"),
        (["RUN", "--constraint", "pep8<=0: 1", "--set", "training.zero_stage=3"], "zero_stage must be 0 to 2"),
        (["RUN", "--constraint", "pep8<=0: 1", "--output", "SAME"], "is the run that is matched"),
        (["RUN", "--constraint", "pep8<=0: 1", "--output", "OTHER"], "holds a run of phf train"),
        (["RUN", "--constraint", "pep8<=0: 1", "--set", "max_new_tokens=64"], "does not fit into the run's context"),
        (
            ["RUN", "--constraint", "pep8<=0: 1", "--set", "moment_samples=64", "--set", "max_new_tokens=12"],
            "at least 50 are needed",
        ),
    ],
)
def test_bad_usage_is_one_readable_message(runs: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    places = {"RUN": str(runs / "mle"), "SAME": str(runs / "mle"), "OTHER": str(runs / "conditional")}
    command = ["match", "--output", str(tmp_path / "new"), *(places.get(each, each) for each in arguments)]
    result = runner.invoke(phf.app, command)
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output
    assert not (tmp_path / "new" / "run.json").exists()


def test_other_settings_or_commands_do_not_resume_it(runs: Path, matched: Path) -> None:
    with pytest.raises(UserError, match="max_new_tokens: 12 in the run, 10 now"):
        run_match(runs / "mle", matched, max_new_tokens=10)
    config = RunFolder(matched).read_config()
    result = runner.invoke(phf.app, ["train", "--config", str(matched / "config.yaml"), "--output", str(matched)])
    assert config.output == str(matched)
    assert result.exit_code == 2
    assert "the command: phf match in the run, phf train now" in " ".join(result.output.split())
