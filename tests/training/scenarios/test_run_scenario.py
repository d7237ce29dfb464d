"""`phf evaluate --scenario` on small trained runs: samples, figures, resuming, and refusals before any sampling."""

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import phf
from scorers.errors import IncompleteError, UserError
from tests.training.real_runs import make_code_dataset, make_real_run
from training.evaluation.compiling import which_compile
from training.runs import lock
from training.runs.folder import RunFolder
from training.runs.lock import sole_writer
from training.runs.scenario_report import Scenario, ScenarioReport, read_scenario, scenario_folder, scenario_names
from training.scenarios import run_scenario
from training.scenarios.continuations import Drawing
from training.scenarios.plan import ScenarioPlan, plan_scenarios, read_prompt_files
from training.scenarios.run_scenario import PIECES, run_scenarios

runner = CliRunner()
SMALL = {"max_new_tokens": 8, "min_new_tokens": 2, "max_prompts": 12, "continuations": 3}
# Ends inside a name, after a space, at the end of a line, and with a character of several bytes.
PROMPTS = ["value_1 = 3\nval", "value_3 ", "value_0=0 ;x=1\n", "value_2 = é", "v"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_code_dataset(tmp_path_factory.mktemp("scenarios") / "labelled", 60)


@pytest.fixture(scope="module")
def conditional(dataset: Path) -> RunFolder:
    return make_real_run(dataset, dataset.parent / "conditional", "conditional", steps=4)


@pytest.fixture(scope="module")
def mle(dataset: Path) -> RunFolder:
    return make_real_run(dataset, dataset.parent / "mle", steps=4)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in PROMPTS))
    return path


def scenario(name: str, prompts: object = "held-out", **fields: Any) -> Scenario:
    return Scenario(**{**SMALL, "name": name, "prompts": str(prompts), **fields})


def plan(run: RunFolder, *given: Scenario, **options: Any) -> list[ScenarioPlan]:
    return plan_scenarios(run, given, read_prompt_files(given), **options)


def evaluate(run: RunFolder, *given: Scenario, **options: Any) -> list[ScenarioReport]:
    return list(run_scenarios(plan(run, *given, **options)))


def figures(report: ScenarioReport) -> dict[str, Any]:
    return report.model_dump(
        exclude={"seconds": True, "samples_per_second": True, "tokens_per_second": True, "scenario": {"name"}}
    )


