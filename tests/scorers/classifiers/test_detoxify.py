import os
import pickle
import socket
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scorers.classifiers import detoxify_model
from scorers.contract import Document, Execution
from scorers.errors import UserError
from scorers.fingerprint import file_sha256
from scorers.registry import ScorerSpec, build, parse_scorer
from scorers.sentences import document
from tests.scorers.helpers import CLASSES, NAMES, TEXTS, scores_of, tiny_checkpoint, tiny_folder

LONG = document("you are awful! " * 2 + "the quick brown fox " * 400 + ". The lazy dog is 42. " + "Awful " * 700)


def _spec(checkpoint, folder=None, **options):
    return ScorerSpec(kind="detoxify", model=str(checkpoint), config=str(folder) if folder else None, **options)


@pytest.fixture
def offline(monkeypatch):
    """Refuse all connections, so that a loader that asks the hub fails."""

    def refuse(*_arguments):
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize("family", NAMES)
def test_a_real_detoxify_gives_the_same_numbers(family, tmp_path, offline):
    import detoxify

    folder = tiny_folder(family, tmp_path / "config")
    checkpoint = tiny_checkpoint(family, folder, tmp_path / "model.ckpt")
    # Without a network Detoxify's own loader finds a configuration only if the checkpoint itself names the folder.
    reference = detoxify.Detoxify(
        checkpoint=str(tiny_checkpoint(family, folder, tmp_path / "r", model_type=str(folder)))
    )
    reference.tokenizer.model_max_length = 512

    scorer = build("toxicity", _spec(checkpoint, folder, long="truncate"))
    given = [document(TEXTS[0]), LONG, document("One."), document("")]
    for each, scores in zip(given, scores_of(scorer, *given), strict=True):
        expected = reference.predict(each.sentences())["toxicity"] if len(each.ends) else []
        # Detoxify returns a float for a list of one.
        expected = [expected] if isinstance(expected, float) else expected
        np.testing.assert_allclose(scores, expected, atol=1e-6, rtol=0)
        one_by_one = [reference.predict(sentence)["toxicity"] for sentence in each.sentences()]
        np.testing.assert_allclose(scores, one_by_one, atol=1e-6, rtol=0)
    assert np.ptp(np.concatenate(scores_of(scorer, *given))) > 1e-3


def test_the_object_inside_is_a_real_detoxify_that_predicts_long_texts(tiny_bert):
    import detoxify

    checkpoint, folder = tiny_bert
    loaded = detoxify_model.load(detoxify_model.locate(str(checkpoint), None), folder, "cpu", trusted=False)
    assert type(loaded) is detoxify.Detoxify
    assert loaded.class_names[0] == "toxicity"
    assert not loaded.model.training
    assert isinstance(loaded.predict("awful " * 2000)["toxicity"], float)
    assert loaded.model.config.num_labels == len(CLASSES)


def test_batch_sizes_change_nothing_but_the_last_bits(tiny_bert):
    given = [document(f"{text} Number {i}. " * (i % 5)) for i in range(40) for text in TEXTS[:1]] + [LONG]
    results = [
        scores_of(build("toxicity", _spec(*tiny_bert), Execution(batch_tokens=tokens)), *given)
        for tokens in (64, 100_000)
    ]
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6, rtol=0)


@pytest.fixture(scope="module")
def long_ways(tmp_path_factory):
    """Scorers of a tiny RoBERTa that truncate a long sentence and that use windows, and the real Detoxify."""
    import detoxify

    root = tmp_path_factory.mktemp("roberta")
    folder = tiny_folder("roberta", root / "config")
    checkpoint = tiny_checkpoint("roberta", folder, root / "model.ckpt", model_type=str(folder))
    reference = detoxify.Detoxify(checkpoint=str(checkpoint))
    reference.tokenizer.model_max_length = 512
    cut, windows = (build("toxicity", _spec(checkpoint, folder, long=long)) for long in ("truncate", "windows"))
    return cut, windows, reference


def _sentence(text):
    return Document(text, np.array([len(text)], dtype=np.int32))


