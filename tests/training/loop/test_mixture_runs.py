"""Runs on a mixture, and in phases: exact after any interruption, recorded in the facts, and refused with a message."""

import hashlib
import json
import shutil
import threading

import numpy as np
import pytest
from typer.testing import CliRunner

from phf import app
from scorers.errors import StoppedError, UserError
from tests.datasets import make_dataset
from tests.training.jobs import (
    StopAfter,
    command,
    figures,
    job_config,
    make_code_dataset,
    metrics,
    run_job,
    run_phf,
    settings,
)
from tests.training.real_runs import make_code_dataset as make_pep8_dataset
from training.data.cache import trained_on_dataset
from training.data.prepare import prepare
from training.engine.engine import Engine
from training.loop.build_facts import semantic_difference
from training.runs.folder import RunFolder
from training.schedule import plan_horizon

SENTENCES = ["The cat sat on the mat. ", "A dog barked at night. ", "Rain fell. ", "Nobody came to the door. "]


@pytest.fixture(scope="module")
def prose(tmp_path_factory):
    """Prose with another column by another scorer."""
    texts = [
        f"Story {number}. " + "".join(SENTENCES[(number + place) % 4] for place in range(8)) for number in range(60)
    ]
    return make_dataset(
        tmp_path_factory.mktemp("prose") / "prose", texts, {"short": lambda sentence: 1 / len(sentence)}
    )


def mixed(prose, share=0.4, **changes):
    entry = {"dataset": str(prose), "share": share, "column": "short"}
    return {"data__mixture": json.dumps([entry]), **changes}


PHASES = {"objective__starts_at": 0.25, "objective__cooldown": 0.25}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, code_dataset, prose):
    output = tmp_path_factory.mktemp("mixed") / "run"
    return output, *run_job(code_dataset, output, "conditional", **mixed(prose, **PHASES))


def test_facts_and_plan_name_the_datasets_and_the_phases(undisturbed, code_dataset, prose):
    output, facts, printed = undisturbed
    assert facts == RunFolder(output).read_facts()
    assert [(each.uri, each.share, each.column) for each in facts.mixture] == [
        (str(code_dataset), 0.6, "style"),
        (str(prose), 0.4, "short"),
    ]
    assert (facts.column, facts.dataset.uri) == ("style", str(code_dataset))
    code, words = facts.mixture
    assert code.threshold != words.threshold
    assert code.epochs == pytest.approx(6 * 4 * 0.6 / code.stream["blocks"]) == facts.horizon.epochs
    assert [(each.name, each.first_step, each.steps, each.tokens) for each in facts.phases] == [
        ("plain", 0, 3, 384),
        ("preferences", 3, 6, 768),
        ("cooldown", 9, 3, 384),
    ]
    everything = prepare(job_config(code_dataset, output, "conditional", **mixed(prose)))
    whole = sum(len(each.streams[0].documents) for each in everything.datasets)
    assert sum(each.documents for each in facts.phases) == whole
    plan = printed[: printed.index("step 1/12")]
    for expected in (
        f"0.6 of the blocks from {code_dataset}",
        f"0.4 of the blocks from {prose}",
        "from step 3: 6 steps, 768 tokens",
    ):
        assert expected in plan


@pytest.mark.parametrize("step", [2, 6, 8])
def test_stopped_in_a_phase_or_at_its_edge_it_goes_on_exactly(tmp_path, code_dataset, prose, undisturbed, step):
    # The signal is seen at the end of the next step: 2 and 8 are the last before an edge.
    output, changes = tmp_path / "run", mixed(prose, **PHASES)
    with pytest.raises(StoppedError, match=f"after step {step + 1} of 12"):
        run_job(code_dataset, output, "conditional", callbacks=[StopAfter(step)], **changes)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]
    run_job(code_dataset, output, "conditional", **changes)
    assert figures(output) == figures(undisturbed[0])
    weights = [(folder / "model/model.safetensors").read_bytes() for folder in (output, undisturbed[0])]
    assert weights[0] == weights[1]


def test_awr_starts_with_weights_of_one_and_every_step_has_the_same_figures(tmp_path, code_dataset):
    options = {"objective__alpha": 0.5, "objective__beta": 0.1, "objective__starts_at": 0.5}
    run_job(code_dataset, tmp_path / "run", "awr", **options)
    lines = metrics(tmp_path / "run")
    assert len({tuple(line) for line in lines}) == 1
    assert [line["weight"] == 1 for line in lines] == [True] * 6 + [False] * 6
    assert lines[5]["value"] != pytest.approx(-0.5, abs=1e-4), "the value head has learnt"


