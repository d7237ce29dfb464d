"""Targets on the corpus: weights that meet them, their identities with the other objectives, and what is refused."""

import json
import pickle

import numpy as np
import pytest
import torch

from scorers.errors import UserError
from tests.datasets import make_dataset
from tests.training.stores import byte_tokenizer
from training.data.prepare import prepare
from training.evaluation.checks import main_data
from training.objectives import build
from training.settings import resolve_config

TEXTS = [f"Note {n} on the weather. It rained on day {n}{', again' * (n % 5)}." for n in range(150)]
OTHERS = [f"Letter {n} to a friend. Come and see us, {n}." for n in range(90)]


def labelled(folder, texts, shift=0.0):
    generator = np.random.default_rng(len(texts))
    scores = {
        "toxicity": np.minimum(generator.exponential(0.2, (len(texts), 2)) + shift, 1).round(3).tolist(),
        "pii": (generator.random((len(texts), 2)) < 0.2 + shift).astype(float).__mul__(0.25).tolist(),
    }
    return make_dataset(folder, texts, scores, {"toxicity": 0.3, "pii": 0.0})


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("targets")
    byte_tokenizer(TEXTS + OTHERS).save_pretrained(place / "tokenizer")
    return {
        "main": labelled(place / "main", TEXTS),
        "other": labelled(place / "other", OTHERS, shift=0.1),
        "tokenizer": place / "tokenizer",
    }


@pytest.fixture(scope="module")
def config(folders):
    def of(targets=None, *overrides, objective="target"):
        data = {"dataset": str(folders["main"]), "tokenizer": str(folders["tokenizer"])}
        flags = {"output": "o", "task": "toxicity", "data": data, "model": {"name": "nano"}}
        usual = ["data.context_length=16", "data.held_out=0.1", f"objective.name={objective}"]
        usual += [] if targets is None else [f"objective.targets={json.dumps(targets)}"]
        return resolve_config(flags=flags, overrides=[*usual, *overrides])

    return of


def corpus(data):
    """Return the features' columns, the lengths and the weights of the stream's sentences."""
    stream = data.stream
    chosen = np.concatenate(list(stream.sentence_chunks()))
    columns = {name: stream.store.scores(name)[chosen].astype(np.float64) for name in ("toxicity", "pii")}
    lengths = np.diff(stream.store.sentence_offsets)[chosen]
    return columns, lengths, np.exp(-stream.sentence_scores().astype(np.float64))


def test_weights_meet_every_target_and_their_mean_over_tokens_is_one(config):
    data = prepare(config({"toxicity<=0.3": 0.9, "toxicity": 0.12, "pii<=0": 0.95}))
    columns, lengths, weights = corpus(data)
    share = weights / weights.sum()
    assert share @ (columns["toxicity"].astype(np.float32) <= np.float32(0.3)) == pytest.approx(0.9, abs=1e-6)
    assert share @ columns["toxicity"] == pytest.approx(0.12, abs=1e-6)
    assert share @ (columns["pii"] <= 0) == pytest.approx(0.95, abs=1e-6)
    assert weights @ lengths / lengths.sum() == pytest.approx(1, abs=1e-6)
    found = data.targets
    assert found.sentences == len(weights)
    assert found.effective_sentences == pytest.approx(weights.sum() ** 2 / (weights**2).sum(), rel=1e-5)
    assert (found.least, found.greatest) == pytest.approx((weights.min(), weights.max()), rel=1e-5)
    assert data.config.data.columns == {"toxicity": 1.0, "pii": 1.0}


def test_every_token_carries_its_weight_and_eos_the_mean(config):
    data = prepare(config({"pii<=0": 0.95}))
    batch = data.stream.blocks(np.arange(data.stream.num_blocks))
    weights = np.exp(-batch.scores)
    low, high = sorted({round(float(each), 5) for each in corpus(data)[2]})
    assert {round(float(each), 5) for each in np.unique(weights)} == {low, 1.0, high}
    assert (weights[batch.input_ids == data.tokenizer.eos_id] == 1).all()
    ids, scores = torch.tensor(batch.input_ids), torch.tensor(batch.scores)
    metrics = data.objective.loss(torch.zeros(*ids.shape, 300), ids, scores).metrics
    assert metrics["weight"].item() == pytest.approx(1, abs=0.05)
    assert metrics["max_weight"].item() == pytest.approx(high, abs=1e-4)


def test_rwr_is_a_target_on_the_mean_score(config):
    # Weights exp(lambda . phi) with phi = -s and lambda = 1 / beta, up to the constant that makes their mean 1.
    beta = 0.3
    scores = corpus(prepare(config(objective="mle")))[0]["toxicity"]
    tilted = np.exp(-scores / beta)
    data = prepare(config({"toxicity": float(tilted @ scores / tilted.sum())}))
    weighting = data.targets.weighting
    assert -weighting.lambdas[0] == pytest.approx(1 / beta, rel=1e-8)

    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 9, 50, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 50, (3, 9), generator=generator)
    token_scores = torch.rand(3, 9, generator=generator, dtype=torch.float64)
    costs = weighting.log_mean - weighting.lambdas[0] * token_scores
    mine = build("target").loss(logits, labels, costs).loss * np.exp(weighting.log_mean)
    theirs = build("rwr", beta=beta).loss(logits, labels, token_scores).loss
    assert mine.item() == pytest.approx(theirs.item(), rel=1e-8)


