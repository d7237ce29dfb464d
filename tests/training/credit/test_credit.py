"""`phf credit`: guilty tokens are found, an interrupted command goes on, and runs train on what it found."""

import json
import pickle
import shutil

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file
from typer.testing import CliRunner

from phf import app
from pipeline.dataset import open_dataset
from scorers.errors import StoppedError, UserError
from scorers.registry import ScorerSpec, build
from tests.datasets import make_dataset
from tests.training.jobs import StopAfter, figures, run_job
from tests.training.real_runs import build_for
from training.config import DataConfig
from training.credit import fit as fitting
from training.credit.agreement import Sentence, measure_agreement
from training.credit.learn import CreditRequest, learn_credit
from training.credit.settings import CreditConfig
from training.credit.words import Words, highest_of_words
from training.data.arrays import read_array, write_array
from training.data.prepare import prepare, tokenize
from training.data.stored_credit import credit_folder, credit_scores, read_credit
from training.loop.build_facts import build_run_facts, semantic_difference
from training.planning.resolved_run import ResolvedRun
from training.runs.facts import RunFacts
from training.schedule import plan_horizon
from training.settings import resolve_config

WORDS = [
    f"{first}{second}"
    for first in ("ba", "ke", "li", "mo", "nu", "ra", "so", "ti")
    for second in ("bel", "cor", "dan", "fel", "gim", "hul", "jor", "kas", "lem", "mir")
]
GUILTY = {WORDS[place] for place in range(3, 80, 13)}


def guilty_texts(documents: int, seed: int) -> list[str]:
    """Documents of three sentences, of which one in four has one or two guilty words among six to twelve."""
    random = np.random.default_rng(seed)
    innocent = [word for word in WORDS if word not in GUILTY]
    texts = []
    for _ in range(documents):
        text = ""
        for _ in range(3):
            words = random.choice(innocent, random.integers(6, 13)).tolist()
            if random.random() < 0.25:
                for place in random.integers(len(words), size=random.integers(1, 3)).tolist():
                    words[place] = sorted(GUILTY)[random.integers(len(GUILTY))]
            text += " ".join(words) + ". "
        texts.append(text)
    return texts


def score(sentence: str) -> float:
    """High where a word is guilty, else small: as a classifier's probability, which says not where."""
    clean = 0.001 + 0.004 * (len(sentence) % 7) / 7
    return 0.7 + 0.25 * (len(sentence) % 5) / 5 if GUILTY & set(sentence.replace(".", "").split()) else clean


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("credit") / "labelled"
    return make_dataset(
        folder, guilty_texts(700, 0), {"toxicity": score, "other": score}, {"toxicity": 0.5, "other": 0.5}
    )


SETTINGS = ["steps=400", "check_every=50", "lists=16", "width=16"]


def request_of(dataset, name, *, column="toxicity", **config):
    used, [(store, _)] = tokenize(DataConfig(dataset=str(dataset), vocab_size=500), [open_dataset(str(dataset))])
    small = {"steps": 400, "check_every": 50, "lists": 16, "width": 16, **config}
    return CreditRequest(name, open_dataset(str(dataset)), column, used, store, CreditConfig(**small), compare=0)


def silent(stage, done, total):
    pass


@pytest.fixture(scope="module")
def learnt(dataset):
    request = request_of(dataset, "words")
    return request, learn_credit(request, silent)


def guilty_tokens(request) -> np.ndarray:
    """Whether each token of the store overlaps a guilty word."""
    found = []
    for text in guilty_texts(700, 0):
        for sentence in text.replace(". ", ". \n").splitlines():
            places, begin = [], 0
            for word in sentence.split(" "):
                if word.strip(".") in GUILTY:
                    places.append((begin, begin + len(word.strip("."))))
                begin += len(word) + 1
            found += [
                any(start < end_ and start_ < end for start_, end_ in places)
                for start, end in request.tokenizer.spans([sentence])[0]
            ]
    return np.array(found)


def test_guilty_tokens_are_found(learnt):
    request, facts = learnt
    credited, guilty = credit_scores(request.store, "words") > 0.35, guilty_tokens(request)
    assert len(credited) == len(guilty)
    both = (credited & guilty).sum()
    assert 2 * both / (credited.sum() + guilty.sum()) >= 0.9
    assert facts.rank_correlation > 0.6
    assert facts.top_tenth > 0.5
    assert facts.agreement is None