def test_a_long_sentence_has_the_largest_score_of_its_windows_or_that_of_its_beginning(long_ways):
    cut, windows, reference = long_ways
    given = _sentence(" ".join(f"{word} {i}" for i in range(200) for word in ("awful", "the quick fox", "love", "42")))
    ids = reference.tokenizer(given.text, add_special_tokens=False)["input_ids"]
    starts = [*range(0, len(ids) - 510, 510 - 64), len(ids) - 510]
    alone = [reference.predict(reference.tokenizer.decode(ids[at : at + 510]))["toxicity"] for at in starts]
    assert len(alone) > 3
    assert max(alone) - alone[0] > 1e-4
    assert float(scores_of(cut, given)[0][0]) == pytest.approx(reference.predict(given.text)["toxicity"], abs=1e-6)
    assert float(scores_of(windows, given)[0][0]) == pytest.approx(max(alone), abs=1e-5)


@settings(max_examples=15)
@given(
    st.lists(st.text(max_size=40) | st.sampled_from(["awful 42", "\0", "\r\n", "😀" * 20, " "]), min_size=1, max_size=5)
)
def test_sentences_that_fit_score_the_same_either_way_and_as_detoxify(long_ways, sentences):
    cut, windows, reference = long_ways
    given = [_sentence(each) for each in ["awful", *sentences] if each]
    one, other = (np.concatenate(scores_of(scorer, *given)) for scorer in (cut, windows))
    np.testing.assert_array_equal(one, other)
    expected = [reference.predict(each.text)["toxicity"] for each in given]
    np.testing.assert_allclose(one, expected, atol=1e-6, rtol=0)


def test_a_sentence_of_hundreds_of_kilobytes(long_ways):
    cut, windows, reference = long_ways
    given = _sentence("the quick brown fox jumps over the lazy dog, " * 5000 + "x" * 100_000)
    assert float(scores_of(cut, given)[0][0]) == pytest.approx(reference.predict(given.text)["toxicity"], abs=1e-6)
    assert scores_of(windows, given)[0][0] >= scores_of(cut, given)[0][0] - 1e-6


def test_a_sentence_that_occurs_twice_is_computed_once(tiny_bert, monkeypatch):
    scorer = build("toxicity", _spec(*tiny_bert))
    computed = []
    original = scorer._network.scores
    monkeypatch.setattr(scorer._network, "scores", lambda ids, check: computed.append(len(ids)) or original(ids, check))
    one, other = scores_of(scorer, document("Awful. Fine. Awful. "), document("Fine. Awful. "))
    assert computed == [2]
    assert one[0] == one[2] == other[1]


def test_documents_of_a_call_that_takes_too_long_are_late(tiny_bert):
    results = build("toxicity", _spec(*tiny_bert), Execution(deadline_s=1e-9)).score([document("One. Two."), LONG])
    assert [each.reason for each in results] == ["deadline", "deadline"]


def test_a_sentence_that_cannot_be_encoded_is_an_error_of_its_document(tiny_bert):
    good, bad = build("toxicity", _spec(*tiny_bert)).score([_sentence("Fine."), _sentence("A \ud800.")])
    assert good.shape == (1,)
    assert bad.reason == "scorer-error"
    assert "ud800" not in str(bad)


def test_the_threads_of_the_process_are_left_as_they_were(tiny_bert):
    import torch

    before = torch.get_num_threads()
    scores_of(build("toxicity", _spec(*tiny_bert), Execution(threads=1 + before)), document("One. Two."))
    assert torch.get_num_threads() == before


def test_the_fingerprint_covers_the_content_not_its_place(tmp_path, tiny_bert):
    checkpoint, folder = tiny_bert
    plain = build("toxicity", _spec(checkpoint, folder)).fingerprint
    (tmp_path / "moved.ckpt").write_bytes(checkpoint.read_bytes())
    (tmp_path / "config").symlink_to(folder)
    moved = _spec(tmp_path / "moved.ckpt", tmp_path / "config", sha256=file_sha256(checkpoint))
    assert build("x", moved, Execution(batch_tokens=64)).fingerprint == plain
    other = tiny_checkpoint("bert", folder, tmp_path / "other.ckpt", model_type="another")
    assert build("toxicity", _spec(other, folder)).fingerprint != plain
    for change in ({"documents": "prose"}, {"long": "truncate"}):
        assert build("toxicity", _spec(checkpoint, folder, **change)).fingerprint != plain


