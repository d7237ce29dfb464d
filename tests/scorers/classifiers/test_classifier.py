import shutil
import socket
import time

import numpy as np
import pytest

from scorers.errors import UserError
from scorers.fingerprint import file_sha256
from scorers.registry import ScorerSpec, build, check, check_options, parse_scorer
from scorers.sentences import document
from tests.scorers.helpers import TEXTS, scores_of, tiny_classifier

GIVEN = [document(TEXTS[0]), document(""), document("You are awful! " * 3 + "Love, 42 times. The fox")]


def _build(folder, **options):
    return build("toxicity", ScorerSpec(kind="classifier", model=str(folder), **options))


def _outputs(folder, sentences):
    """Compute the logits by the pipeline that transformers documents."""
    import torch
    import transformers

    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return torch.cat([model(**tokenizer(each, return_tensors="pt")).logits for each in sentences])


def _check_scores(scorer, folder, activation, label):
    for each, found in zip(GIVEN, scores_of(scorer, *GIVEN), strict=True):
        if len(each.ends):
            expected = activation(_outputs(folder, each.sentences()))[:, label].numpy()
            np.testing.assert_allclose(found, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("config", "options", "activation"),
    [
        ({}, {}, "softmax"),
        ({"problem_type": "single_label_classification"}, {}, "softmax"),
        ({"problem_type": "multi_label_classification"}, {}, "sigmoid"),
        ({"problem_type": "multi_label_classification"}, {"activation": "softmax"}, "softmax"),
        ({"labels": ["only"]}, {"label": None}, "sigmoid"),
        ({}, {"label": "TOXIC"}, "softmax"),
        ({}, {"label": 1}, "softmax"),
    ],
)
def test_the_score_is_the_probability_of_the_label(tmp_path, config, options, activation):
    import torch

    folder = tiny_classifier("roberta", tmp_path / "model", **config)
    scorer = _build(folder, **{"label": "toxic", **options})
    function = torch.sigmoid if activation == "sigmoid" else lambda logits: logits.softmax(-1)
    _check_scores(scorer, folder, function, -1)


@pytest.mark.parametrize("family", ["bert", "albert", "xlm-roberta"])
def test_other_families(tmp_path, family):
    folder = tiny_classifier(family, tmp_path / "model")
    _check_scores(_build(folder, label="fine"), folder, lambda logits: logits.softmax(-1), 0)


def test_an_unforeseen_architecture(tmp_path, classifier_folder):
    import torch
    import transformers

    folder = shutil.copytree(classifier_folder, tmp_path / "model")
    torch.manual_seed(3)
    config = transformers.DistilBertConfig(
        vocab_size=300, dim=16, hidden_dim=32, n_layers=2, n_heads=2, max_position_embeddings=512, num_labels=2,
        pad_token_id=1,
    )  # fmt: skip
    transformers.DistilBertForSequenceClassification(config).save_pretrained(folder)
    _check_scores(_build(folder, label=1), folder, lambda logits: logits.softmax(-1), 1)


def test_a_regression_whose_output_is_below_zero_is_an_error_of_its_document(tmp_path):
    folder = tiny_classifier("roberta", tmp_path / "model", labels=["badness"], problem_type="regression")
    sign = -1 if _outputs(folder, [TEXTS[0]])[0, 0] > 0 else 1
    _scale_output(folder, sign)
    (found,) = _build(folder).score([document(TEXTS[0])])
    assert found.reason == "negative"
    assert "activation=sigmoid" in found.detail
    _scale_output(folder, -1)
    assert (scores_of(_build(folder), document(TEXTS[0]))[0] > 0).all()
    assert (scores_of(_build(folder, activation="sigmoid"), document(TEXTS[0]))[0] > 0.5).all()


def _scale_output(folder, factor):
    import torch
    import transformers

    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        for weight in model.classifier.out_proj.parameters():
            weight.mul_(factor)
    model.save_pretrained(folder)


def test_the_fingerprint_covers_the_content_and_the_resolved_options(tmp_path, classifier_folder):
    plain = _build(classifier_folder, label="toxic").fingerprint
    moved = shutil.copytree(classifier_folder, tmp_path / "moved")
    assert _build(moved, label="1", activation="softmax").fingerprint == plain
    for change in ({"label": "fine"}, {"activation": "sigmoid"}, {"long": "truncate"}, {"documents": "prose"}):
        assert _build(classifier_folder, **{"label": "toxic", **change}).fingerprint != plain
    config = moved / "config.json"
    config.write_text(config.read_text().replace('"hidden_act": "gelu"', '"hidden_act": "relu"'))
    assert _build(moved, label="toxic").fingerprint != plain
    _scale_output(moved, 2)
    assert _build(moved, label="toxic").fingerprint != plain