def test_the_worst_token_of_a_sentence_has_its_score(learnt):
    request, _ = learnt
    store = request.store
    found, begins = credit_scores(store, "words"), store.sentence_offsets[:-1]
    assert (np.maximum.reduceat(found, begins) == store.scores("toxicity")).all()
    assert (found >= 0).all()


def test_an_interrupted_command_goes_on_with_the_same_result(dataset, learnt, monkeypatch):
    request, facts = learnt
    again = request_of(dataset, "again")

    def stop(stage, done, total):
        if stage == "learning" and done == 120:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn_credit(again, stop)
    steps = []
    learn_credit(again, lambda stage, done, total: steps.append(done) if stage == "learning" else None)
    assert steps[0] == 101
    ours, theirs = credit_folder(again.store, "again"), credit_folder(request.store, "words")
    assert (ours / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()
    assert (ours / "tokens.arrow").read_bytes() == (theirs / "tokens.arrow").read_bytes()
    assert read_credit(again.store, "again").fingerprint == facts.fingerprint
    assert not list(ours.parent.glob(".*"))


def test_a_state_of_other_shapes_is_begun_anew(dataset):
    request = request_of(dataset, "shapes", steps=20, check_every=20)
    state = credit_folder(request.store, ".shapes.state")

    def stop(stage, done, total):
        if stage == "tokens":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn_credit(request, stop)
    with safe_open(state / fitting.STATE, "np") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    tensors["square.alone.bias"] = tensors["square.alone.bias"][1:].copy()
    save_file(tensors, state / fitting.STATE, metadata)
    steps = []
    learn_credit(request, lambda stage, done, total: steps.append(done) if stage == "learning" else None)
    assert steps[0] == 1
    shutil.rmtree(credit_folder(request.store, "shapes"))


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, b"\x10\0\0\0\0\0\0\0{}"])
def test_a_damaged_state_is_begun_anew(dataset, tmp_path, content):
    request = request_of(dataset, "damaged", steps=20, check_every=20)
    state = credit_folder(request.store, ".damaged.state")
    state.mkdir(parents=True, exist_ok=True)
    (state / fitting.STATE).write_bytes(content)
    facts = learn_credit(request, silent)
    assert facts.steps == 20
    shutil.rmtree(credit_folder(request.store, "damaged"))


def test_the_same_request_is_answered_from_the_disk_and_another_is_refused(dataset, learnt):
    request, facts = learnt
    assert learn_credit(request, lambda *_: pytest.fail("nothing is left to do")) == facts
    with pytest.raises(UserError, match=r"made in another way \(window 1, now 0\)"):
        learn_credit(request_of(dataset, "words", window=0), silent)
    with pytest.raises(UserError, match=r"column 'toxicity', now 'other'"):
        learn_credit(request_of(dataset, "words", column="other"), silent)


def run_config(dataset, *overrides, objective="unlikelihood", column="toxicity"):
    flags = {"output": "o", "task": column, "data": {"dataset": str(dataset), "vocab_size": 500}}
    small = ["data.context_length=16", "model.name=nano", "training.batch_size=4", "training.num_tokens=256"]
    return resolve_config(flags=flags, overrides=[*small, f"objective.name={objective}", *overrides])


def test_a_stream_carries_the_scores_of_tokens(dataset, learnt):
    _, facts = learnt
    plain = prepare(run_config(dataset))
    data = prepare(run_config(dataset, "data.token_scores=credit:words"))
    every = range(data.stream.num_blocks)
    ours, theirs = data.stream.blocks(every), plain.stream.blocks(every)
    assert (ours.input_ids == theirs.input_ids).all()
    assert (ours.scores <= theirs.scores).all()
    assert 0 < (ours.scores > 0.35).sum() < (theirs.scores > 0.35).sum() / 3
    assert data.stream.credit == facts.fingerprint
    assert plain.stream.credit is None
    some = data.stream.blocks([7, 2])
    assert (some.scores == ours.scores[[7, 2]]).all()


@pytest.mark.parametrize("place", ["before", "after", "both"])
def test_tokens_above_a_limit_are_hidden_by_their_own_scores(dataset, learnt, place):
    credited = ["data.token_scores=credit:words", f"objective.tag_place={place}"]
    plain = prepare(run_config(dataset, *credited, "objective.mask_above=0.35", objective="conditional"))
    hiding = [*credited, "objective.hide_above=0.35"]
    data = prepare(run_config(dataset, *hiding, objective="conditional"))
    every = range(data.stream.num_blocks)
    before, after = plain.stream.blocks(every), data.stream.blocks(every)
    hidden = data.stream.options.hidden_id
    tags = (*plain.stream.options.tag_ids, *plain.stream.options.after_ids)
    text = ~np.isin(before.input_ids, [plain.tokenizer.eos_id, *tags])
    above = text & (before.scores > np.float32(0.35))
    assert 0 < above.sum() < text.sum() / 4
    assert (after.input_ids == np.where(above, hidden, before.input_ids)).all()
    assert (after.scores == before.scores).all()