class _Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.fixture
def trap(tmp_path, tiny_bert):
    """A checkpoint that creates a folder when it is unpickled, its configuration, and that folder."""
    checkpoint, folder = tiny_bert
    sprung = tmp_path / "sprung"
    path = tmp_path / "trap.ckpt"
    with zipfile.ZipFile(checkpoint) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as target:
        for name in source.namelist():
            pickled = name.endswith("data.pkl")
            target.writestr(name, pickle.dumps({"config": _Trap(sprung)}, protocol=2) if pickled else source.read(name))
    return path, folder, sprung


def test_a_pickle_that_runs_code_is_not_loaded(trap):
    path, folder, sprung = trap
    with pytest.raises(UserError, match=f"more than plain weights.*sha256={file_sha256(path)}"):
        build("toxicity", _spec(path, folder))
    assert not sprung.exists()


def test_a_pickle_is_trusted_only_by_a_hash_that_the_user_gives(trap, monkeypatch):
    path, folder, sprung = trap
    spec = _spec(path, folder, sha256=file_sha256(path))
    with pytest.raises(UserError, match=f"more than plain weights.*PHF_TRUST_SHA256={file_sha256(path)}"):
        build("toxicity", spec)
    assert not sprung.exists()
    monkeypatch.setenv("PHF_TRUST_SHA256", f"{'0' * 64}, {file_sha256(path).upper()}")
    with pytest.raises(UserError, match="Cannot build a Detoxify model"):
        build("toxicity", spec)
    assert sprung.exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_name", "AutoModelForSequenceClassification"),
        ("tokenizer_name", "AutoTokenizer"),
        ("model_name", "utils"),
    ],
)
def test_a_checkpoint_cannot_name_a_class_that_runs_code(tmp_path, tiny_bert, key, value):
    import torch

    checkpoint, folder = tiny_bert
    stored = torch.load(checkpoint, weights_only=True)
    stored["config"]["arch"]["args"][key] = value
    torch.save(stored, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match=f"names '{value}' as its {key}, which transformers does not have"):
        build("toxicity", _spec(tmp_path / "other.ckpt", folder))


def test_a_hash_that_differs_is_refused_before_unpickling(trap):
    path, folder, sprung = trap
    with pytest.raises(UserError, match=f"has the sha256 {file_sha256(path)}, not {'0' * 64}"):
        build("toxicity", _spec(path, folder, sha256="0" * 64))
    assert not sprung.exists()


def test_a_published_file_whose_name_belies_its_hash_is_refused_before_unpickling(trap, monkeypatch, tmp_path):
    path, folder, sprung = trap
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    place = tmp_path / "hub" / "checkpoints" / "toxic_debiased-c7548aa0.ckpt"
    place.parent.mkdir(parents=True)
    place.write_bytes(path.read_bytes())
    with pytest.raises(UserError, match=r"toxic_debiased-c7548aa0.ckpt is damaged or another file.*delete it"):
        build("toxicity", ScorerSpec(kind="detoxify", config=str(folder)))
    assert not sprung.exists()


def test_a_published_variant_is_loaded_from_where_torch_keeps_it(tiny_bert, monkeypatch, tmp_path, offline):
    checkpoint, folder = tiny_bert
    digest = file_sha256(checkpoint)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setitem(detoxify_model.VARIANTS, "original", f"toxic_original-{digest[:8]}.ckpt")
    place = tmp_path / "hub" / "checkpoints" / f"toxic_original-{digest[:8]}.ckpt"
    place.parent.mkdir(parents=True)
    place.write_bytes(checkpoint.read_bytes())
    spec = ScorerSpec(kind="detoxify", model="original", config=str(folder))
    assert build("toxicity", spec).fingerprint == build("toxicity", _spec(checkpoint, folder)).fingerprint