def test_filtering_is_the_limit_of_an_infinite_lambda(config):
    scores, lengths, exact = corpus(prepare(config({"toxicity<=0.3": 1})))
    kept = scores["toxicity"] <= np.float32(0.3)
    assert (exact[~kept] == 0).all()
    np.testing.assert_allclose(exact[kept], lengths.sum() / lengths[kept].sum(), rtol=1e-5)
    _, _, close = corpus(prepare(config({"toxicity<=0.3": 0.999999})))
    np.testing.assert_allclose(close, exact, atol=2e-5)


def test_mixing_the_tags_of_conditional_is_a_target_on_their_share(config):
    # D(x | aligned) with probability w, else D(x | misaligned): what a conditional model samples after mixed tags.
    share = 0.8
    data = prepare(config({"toxicity<=0.3": share}))
    scores, _, weights = corpus(data)
    aligned = scores["toxicity"] <= np.float32(0.3)
    mixed = np.where(aligned, share / aligned.sum(), (1 - share) / (~aligned).sum())
    np.testing.assert_allclose(weights / weights.sum(), mixed, rtol=1e-5)


def test_a_mixture_meets_the_targets_as_it_is_read(config, folders):
    mixture = json.dumps([{"dataset": str(folders["other"]), "share": 0.4}])
    overrides = f"data.mixture={mixture}", "data.allow_mixed_scorers=true"
    data = prepare(config({"toxicity<=0.3": 0.9, "toxicity": 0.15}, *overrides))
    met = total = tokens = 0.0
    for each, share in zip(data.datasets, (0.6, 0.4), strict=True):
        stream = each.streams[0]
        chosen = np.concatenate(list(stream.sentence_chunks()))
        rate = share / stream.num_tokens * np.exp(-stream.sentence_scores().astype(np.float64))
        scores = stream.store.scores("toxicity")[chosen]
        met += (rate * (scores <= np.float32(0.3))).sum()
        total += rate.sum()
        lengths = np.diff(stream.store.sentence_offsets)[chosen]
        tokens += rate @ lengths + share / stream.num_tokens * len(stream.documents)
    assert met / total == pytest.approx(0.9, abs=1e-5)
    assert tokens == pytest.approx(1, abs=1e-5)  # EOS weighs 1


def test_a_target_that_is_met_already_is_pointed_out(config):
    (warning,) = prepare(config({"toxicity<=0.3": 0.5})).warnings
    assert "toxicity<=0.3 is 0.7" in warning
    assert "more weight" in warning


def test_an_evaluation_needs_no_weights(config):
    found = config({"toxicity<=0.3": 0.9, "pii<=0": 0.95})
    data = prepare(main_data(found, None), compare_texts=False)
    assert data.targets is None
    assert data.stream.held_out_documents().tolist() == prepare(found).stream.held_out_documents().tolist()


def test_a_weighted_store_can_be_sent_to_a_loader(config):
    stream = prepare(config({"toxicity": 0.1})).stream
    again = pickle.loads(pickle.dumps(stream))
    assert again.blocks([0]).scores.tolist() == stream.blocks([0]).scores.tolist()


@pytest.mark.parametrize(
    ("targets", "overrides", "message"),
    [
        ({}, (), "needs objective.targets"),
        ({"toxicity<0.3": 0.9}, (), "'toxicity<0.3' is not of the form"),
        ({"toxicity<=much": 0.9}, (), "'much' is not a number"),
        ({"toxicity<=0.3": 1.5}, (), "1.5 is not a share"),
        ({"toxicity": 0}, (), "give 'toxicity<=0: 1'"),
        ({"toxicity<=0.3": 0.9, "toxicity <= 0.30": 0.8}, (), "names toxicity<=0.3 twice"),
        ({"toxicity<=0.3": 0.9, "toxicity<=0.4": 0.8}, (), "contradict each other"),
        ({"rudeness<=0.3": 0.9}, (), "rudeness"),
        ({"toxicity<=2": 0.9}, (), "every sentence of the stream has a score of at most 2"),
        ({"toxicity": 0.9999}, (), "scores go from 0.001 to 0.911 .mean 0.2"),
        ({"pii<=0": 1, "pii": 0.1}, (), "every sentence of .* has the score 0. Leave the target out"),
        ({"toxicity<=0.3": 0.99, "toxicity": 0.5}, (), "together.*nearest.*toxicity<=0.3"),
        ({"toxicity<=0.0": 0.9}, (), "sentences? of the stream|would count"),
        ({"toxicity<=0.005": 0.999}, (), "would count .effective sample size.*toxicity<=0.005 is 0.0"),
        ({"toxicity<=0.3": 0.95}, ("objective.min_effective_share=0.99",), "min_effective_share"),
        ({"toxicity<=0.3": 0.9}, ("data.columns.pii=2",), "Remove those of data.columns"),
        ({"toxicity<=0.3": 0.9}, ("objective.mask_above=p90",), "mask_above"),
        ({"toxicity<=0.3": 0.9}, ("data.token_scores=true",), "weights whole sentences"),
        ({"toxicity<=0.3": 0.9}, ("objective.quantiles=4",), "has no tags"),
        ({"toxicity<=0.3": 0.9}, ("objective.beta=4",), "has no beta"),
        ({"toxicity<=0.3": 0.9}, ("objective.name=rwr", "objective.beta=1"), "rwr has no targets"),
    ],
)
def test_what_cannot_be_met_is_refused(config, targets, overrides, message):
    with pytest.raises(UserError, match=message):
        prepare(config(targets, *overrides))