def test_a_run_that_hides_credited_tokens_and_tags_behind_resumes(dataset, learnt, tmp_path):
    changes = {
        "task": "toxicity",
        "data__vocab_size": 500,
        "data__held_out": 0.02,
        "data__token_scores": "credit:words",
        "objective__tag_place": "after",
        "objective__hide_above": 0.35,
    }
    whole, _ = run_job(dataset, tmp_path / "whole", "conditional", **changes)
    with pytest.raises(StoppedError):
        run_job(dataset, tmp_path / "run", "conditional", callbacks=[StopAfter(4)], **changes)
    resumed, _ = run_job(dataset, tmp_path / "run", "conditional", **changes)
    assert figures(tmp_path / "run") == figures(tmp_path / "whole")
    assert resumed.credit == whole.credit == learnt[1].fingerprint
    assert whole.stream["tokens_hidden"] > 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.token_scores=credit:nothing"], "There is no credit 'nothing' .*; it has: .*words"),
        (
            ["data.token_scores=credit:words", "data.column=other"],
            "divides the scores of 'toxicity', but the run is about 'other'",
        ),
        (["data.token_scores=credit:words", "objective.name=mle"], "no effect on the objective mle"),
        (["data.token_scores=credit:../words"], "token_scores"),
    ],
)
def test_a_run_that_cannot_use_a_credit_is_refused(dataset, learnt, overrides, message):
    with pytest.raises(UserError, match=message):
        prepare(run_config(dataset, *overrides))


def spoil(folder, value):
    scores = read_array(folder / "tokens.arrow").copy()
    scores[5] = value
    write_array(folder / "tokens.arrow", scores)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "credit.json").write_text('{"version": 1'), "is damaged: credit.json, field"),
        (lambda folder: (folder / "tokens.arrow").write_bytes(b"ARROW1"), "is damaged: tokens.arrow"),
        (lambda folder: write_array(folder / "tokens.arrow", np.zeros(3, np.float32)), "tokens.arrow holds 3 values"),
        (lambda folder: spoil(folder, np.nan), "tokens.arrow holds nan for token 5, not a score"),
        (lambda folder: spoil(folder, np.inf), "tokens.arrow holds inf for token 5, not a score"),
        (lambda folder: spoil(folder, -1), "tokens.arrow holds -1 for token 5, not a score"),
        (lambda folder: (folder / "tokens.arrow").write_bytes(pickle.dumps([0.5])), "is damaged: tokens.arrow"),
        (
            lambda folder: write_array(folder / "tokens.arrow", read_array(folder / "tokens.arrow").astype(np.float64)),
            "values of float64",
        ),
        (
            lambda folder: (folder / "credit.json").write_text(
                json.dumps({**json.loads((folder / "credit.json").read_text()), "store": "another"})
            ),
            "belongs to another token store or name",
        ),
    ],
)
def test_a_damaged_credit_is_refused_by_its_name(dataset, learnt, damage, message):
    request, _ = learnt
    folder = credit_folder(request.store, "damaged")
    shutil.copytree(credit_folder(request.store, "words"), folder)
    facts = json.loads((folder / "credit.json").read_text())
    (folder / "credit.json").write_text(json.dumps({**facts, "name": "damaged"}))
    damage(folder)
    try:
        with pytest.raises(UserError, match=message):
            prepare(run_config(dataset, "data.token_scores=credit:damaged"))
    finally:
        shutil.rmtree(folder)


def test_a_run_does_not_resume_on_other_token_scores(dataset, learnt):
    data = prepare(run_config(dataset, "data.token_scores=credit:words"))
    horizon = plan_horizon(data.config.training, data.config.data.context_length, 1)
    before = build_run_facts(data, build_for(data), ResolvedRun(data.config, horizon, "fp32", on_gpu=False))
    assert RunFacts.model_validate_json(before.model_dump_json()) == before
    found = semantic_difference(before, before.model_copy(update={"credit": "another"}))
    assert found == [f"the token scores: {learnt[1].fingerprint} in the run, another now"]