def test_a_loss_of_another_scale_is_no_spike_where_the_preferences_start(tmp_path, code_dataset):
    options = {"objective__alpha": 0.5, "objective__beta": 0.001, "objective__starts_at": 0.5}
    changes = {"training__skip_sigmas": 6, "training__num_tokens": 144 * 4 * 32, "data__held_out": 0}
    run_job(code_dataset, tmp_path / "run", "awr", **options, **changes)
    before, after = metrics(tmp_path / "run")[71:73]
    assert after["loss"] > 20 * before["loss"]
    assert "skipped" not in metrics(tmp_path / "run")[-1]


def test_nor_where_the_tags_end(tmp_path, code_dataset, monkeypatch):
    forgotten, forget, step = [], Engine.forget_losses, Engine.train_step
    trained = []
    monkeypatch.setattr(Engine, "train_step", lambda *each: (trained.append(None), step(*each))[1])
    monkeypatch.setattr(Engine, "forget_losses", lambda engine: (forgotten.append(len(trained)), forget(engine)))
    run_job(code_dataset, tmp_path / "run", "conditional", **PHASES, training__skip_sigmas=6)
    assert forgotten == [phase.first_step for phase in RunFolder(tmp_path / "run").read_facts().phases[1:]]
    assert len(forgotten) == 2


@pytest.mark.parametrize(("ranks", "micro"), [(1, 1), (1, 8), (2, 1), (2, 4), (4, 2)])
def test_the_model_sees_the_same_global_batches_however_they_are_cut(tmp_path, code_dataset, prose, ranks, micro):
    changes = mixed(prose, **PHASES, training__batch_size=8, training__num_tokens=40 * 8 * 32)
    data = prepare(job_config(code_dataset, tmp_path / "run", "conditional", **changes))
    horizon = plan_horizon(data.config.training.model_copy(update={"micro_batch_size": micro}), 32, ranks)
    assert [phase.end for phase in data.phases] == [10, 30, 40]

    def digest(rows):
        return hashlib.sha256(b"".join(row.tobytes() for row in rows)).hexdigest()

    for step in range(horizon.steps):
        whole = data.batches.batch(step)
        shares = [data.batches.rank_batch(step, rank, ranks) for rank in range(ranks)]
        assert all(len(share.input_ids) == micro * horizon.accumulation for share in shares)
        for field in ("input_ids", "scores"):
            rows = [row for share in shares for row in getattr(share, field)]
            assert digest(rows) == digest(getattr(whole, field))


def test_each_phase_has_its_stream_and_each_dataset_its_threshold(tmp_path, code_dataset, prose):
    changes = mixed(prose, **PHASES, training__num_tokens=40 * 4 * 32)
    data = prepare(job_config(code_dataset, tmp_path / "run", "conditional", **changes))
    tags = set(data.tokenizer.control_ids(2))
    for step in range(40):
        seen = set(data.batches.batch(step).input_ids.ravel().tolist()) & tags
        assert bool(seen) == (10 <= step < 30), step
    thresholds = [bound for each in data.datasets for bound in each.streams[1].options.tag_bounds]
    assert thresholds == [0.0, data.datasets[1].source.manifest.thresholds["short"].value]
    assert [each.threshold for each in data.config.data.mixture] == thresholds[1:]
    # A batch can be traced to rows of the datasets.
    origin = data.batches.origin(12)
    assert (origin["phase"], [each["dataset"] for each in origin["datasets"]]) == (
        "preferences",
        [str(code_dataset), str(prose)],
    )
    for part, each in zip(origin["datasets"], data.datasets, strict=True):
        assert set(part["dataset_rows"]) <= set(each.streams[1].documents.tolist())


def test_what_is_given_for_all_is_not_taken_for_scores_of_another_scorer(tmp_path, code_dataset, prose):
    config = job_config(code_dataset, tmp_path / "run", "conditional", **mixed(prose), objective__threshold=0.01)
    first, second = prepare(config).datasets
    assert first.threshold.value == 0.01
    assert second.threshold.origin == "manifest"


def test_on_resumption_another_mixture_is_refused_and_a_moved_one_is_not(tmp_path, code_dataset, prose, undisturbed):
    output = undisturbed[0]
    with pytest.raises(UserError, match=r"data\.mixture\.0\.share: 0\.4 in the run, 0\.3 now"):
        run_job(code_dataset, output, "conditional", **mixed(prose, 0.3, **PHASES))
    with pytest.raises(UserError, match=r"data\.mixture"):
        run_job(code_dataset, output, "conditional", **PHASES)
    with pytest.raises(UserError, match=r"objective\.starts_at: 0\.25 in the run, 0\.5 now"):
        run_job(code_dataset, output, "conditional", **mixed(prose, **{**PHASES, "objective__starts_at": 0.5}))
    run = RunFolder(output).read_facts()
    code, words = run.mixture
    changed = words.model_copy(update={"fingerprint": "other", "own_fingerprint": None, "threshold": None})
    assert semantic_difference(run, run.model_copy(update={"mixture": [code, changed]})) == [
        f"the texts, sentences or scores of data.mixture.0 ({prose}): {words.fingerprint} in the run, other now",
        f"the threshold of data.mixture.0 ({prose}): {words.threshold.value} in the run, None now",
    ]
    moved = shutil.copytree(prose, tmp_path / "moved")
    facts, printed = run_job(code_dataset, output, "conditional", **mixed(moved, **PHASES))
    assert "is finished (12 steps)" in printed
    assert facts.status == "finished"