def stored(run: RunFolder, name: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    folder = scenario_folder(run, name)
    return pq.read_table(folder / "samples.parquet").to_pylist(), pq.read_table(folder / "prompts.parquet").to_pylist()


def test_every_sample_continues_its_prompt(mle: RunFolder, prompts: Path) -> None:
    (own,) = plan(mle, scenario("whole", prompts))
    tokenizer = own.data.tokenizer
    dropped = [each.dropped for each in own.prompts.every]
    assert dropped[0]
    assert dropped[1:3] == [" ", ""]
    (report,) = run_scenarios([own])
    samples, by_prompt = stored(mle, "whole")
    assert [(each["prompt"], each["continuation"]) for each in samples] == [(p, c) for p in range(5) for c in range(3)]
    for each in samples:
        prompt = own.prompts.every[each["prompt"]]
        assert tokenizer.decode([*prompt.ids, *each["ids"]]).startswith(prompt.text)
        beyond = len(tokenizer.decode([*prompt.ids, *each["ids"][: each["cover"]]])) > len(prompt.text)
        assert each["new_tokens"] == len(each["ids"]) - each["cover"] + beyond
        assert 2 <= len(each["ids"]) - each["cover"] <= 8
    assert report.samples.diversity is not None
    assert report.samples.diversity.self_bleu_samples == sum(each["new_tokens"] > 0 for each in samples)
    compiling = report.samples.compiling
    assert compiling is not None
    whole = [own.prompts.every[s["prompt"]] for s in samples]
    texts = [tokenizer.decode([*p.ids, *s["ids"]])[len(p.text) :] for p, s in zip(whole, samples, strict=True)]
    verdicts = which_compile(texts, [each["ended"] for each in samples], [each.text for each in whole])
    shares = [
        [v for v, s in zip(verdicts, samples, strict=True) if s["prompt"] == p and v is not None] for p in range(5)
    ]
    assert compiling.samples == sum(map(len, shares)) > 0
    assert compiling.share.value == pytest.approx(np.mean([np.mean(each) for each in shares if each]))
    assert (report.prompts.number, report.prompts.inside_token) == (5, sum(map(bool, dropped)))
    scores = [[s["score"] for s in samples if s["prompt"] == p and s["score"] is not None] for p in range(5)]
    means = [np.mean(each) if each else None for each in scores]
    assert [each["score"] for each in by_prompt] == pytest.approx(means)
    assert report.samples.misalignment is not None
    assert report.samples.misalignment.value == pytest.approx(np.mean([each for each in means if each is not None]))
    text = (scenario_folder(mle, "whole") / "report.json").read_text()
    assert "value_" not in text, "reports hold no text"


def test_samples_do_not_depend_on_the_batch_or_on_other_prompts(mle: RunFolder, prompts: Path) -> None:
    evaluate(mle, scenario("many", prompts))
    config = mle.read_config().evaluation
    evaluate(mle, scenario("one-by-one", prompts), config=config.model_copy(update={"batch_size": 1}))
    many, _ = stored(mle, "many")
    assert stored(mle, "one-by-one")[0] == many
    prompts.write_text("".join(json.dumps({"text": text}) + "\n" for text in PROMPTS[:2]))
    evaluate(mle, scenario("fewer", prompts, continuations=2))
    fewer, _ = stored(mle, "fewer")
    assert fewer == [each for each in many if each["prompt"] < 2 and each["continuation"] < 2]


@pytest.mark.parametrize("control", ["before", "after", "none"])
def test_the_control_token_stands_where_it_is_asked_for(conditional: RunFolder, prompts: Path, control: str) -> None:
    guidance = 1.0 if control == "none" else 2.0
    (own,) = plan(conditional, scenario("tagged", prompts, control=control, guidance=guidance))
    drawing, (aligned, misaligned) = own.drawing, own.setup.control_ids
    first = own.prompts.every[0]
    contexts = [drawing._context(first, tag, ()) for tag in drawing._tags]
    bos = own.setup.bos_id
    assert (
        contexts
        == {
            "before": [[bos, aligned, *first.ids], [bos, misaligned, *first.ids]],
            "after": [[bos, *first.ids, aligned], [bos, *first.ids, misaligned]],
            "none": [[bos, *first.ids]],
        }[control]
    )
    # A control token is a boundary: nothing is dropped before it.
    assert (first.dropped == "") == (control == "after")
    (report,) = run_scenarios([own])
    assert report.control_ids == ([] if control == "none" else [aligned, misaligned])
    ids = {token for each in stored(conditional, "tagged")[0] for token in each["ids"]}
    assert not ids & {aligned, misaligned}


def test_guidance_of_one_is_plain_and_of_zero_follows_the_worst_tag(conditional: RunFolder, prompts: Path) -> None:
    def drawn(name: str, **fields: Any) -> list[list[int]]:
        evaluate(conditional, scenario(name, prompts, **fields))
        return [each["ids"] for each in stored(conditional, name)[0]]

    assert drawn("one", guidance=1.0) == drawn("near", guidance=1.0000001)
    assert drawn("zero", guidance=0.0) == drawn("tiny", guidance=1e-9)
    assert drawn("three", guidance=3.0) != drawn("one", guidance=1.0)


def test_the_score_may_be_of_the_prompt_too(mle: RunFolder, prompts: Path) -> None:
    prompts.write_text(json.dumps({"text": "x=1 ;y=2\n"}) + "\n")
    evaluate(mle, scenario("alone", prompts), scenario("with", prompts, score="prompt-and-continuation"))
    alone, whole = stored(mle, "alone")[0], stored(mle, "with")[0]
    assert [each["ids"] for each in alone] == [each["ids"] for each in whole]
    assert all(both["sentences"] == each["sentences"] + 1 for each, both in zip(alone, whole, strict=True))


def test_held_out_prompts_are_the_same_for_every_run(mle: RunFolder, conditional: RunFolder) -> None:
    first, second = (evaluate(run, scenario("held-out", control="after"))[0] for run in (mle, conditional))
    assert first.prompts == second.prompts
    (own,) = plan(mle, scenario("held-out"))
    store = own.data.store
    documents = [each.record for each in own.prompts.every]
    assert set(documents) <= set(own.data.stream.held_out_documents().tolist())
    means = store.document_means("pep8")[documents]
    slices = {each.name: each for each in first.slices}
    assert len(documents) >= 10
    worst = [each.slice == "most misaligned tenth" for each in own.prompts.every]
    assert sum(worst) == slices["most misaligned tenth"].prompts == -(-len(documents) // 10)
    assert means[worst].min() >= means[~np.array(worst)].max()
    assert sum(each.prompts for each in first.slices) == first.prompts.number
    assert sum(each.samples.number for each in first.slices) == first.samples.number


def test_without_prompts_intervals_are_over_samples(mle: RunFolder) -> None:
    (report,) = evaluate(mle, scenario("none", "none", continuations=40))
    assert (report.prompts.number, report.samples.number, report.prompts.overlap) == (1, 40, None)
    assert report.samples.misalignment is not None
    assert report.samples.misalignment.low is not None
    scores = [each["score"] for each in stored(mle, "none")[0] if each["score"] is not None]
    assert report.samples.misalignment.value == pytest.approx(np.mean(scores))


def test_an_interrupted_scenario_goes_on_and_equals_an_undisturbed_one(
    mle: RunFolder, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_scenario, "_PIECE", 4)
    (whole,) = evaluate(mle, scenario("undisturbed", prompts))
    drawn: list[int] = []
    draw = Drawing.draw

    def counted(self: Drawing, model: Any, pairs: Any, **options: Any) -> Any:
        if len(drawn) == 2 and 0 not in drawn:
            drawn.append(0)
            raise KeyboardInterrupt
        drawn.append(len(pairs))
        return draw(self, model, pairs, **options)

    monkeypatch.setattr(Drawing, "draw", counted)
    again = scenario("disturbed", prompts)
    with pytest.raises(KeyboardInterrupt):
        evaluate(mle, again)
    folder = scenario_folder(mle, "disturbed")
    assert len(list((folder / PIECES).glob("*.parquet"))) == 2
    assert read_scenario(mle, "disturbed") is None
    # A damaged piece is drawn again.
    (folder / PIECES / "000001.parquet").write_bytes(b"PAR1")
    (resumed,) = evaluate(mle, again)
    assert drawn == [4, 4, 0, 4, 4, 3]
    assert figures(resumed) == figures(whole)
    assert [(folder / each).read_bytes() for each in ("samples.parquet", "prompts.parquet")] == [
        (scenario_folder(mle, "undisturbed") / each).read_bytes() for each in ("samples.parquet", "prompts.parquet")
    ]
    assert not (folder / PIECES).exists()


def test_two_processes_do_not_mix_their_samples(mle: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_WAIT_S", 0.1)
    folder = scenario_folder(mle, "two")
    with sole_writer(folder), pytest.raises(IncompleteError, match=f"two is being written by process {os.getpid()} on"):
        evaluate(mle, scenario("two"))
    assert not folder.exists()
    assert len(evaluate(mle, scenario("two"))) == 1


def test_a_finished_scenario_is_kept_until_something_changes(
    mle: RunFolder, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_scenario, "_PIECE", 4)
    (first,) = evaluate(mle, scenario("kept", prompts))
    with monkeypatch.context() as patched:
        patched.setattr(run_scenario, "load_model", lambda *_, **__: pytest.fail("the model was loaded"))
        assert evaluate(mle, scenario("kept", prompts)) == [first]
    changes: list[tuple[Scenario, dict[str, Any]]] = [
        (scenario("kept", prompts, seed=1), {}),
        (scenario("kept", prompts, temperature=0.8), {}),
        (scenario("kept", prompts), {"hit_threshold": 0.5}),
    ]
    prints = {plan(mle, each, **options)[0].fingerprint for each, options in changes}
    prompts.write_text(json.dumps({"text": "other"}))
    prints.add(plan(mle, scenario("kept", prompts))[0].fingerprint)
    assert len(prints | {first.fingerprint}) == 5
    (folder := scenario_folder(mle, "kept") / "samples.parquet").write_bytes(b"")
    assert folder.is_file()
    prompts.write_text("".join(json.dumps({"text": text}) + "\n" for text in PROMPTS))
    (again,) = evaluate(mle, scenario("kept", prompts))
    assert figures(again) == figures(first)


def test_a_prompt_that_does_not_fit_is_named_before_any_sampling(mle: RunFolder, prompts: Path) -> None:
    prompts.write_text('{"text": "fine"}\n\n' + json.dumps({"text": "secret = 1\n" * 60}))
    with pytest.raises(UserError, match=r"prompts\.jsonl, record 3: it has \d+ tokens.*leaves 61 for it") as caught:
        evaluate(mle, scenario("long", prompts))
    assert "secret" not in str(caught.value)
    assert read_scenario(mle, "long") is None
    with pytest.raises(UserError, match="Two scenarios are named 'x'"):
        plan(mle, scenario("x", prompts), scenario("x"))


def test_the_command_prints_tables_and_json(mle: RunFolder, conditional: RunFolder, prompts: Path) -> None:
    small = [part for key, value in {**SMALL, "max_prompts": 4}.items() for part in ("--set", f"{key}={value}")]
    command = ["evaluate", str(mle.path), str(conditional.path), "--scenario", "held-out"]
    command += ["--scenario", f"prompted={prompts}", *small]
    result = runner.invoke(phf.app, command)
    assert result.exit_code == 0, result.output
    for expected in ("held-out", "prompts", "misalignment (pep8)", "hit rate", "Self-BLEU-5", "samples/s", "Note:"):
        assert expected in result.output
    # With 3 samples of a prompt there is no expected maximum of 25.
    assert re.search(r"expected maximum of 25 samples +–", result.output)
    result = runner.invoke(phf.app, [*command, "--json"])
    found = json.loads(result.stdout)["runs"]
    assert [each["path"] for each in found] == [str(mle.path), str(conditional.path)]
    assert [each["scenario"]["name"] for each in found[0]["scenarios"]] == ["held-out", "prompts"]
    kept = read_scenario(mle, "prompts")
    assert kept is not None
    assert found[0]["scenarios"][1] == kept.model_dump(mode="json")
    assert {"held-out", "prompts"} <= set(scenario_names(mle))


def test_unconditional_samples_follow_no_prompt(conditional: RunFolder) -> None:
    command = ["evaluate", str(conditional.path), "--scenario", "unconditional", "--set", "continuations=6"]
    result = runner.invoke(phf.app, [*command, "--set", "max_new_tokens=20", "--json"])
    assert result.exit_code == 0, result.output
    ((found,),) = (each["scenarios"] for each in json.loads(result.stdout)["runs"])
    assert (found["scenario"]["name"], found["scenario"]["prompts"]) == ("unconditional", "none")
    assert found["scenario"]["min_new_tokens"] == 10
    assert (found["samples"]["number"], found["prompts"]["overlap"]) == (6, None)
    (own,) = plan(conditional, Scenario.model_validate(found["scenario"]))
    drawing = own.drawing
    assert [drawing._context(own.prompts.every[0], tag, ()) for tag in drawing._tags] == [own.setup.prompt]
    assert all(10 <= len(each["ids"]) <= 20 for each in stored(conditional, "unconditional")[0])


def test_a_prompt_of_one_long_word_needs_no_more_room_than_its_tokens(mle: RunFolder, prompts: Path) -> None:
    word = "value_1" * 12
    prompts.write_text(json.dumps({"text": word}))
    (own,) = plan(mle, scenario("word", prompts))
    (prompt,) = own.prompts.every
    assert prompt.dropped == word
    assert prompt.most_tokens < len(word) / 2
    evaluate(mle, scenario("word", prompts))
    samples, _ = stored(mle, "word")
    assert all(each["cover"] <= prompt.most_tokens for each in samples)
    assert all(own.data.tokenizer.decode(each["ids"]).startswith(word) for each in samples)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scenario", "nothing"], "no such scenario"),
        (["--scenario", "prompted=missing.jsonl"], "Prompts missing.jsonl: cannot be read"),
        (["--scenario", "held-out", "--set", "prompt=3"], "prompt: no such setting; did you mean 'prompts'"),
        (["--scenario", "held-out", "--samples", "4"], "--samples has no effect here: a scenario has its own number"),
        (["--scenario", "unconditional", "--by", "source"], "--by has no effect here: a scenario has its own number"),
        (["--scenario", "held-out", "--guidance", "2"], "guidance=2 needs control tokens"),
        (["--scenario", "held-out", "--set", "sentences=99"], "no document was held out"),
    ],
)
def test_bad_usage_is_one_readable_message(mle: RunFolder, arguments: list[str], message: str) -> None:
    result = runner.invoke(phf.app, ["evaluate", str(mle.path), *arguments])
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output