def test_scores_that_teach_nothing_are_refused(tmp_path):
    same = make_dataset(tmp_path / "same", guilty_texts(40, 1), {"toxicity": lambda _: 0.0}, {"toxicity": 0.5})
    with pytest.raises(UserError, match="Nothing can be learnt about 'toxicity'"):
        learn_credit(request_of(same, "none"), silent)


def test_the_command_prints_figures_and_json(dataset, learnt):
    words = ["credit", str(dataset), "--column", "toxicity", "--name", "words", "--compare", "0", "--store"]
    request, facts = learnt
    words += [str(request.store.path), "--tokenizer", request.tokenizer.name]
    settings = [word for each in SETTINGS for word in ("--set", each)]
    found = CliRunner().invoke(app, [*words, *settings, "--json"])
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["fingerprint"] == facts.fingerprint
    shown = CliRunner().invoke(app, [*words, *settings])
    assert "rank correlation" in shown.stdout
    assert "--set data.token_scores=credit:words" in shown.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "choose --column from toxicity, other"),
        (["--column", "moon"], "no column 'moon': --column is one of toxicity, other"),
        (["--column", "toxicity", "--name", "../x"], "--name '../x' must begin"),
        (["--column", "toxicity", "--set", "window=99"], "window"),
        (["--column", "toxicity", "--device", "moon"], "--device moon"),
    ],
)
def test_a_wrong_command_is_refused_in_one_message(dataset, words, message):
    found = CliRunner().invoke(app, ["credit", str(dataset), *words])
    assert found.exit_code == 2, found.output
    assert message in " ".join(found.stderr.split())


def test_words_are_credited_whole():
    continues = np.array([False, True, True, False, False, True])
    values = np.array([0.1, 0.7, 0.2, 0.3, 0.5, 0.4], dtype=np.float32)
    assert highest_of_words(values, continues).tolist() == np.float32([0.7, 0.7, 0.7, 0.3, 0.5, 0.5]).tolist()


def test_words_are_joined_within_a_sentence(learnt):
    request, _ = learnt
    words = Words(request.tokenizer)
    ids, lengths = request.tokenizer.encode(["ab12c' ab, ab", "ab ab"])
    names = [request.tokenizer.decode([each]) for each in ids.tolist()]
    joined = words.continues(ids, lengths)
    for place in range(1, len(ids)):
        inner = place != lengths[0] and names[place - 1][-1].isalnum() and names[place][0].isalnum()
        assert joined[place] == inner
    assert not joined[0]


class WordScorer:
    """Scores as `score` does, and cannot say where."""

    name, fingerprint = "toxicity", "words"

    def applies(self, document):
        return True

    def score(self, documents):
        return [np.array([score(each) for each in document.sentences()], dtype=np.float32) for document in documents]


def test_agreement_counts_the_words_whose_deletion_halves_the_score(learnt):
    request, _ = learnt
    guilty = sorted(GUILTY)[0]
    texts = [f"mobel {guilty} kedan.", f"{guilty} {guilty}."]
    sentences = [Sentence(place, text, first=True) for place, text in enumerate(texts)]
    spans = request.tokenizer.spans(texts)

    def credited(sentence):
        """The guilty word, and the token after it."""
        found = np.array([start < 6 + len(guilty) and end > 6 for start, end in spans[sentence.index]])
        return found | np.roll(found, 1)  # there is one

    found = measure_agreement(
        sentences, np.float32([0.9, 0.9]), credited, WordScorer(), request.tokenizer, "prose", lambda *_: None
    )
    # Deleting one of two guilty words changes nothing.
    assert (found.reference, found.sentences, found.unlocated) == ("deletion", 1, 1)
    assert found.precision == found.both / found.credited < 1
    assert found.recall == 1


def test_agreement_takes_the_findings_of_a_scorer_that_shows_them(learnt):
    request, _ = learnt
    scorer = build("pii", ScorerSpec(kind="scrubadub", entities="none"))
    text = "Write to jane@example.com please."
    sentences = [Sentence(0, text, first=True), Sentence(1, "Nothing to find.", first=False)]
    places = request.tokenizer.spans([text])[0]
    found = measure_agreement(
        sentences, np.float32([0.5, 0.5]), lambda _: np.ones(len(places), dtype=bool), scorer, request.tokenizer,
        "prose", lambda *_: None,
    )  # fmt: skip
    assert (found.reference, found.sentences, found.unlocated, found.recall) == ("spans", 1, 1, 1.0)
    assert found.guilty == sum(start < 25 and end > 9 for start, end in places) < found.credited == len(places)