def test_published_variants_are_detoxifys_own(monkeypatch):
    import torch
    from detoxify.detoxify import MODEL_URLS

    assert {name: url.rpartition("/")[2] for name, url in MODEL_URLS.items()} == detoxify_model.VARIANTS
    for variable in ("TORCH_HOME", "XDG_CACHE_HOME"):
        assert detoxify_model.hub_folder() == Path(torch.hub.get_dir()) / "checkpoints"
        monkeypatch.setenv(variable, "/somewhere/else")
    assert detoxify_model.hub_folder() == Path(torch.hub.get_dir()) / "checkpoints"


def test_weights_that_cannot_be_downloaded_are_reported_with_the_remedy(monkeypatch, tmp_path, offline):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"could not be downloaded.*Put https://\S+-c7548aa0.ckpt at .*toxicity=linear"):
        build("toxicity", ScorerSpec(kind="detoxify"))


def test_a_missing_file_a_wrong_folder_and_foreign_classes(tmp_path, tiny_bert):
    import torch

    checkpoint, folder = tiny_bert
    with pytest.raises(UserError, match=r"'unbaised' is neither a published variant \(original, unbiased.*nor a file"):
        build("toxicity", ScorerSpec(kind="detoxify", model="unbaised"))
    with pytest.raises(UserError, match=r"is not a folder with a config\.json"):
        build("toxicity", _spec(checkpoint, tmp_path))
    stored = torch.load(checkpoint, weights_only=True)
    stored["config"]["dataset"]["args"]["classes"] = ["a", "b", "c", "d", "e", "f"]
    torch.save(stored, tmp_path / "foreign.ckpt")
    with pytest.raises(UserError, match="no class 'toxicity'; its classes are a, b"):
        build("toxicity", _spec(tmp_path / "foreign.ckpt", folder))


@pytest.mark.parametrize("change", ["weight missing", "another size", "no checkpoint"])
def test_a_checkpoint_that_does_not_fit_is_refused_not_filled_up_at_random(change, tmp_path, tiny_bert):
    import torch

    checkpoint, folder = tiny_bert
    stored = torch.load(checkpoint, weights_only=True)
    weights = stored["state_dict"]
    if change == "weight missing":
        del weights["bert.encoder.layer.0.attention.self.query.weight"]
    elif change == "another size":
        weights["classifier.weight"] = weights["classifier.weight"][:, :8].clone()
    else:
        stored = {"state_dict": weights}
    torch.save(stored, tmp_path / "bad.ckpt")
    with pytest.raises(UserError, match=r"bad\.ckpt"):
        build("toxicity", _spec(tmp_path / "bad.ckpt", folder))


def test_options_on_the_command_line_with_a_relative_path(monkeypatch, tiny_bert):
    checkpoint, folder = tiny_bert
    monkeypatch.chdir(checkpoint.parent)
    column, spec = parse_scorer(f"toxicity=detoxify:model.ckpt,config=./config,sha256={file_sha256(checkpoint)}")
    scorer = build(column, spec)
    monkeypatch.chdir("/")
    assert scorer.fingerprint == build("toxicity", _spec(checkpoint, folder)).fingerprint
    with pytest.raises(UserError, match="sha256: String should match pattern"):
        build("toxicity", ScorerSpec(kind="detoxify", sha256="123"))


def test_outputs_that_are_not_finite_are_errors_of_their_document(tmp_path, tiny_bert):
    import torch

    checkpoint, folder = tiny_bert
    stored = torch.load(checkpoint, weights_only=True)
    # Change the embedding of the letter z only.
    stored["state_dict"]["bert.embeddings.word_embeddings.weight"][5 + 25] = 3e38
    torch.save(stored, tmp_path / "huge.ckpt")
    scorer = build("toxicity", _spec(tmp_path / "huge.ckpt", folder))
    good, bad = scorer.score([document("abc. def."), document("abc. zzz.")])
    assert np.isfinite(good).all()
    assert bad.reason == "not-finite"