def invoke(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)])


def sets(**changes):
    return [part for setting in settings(**changes) for part in ("--set", setting)]


def test_two_datasets_from_the_command_line_to_the_evaluation(tmp_path):
    code, other = make_pep8_dataset(tmp_path / "code", 40), make_pep8_dataset(tmp_path / "other", 25)
    output = tmp_path / "run"
    arguments = ["--task", "pep8", "--objective", "conditional", "--model", "nano", "--output", output]
    result = invoke("train", code, "--mix", f"{other}=0.25", *arguments, *sets())
    assert result.exit_code == 0, result.output
    facts = RunFolder(output).read_facts()
    assert [each.share for each in facts.mixture] == [0.75, 0.25]
    # An evaluation needs the main dataset alone.
    shutil.rmtree(other)
    result = invoke("evaluate", output, "--samples", 4, "--set", "leakage_samples=2", "--json")
    assert result.exit_code == 0, result.output
    (report,) = json.loads(result.stdout)["runs"]
    assert report["held_out"]["documents"] == facts.stream["documents_left_out"]["held_out"]
    assert any(f"those of {code} alone" in warning and f"{other} (0.25)" in warning for warning in report["warnings"])
    for name in ("code", "code.tokens"):
        (tmp_path / name).rename(tmp_path / f"moved{name.removeprefix('code')}")
    moved = ("evaluate", output, "--samples", 4, "--set", "leakage_samples=2", "--dataset", tmp_path / "moved")
    result = invoke(*moved, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["runs"][0]["held_out"]["bits_per_byte"] == report["held_out"]["bits_per_byte"]


def test_an_evaluation_has_the_quantiles_of_the_phase_that_was_tagged(tmp_path):
    code, output = make_pep8_dataset(tmp_path / "code", 40), tmp_path / "run"
    arguments = ["--task", "pep8", "--objective", "conditional", "--model", "nano", "--output", output]
    phases = ("--set", "objective.quantiles=6", "--set", "objective.starts_at=0.75")
    result = invoke("train", code, *arguments, *sets(), *phases)
    assert result.exit_code == 0, result.output
    facts = RunFolder(output).read_facts()
    result = invoke("evaluate", output, "--samples", 4, "--set", "leakage_samples=2", "--json")
    assert result.exit_code == 0, result.output
    (report,) = json.loads(result.stdout)["runs"]
    assert report["prompt"] == [facts.tokenizer.eos_id, facts.tokenizer.aligned_id]
    data = prepare(RunFolder(output).read_config())
    assert list(data.control_ids) == facts.tokenizer.control_ids
    assert list(data.stream.options.tag_bounds) == facts.stream["tag_bounds"]


@pytest.fixture(scope="module")
def like_code(tmp_path_factory):
    """Other code with the same column, of a scorer with another fingerprint."""
    return make_code_dataset(tmp_path_factory.mktemp("like") / "like", ["csv", "pprint", "filecmp", "zipapp"])


@pytest.mark.parametrize(
    ("objective", "changes", "message"),
    [
        ("mle", {"dataset": "/no/such", "share": 0.5}, "/no/such"),
        ("mle", {"share": 0.5}, "has no score column 'style'; it has: short"),
        ("mle", {"share": 0}, "data.mixture.0.share: Input should be greater than or equal to 0.001"),
        ("mle", {"share": -0.1}, "data.mixture.0.share"),
        ("mle", {"share": 1}, "data.mixture.0.share: Input should be less than 1"),
        ("mle", {"share": 0.9999}, "data: the shares of mixture add up to 0.9999"),
        ("mle", {"share": 0.5, "weight": 2}, "data.mixture.0.weight: no such setting"),
        ("mle", {"dataset": "CODE", "share": 0.5}, "is the same dataset as"),
        ("mle", {"share": 0.5, "column": "short", "threshold": 1.0}, "mle has no threshold of its own for"),
        ("unlikelihood", {"dataset": "LIKE", "share": 0.5, "threshold": 1.0}, "set objective.threshold, which applies"),
        ("rwr", {"dataset": "LIKE", "share": 0.5}, "--set data.allow_mixed_scorers=true"),
        ("mle", {"share": 0.5, "column": "short", "store": "STORE"}, "Use that tokenizer, choose another --store"),
    ],
)
def test_what_cannot_be_mixed_is_one_message_and_exit_2(
    tmp_path, code_dataset, prose, like_code, objective, changes, message
):
    names = {"CODE": str(code_dataset), "LIKE": str(like_code), "STORE": str(tmp_path / "store")}
    if changes.get("store"):
        prepare(job_config(prose, tmp_path / "x", data__store=tmp_path / "store", data__column="short"))
    entry = {"dataset": str(prose), **{key: names.get(each, each) for key, each in changes.items()}}
    mixture = sets(data__mixture=json.dumps([entry]), **{"objective.beta": 1.0} if objective == "rwr" else {})
    result = invoke(
        "train", code_dataset, "--output", tmp_path / "run", "--task", "style", "--model", "nano", "--objective",
        objective, *mixture,
    )  # fmt: skip
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


def test_mixed_scorers_that_were_allowed_are_warned_of(tmp_path, code_dataset, like_code):
    mixture = json.dumps([{"dataset": str(like_code), "share": 0.5}])
    _, printed = run_job(
        code_dataset, tmp_path / "run", "rwr", data__mixture=mixture, data__allow_mixed_scorers="true",
        objective__beta=1.0, training__num_tokens=2 * 128,
    )  # fmt: skip
    assert "scores of different scorers as if they had one scale" in printed


@pytest.mark.parametrize("given", ["code", "=0.3", "code=much", "code="])
def test_what_is_no_share_is_refused(tmp_path, given):
    result = invoke("train", "labelled", "--output", tmp_path / "run", "--task", "style", "--mix", given)
    assert result.exit_code == 2
    assert "is not of the form DATASET=SHARE" in result.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective__starts_at": 0.6, "objective__cooldown": 0.4}, "leave no step for the objective"),
        ({"objective__starts_at": 1}, "objective.starts_at: Input should be less than 1"),
        ({"objective__cooldown": -0.1}, "objective.cooldown: Input should be greater than or equal to 0"),
        ({"objective__starts_at": 0.5, "training__num_tokens": 128}, "A run of 1 step is too short"),
        ({"objective__starts_at": 0.001}, "phase plain: There is nothing to train on"),
    ],
)
def test_bad_shares_of_phases_are_one_message_and_exit_2(tmp_path, code_dataset, changes, message):
    arguments = ["--output", tmp_path / "run", "--task", "style", "--model", "nano", "--objective", "conditional"]
    result = invoke("train", code_dataset, *arguments, *sets(**changes))
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert not (tmp_path / "run").exists()