def test_pickled_weights_need_a_user_who_vouches_for_them(tmp_path, classifier_folder, monkeypatch):
    import torch
    from safetensors.torch import load_file

    folder = shutil.copytree(classifier_folder, tmp_path / "model")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    digest = file_sha256(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=f"are a pickle, which can run any code.*sha256={digest}"):
        _build(folder, label="toxic")
    with pytest.raises(UserError, match=f"pytorch_model.bin {digest}, not {'0' * 64}"):
        _build(folder, label="toxic", sha256="0" * 64)
    with pytest.raises(UserError, match=f"are a pickle.*PHF_TRUST_SHA256={digest}"):
        _build(folder, label="toxic", sha256=digest)
    monkeypatch.setenv("PHF_TRUST_SHA256", digest)
    one = scores_of(_build(folder, label="toxic"), *GIVEN)
    other = scores_of(_build(classifier_folder, label="toxic"), *GIVEN)
    for pickled, plain in zip(one, other, strict=True):
        np.testing.assert_array_equal(pickled, plain)


def test_wrong_options_are_reported_with_the_remedy(tmp_path, classifier_folder):
    folder = shutil.copytree(classifier_folder, tmp_path / "model")
    with pytest.raises(UserError, match=r"needs a model: COLUMN=classifier:FOLDER,label=LABEL"):
        build("toxicity", ScorerSpec(kind="classifier"))
    with pytest.raises(UserError, match=r"no label 'rude'; its labels are 0 fine, 1 toxic"):
        _build(folder, label="rude")
    with pytest.raises(UserError, match=r"label=NAME. It has 0 fine, 1 toxic"):
        _build(folder)
    with pytest.raises(UserError, match=r"/nowhere/model is neither a folder nor a name"):
        _build("/nowhere/model")
    with pytest.raises(UserError, match=r"has no config\.json"):
        _build(tmp_path)
    with pytest.raises(UserError, match="is a folder"):
        _build(folder, label="toxic", revision="main")
    with pytest.raises(UserError, match="activation"):
        check_options("toxicity", ScorerSpec(kind="classifier", model=str(folder), activation="relu"))
    single = tiny_classifier("roberta", tmp_path / "single", labels=["only"])
    with pytest.raises(UserError, match="softmax is always 1"):
        _build(single, activation="softmax")


@pytest.mark.parametrize("lacking", ["weights", "tokenizer", "head", "code"])
def test_a_folder_that_lacks_something_is_refused(tmp_path, classifier_folder, lacking):
    import transformers

    folder = shutil.copytree(classifier_folder, tmp_path / "model")
    if lacking == "weights":
        (folder / "model.safetensors").unlink()
        message = "no weights"
    elif lacking == "tokenizer":
        for path in [*folder.glob("*token*"), *folder.glob("vocab*"), *folder.glob("merges*")]:
            path.unlink()
        message = "has no tokenizer.*save_pretrained"
    elif lacking == "head":
        transformers.RobertaModel.from_pretrained(classifier_folder).save_pretrained(folder)
        message = r"lack classifier\.\S+ \(\d in all\), which would be random numbers"
    else:
        config = folder / "config.json"
        own = '"auto_map": {"AutoConfig": "x.C", "AutoModelForSequenceClassification": "x.M"}, "model_type": "mine"'
        config.write_text(config.read_text().replace('"model_type": "roberta"', own))
        (folder / "x.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
        message = "Cannot load a sequence classifier"
    with pytest.raises(UserError, match=message):
        _build(folder, label="toxic")
    assert not (tmp_path / "ran").exists()


def test_a_model_on_a_hub_that_does_not_answer_fails_fast(monkeypatch, tmp_path):
    def refuse(*_arguments, **_more):
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    began = time.monotonic()
    with pytest.raises(UserError, match=r"'acme/no-such-model' is not a folder, and the Hugging Face hub does not"):
        _build("acme/no-such-model", label="toxic")
    with pytest.raises(UserError, match=r"nor in the hub's cache on this machine"):
        check("toxicity", ScorerSpec(kind="classifier", model="acme/no-such-model"))
    assert time.monotonic() - began < 10


def test_the_form_on_the_command_line_with_a_relative_folder(monkeypatch, classifier_folder):
    monkeypatch.chdir(classifier_folder.parent)
    column, spec = parse_scorer(f"rude=classifier:{classifier_folder.name},label=toxic,activation=sigmoid")
    options = check_options(column, spec)
    assert options.model == str(classifier_folder)
    check(column, spec)
    hub = parse_scorer("rude=classifier:unitary/toxic-bert,label=0,revision=main")[1]
    assert check_options("rude", hub).model == "unitary/toxic-bert"
