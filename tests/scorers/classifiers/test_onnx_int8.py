import numpy as np
import pytest

from scorers.classifiers import onnx_int8
from scorers.contract import Document, Execution
from scorers.errors import UserError
from scorers.registry import ScorerSpec, build, check
from scorers.sentences import document
from tests.scorers.helpers import scores_of

pytest.importorskip("onnxruntime")

GIVEN = [document(f"You are awful! The lazy dog is {i}. Love, fox. " * (1 + i % 3)) for i in range(12)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "phf" / "onnx-int8"


def _build(tiny_bert, execution=None, **options):
    checkpoint, folder = tiny_bert
    spec = ScorerSpec(kind="detoxify", model=str(checkpoint), config=str(folder), **options)
    return build("toxicity", spec, execution or Execution())


def test_scores_are_near_those_of_torch_with_another_fingerprint(tiny_bert):
    exact, quantised = _build(tiny_bert), _build(tiny_bert, engine="onnx-int8")
    one, other = (np.concatenate(scores_of(each, *GIVEN)) for each in (exact, quantised))
    assert 0 < np.abs(one - other).max() < 0.1
    assert exact.fingerprint != quantised.fingerprint


def test_a_score_depends_on_its_sentence_alone(tiny_bert):
    scorer = _build(tiny_bert, engine="onnx-int8")
    together = scores_of(scorer, *GIVEN)
    for each, scores in zip(GIVEN, together, strict=True):
        alone = [
            scores_of(scorer, Document(sentence, np.array([len(sentence)], np.int32)))[0][0]
            for sentence in each.sentences()
        ]
        np.testing.assert_array_equal(scores, alone)


def test_a_model_is_exported_once(tiny_bert, classifier_folder, cache, monkeypatch):
    first = scores_of(_build(tiny_bert, engine="onnx-int8"), *GIVEN)
    assert [path.suffix for path in cache.iterdir()] == [".onnx"]
    monkeypatch.setattr(onnx_int8, "_export", None)
    for one, other in zip(first, scores_of(_build(tiny_bert, engine="onnx-int8"), *GIVEN), strict=True):
        np.testing.assert_array_equal(one, other)
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parent.parent))
    spec = ScorerSpec(kind="classifier", model=str(classifier_folder), label="toxic", engine="onnx-int8")
    scores_of(build("toxicity", spec), *GIVEN)
    assert len(list(cache.iterdir())) == 2


def test_a_failed_export_leaves_nothing_and_names_the_remedy(tiny_bert, cache, monkeypatch):
    monkeypatch.setattr(onnx_int8, "_TOLERANCE", 0.0)
    with pytest.raises(UserError, match=r"other outputs once it is exported.*engine=torch"):
        _build(tiny_bert, engine="onnx-int8")
    assert list(cache.iterdir()) == []


def test_it_is_for_cpus_and_needs_its_packages(tiny_bert, monkeypatch):
    with pytest.raises(UserError, match=r"for CPUs, but the device is cuda: use engine=torch"):
        _build(tiny_bert, Execution(device="cuda"), engine="onnx-int8")
    monkeypatch.setattr(onnx_int8, "LIBRARIES", ("no_such_package",))
    with pytest.raises(UserError, match=r"needs no_such_package.*pip install 'phf\[onnx\]'"):
        check("toxicity", ScorerSpec(kind="detoxify", engine="onnx-int8"))