def test_without_a_tokenizer_one_is_trained_on_all_datasets(tmp_path, code_dataset, prose):
    data = prepare(job_config(code_dataset, tmp_path / "run", "mle", **mixed(prose)))
    alone = prepare(job_config(code_dataset, tmp_path / "run"))
    assert data.tokenizer.fingerprint != alone.tokenizer.fingerprint
    assert data.config.data.tokenizer == data.tokenizer.name
    assert alone.config.data.tokenizer == alone.tokenizer.name
    assert trained_on_dataset(alone.config.data)
    assert not trained_on_dataset(data.config.data)
    assert {each.store.meta.tokenizer for each in data.datasets} == {data.tokenizer.fingerprint}


@pytest.mark.slow
def test_two_ranks_learn_the_same_from_a_mixture_in_phases(tmp_path, code_dataset, prose, undisturbed):
    done = run_phf([*command(code_dataset, tmp_path / "run", "conditional", **mixed(prose, **PHASES)), "--ranks", "2"])
    assert done.returncode == 0, done.stderr
    found, expected = np.array(figures(tmp_path / "run")), np.array(figures(undisturbed[0]))
    assert np.allclose(found, expected, atol=1e-4)


def test_quantiles_are_those_of_each_dataset_and_masks_those_of_one_scale(tmp_path, code_dataset, prose):
    changes = mixed(prose, **PHASES, training__num_tokens=40 * 4 * 32)
    data = prepare(job_config(code_dataset, tmp_path / "run", "conditional", **changes, objective__quantiles=2))
    bounds = [each.streams[1].options.tag_bounds for each in data.datasets]
    assert len({len(each) for each in bounds}) == 1
    assert bounds[0] != bounds[1]
    assert {each.streams[1].options.tag_ids for each in data.datasets} == {data.control_ids}
    with pytest.raises(UserError, match=r"as many of their scores are equal. Set fewer quantiles"):
        prepare(job_config(code_dataset, tmp_path / "run", "conditional", **changes, objective__quantiles=9))
    with pytest.raises(UserError, match=r"mle with objective.mask_above computes with the scores themselves"):
        prepare(job_config(code_dataset, tmp_path / "run", "mle", **mixed(prose), objective__mask_above=0.01))
