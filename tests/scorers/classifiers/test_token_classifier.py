"""Token classifiers: the spans of transformers' own pipeline, decoded labels, and windows of long sentences."""

import json
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scorers.classifiers.encoding import Placed, window_starts
from scorers.classifiers.token_labels import Tag, decode, tags_of
from scorers.errors import UserError
from scorers.registry import ScorerSpec, build, check_options, parse_scorer
from scorers.sentences import document
from scorers.spans import Finding, LocatesFindings, merged, why_invalid
from scorers.testing import check_order, check_scores

LABELS = ("O", "B-NAME", "I-NAME", "B-MAIL", "I-MAIL")
SENTENCES = [
    "The quick brown fox jumps over the lazy dog. ",
    "Write to jane.doe@example.com, or call 🙂 Ünïcode now!  ",
    "x",
    "   ",
    "no end of words here " * 90,
]


@pytest.fixture
def folder(token_classifier_folder):
    return token_classifier_folder


def _spec(folder, **options):
    return ScorerSpec(kind="token-classifier", model=str(folder), **options)


def _document():
    each = document("")
    ends = np.cumsum([len(sentence) for sentence in SENTENCES], dtype=np.int32)
    return type(each)("".join(SENTENCES), ends)


def test_the_spans_are_those_of_the_pipeline_of_transformers(folder):
    import transformers

    each = _document()
    scorer = build("pii", _spec(folder))
    (located,) = scorer.locate([each])
    assert isinstance(scorer, LocatesFindings)
    assert why_invalid(located.findings, each.ends.tolist(), located.scores) is None
    pipeline = transformers.pipeline("token-classification", str(folder), aggregation_strategy="simple")
    start = 0
    types = set()
    for number, sentence in enumerate(SENTENCES[:-1]):
        expected = []
        for found in pipeline(sentence):
            text = sentence[found["start"] : found["end"]]
            if text.strip():
                begin = start + found["start"] + len(text) - len(text.lstrip())
                place = (begin, begin + len(text.strip()), found["entity_group"])
                expected.append((*place, pytest.approx(found["score"], abs=1e-6)))
        end = start + len(sentence)
        mine = [tuple(finding) for finding in located.findings if start <= finding.start < end]
        assert mine == expected
        covered = sum(stop - begin for begin, stop in merged(place[:2] for place in mine))
        assert located.scores[number] == np.float32(covered / len(sentence))
        types |= {place[2] for place in mine}
        start = end
    assert types == {"NAME", "MAIL"}


def test_the_score_can_be_the_highest_probability(folder):
    each = _document()
    (shares,) = build("pii", _spec(folder)).locate([each])
    (highest,) = build("pii", _spec(folder, score="highest")).locate([each])
    assert highest.findings == shares.findings
    first = [finding.score for finding in highest.findings if finding.start < len(SENTENCES[0])]
    assert highest.scores[0] == np.float32(max(first))
    assert (highest.scores > 0).tolist() == (shares.scores > 0).tolist()


def test_only_the_wanted_labels_count_above_the_threshold(folder):
    each = _document()
    (every,) = build("pii", _spec(folder)).locate([each])
    middle = float(np.median([finding.score for finding in every.findings]))
    _, spec = parse_scorer(f"pii=token-classifier:{folder},labels=MAIL,threshold={middle}")
    assert check_options("pii", spec).labels == ["MAIL"]
    (some,) = build("pii", spec).locate([each])
    expected = [finding for finding in every.findings if finding.type == "MAIL" and finding.score >= middle]
    assert some.findings == expected
    assert 0 < len(expected) < len(every.findings)


def test_it_obeys_the_contract(folder):
    scorer = build("pii", _spec(folder))
    documents = [document(" ".join(SENTENCES[:3])), document(""), document("You are kind. 混合 ends。 ok…")]
    check_scores(scorer, documents)
    check_order(scorer, documents, tolerance=1e-6)


def test_the_fingerprint_covers_what_changes_spans(folder):
    plain = build("pii", _spec(folder)).fingerprint
    for change in ({"labels": ["NAME"]}, {"threshold": 0.5}, {"score": "highest"}, {"documents": "prose"}):
        assert build("pii", _spec(folder, **change)).fingerprint != plain


@pytest.mark.parametrize(
    ("options", "labels", "message"),
    [
        ({"labels": ["PHONE"]}, LABELS, "has no label 'PHONE'; its labels are MAIL, NAME"),
        (
            {},
            ("LABEL_0", "LABEL_1"),
            "has no label 'O' .* labels=NAME.NAME. It has LABEL_0",
        ),
        ({}, ("O", "B-\u202eX"), "is not 1 to 64 printable characters"),
        ({}, ("O", "B-{x}"), "is not 1 to 64 printable characters"),
    ],
)
def test_labels_that_make_no_sense_are_refused(folder, tmp_path, options, labels, message):
    changed = shutil.copytree(folder, tmp_path / "model")
    config = json.loads((changed / "config.json").read_text())
    names = [*labels, *(f"X{index}" for index in range(len(labels), len(LABELS)))] if "O" in labels else labels
    if "O" not in labels:
        names = [*labels, *(f"LABEL_{index}" for index in range(2, len(LABELS)))]
    config["id2label"] = {str(index): name for index, name in enumerate(names)}
    config["label2id"] = {name: index for index, name in enumerate(names)}
    (changed / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        build("pii", _spec(changed, **options))


@pytest.mark.parametrize("names", [None, {"0": "O", "1": "NAME"}])
def test_a_model_without_labels_for_its_outputs_is_refused(folder, tmp_path, names):
    changed = shutil.copytree(folder, tmp_path / "model")
    config = json.loads((changed / "config.json").read_text())
    (changed / "config.json").write_text(json.dumps(config | {"id2label": names, "label2id": None}))
    with pytest.raises(UserError, match=r"classifier.bias \(2 in all\). Does its id2label .* It has 2\."):
        build("pii", _spec(changed))


def test_another_kind_of_model_is_refused(classifier_folder, folder):
    with pytest.raises(UserError, match="is a RobertaForSequenceClassification, not a token classifier"):
        build("pii", _spec(classifier_folder))
    with pytest.raises(UserError, match="needs a model: COLUMN=token-classifier:FOLDER"):
        build("pii", ScorerSpec(kind="token-classifier"))


def _tags(*labels):
    names = dict(enumerate(labels))
    return tags_of(names, sorted({label[2:] for label in labels if label[1:2] == "-"}) or None, "m")


@pytest.mark.parametrize(
    ("labels", "spans"),
    [
        (["B-X", "I-X", "O", "I-X"], ["ab", "d"]),
        (["B-X", "B-X", "I-X", "O"], ["a", "bc"]),
        (["B-X", "I-Y", "I-Y", "O"], ["a", "bc"]),
        (["S-X", "S-X", "B-X", "E-X"], ["a", "b", "cd"]),
        (["B-X", "E-X", "I-X", "O"], ["ab", "c"]),
        (["U-X", "B-X", "I-X", "L-X"], ["a", "bcd"]),
    ],
)
def test_prefixes_begin_and_end_spans(labels, spans):
    offsets = np.array([[index, index + 1] for index in range(4)], np.int32)
    found = decode("abcd", offsets, _tags(*labels), np.float32([0.5, 1.0, 0.5, 1.0]))
    assert ["abcd"[each.start : each.end] for each in found] == spans
    assert found[0].score == (0.75 if spans[0] == "ab" else 0.5)


@pytest.mark.parametrize(
    ("labels", "tags"),
    [
        (["O", "E-MAIL", "NAME", "U_ID"], [None, ("I", "E-MAIL"), ("I", "NAME"), ("I", "U_ID")]),
        (["O", "B_CELL", "T_CELL", "S-SIZE"], [None, ("I", "B_CELL"), ("I", "T_CELL"), ("I", "S-SIZE")]),
        (["O", "I-NAME", "I-E-MAIL", "L-X"], [None, ("I", "NAME"), ("I", "E-MAIL"), ("I", "L-X")]),
        (["O", "B_X", "I_X", "U_Y", "E-MAIL"], [None, ("B", "X"), ("I", "X"), ("S", "Y"), ("I", "E-MAIL")]),
        (["O", "B-X", "E-X", "S-Y"], [None, ("B", "X"), ("E", "X"), ("S", "Y")]),
    ],
)
def test_letters_before_a_dash_are_prefixes_only_where_labels_have_prefixes(labels, tags):
    assert tags_of(dict(enumerate(labels)), None, "m") == tags


def test_labels_that_are_not_numbered_without_gaps_are_refused():
    with pytest.raises(UserError, match="not numbered from 0"):
        tags_of({0: "O", 2: "NAME"}, None, "m")


def test_plain_labels_join_neighbours():
    tags = [Tag("I", "X"), Tag("I", "X"), None, Tag("I", "Y")]
    offsets = np.array([[0, 1], [1, 3], [3, 4], [4, 6]], np.int32)
    assert decode("ab cd ", offsets, tags, np.float32([1, 1, 1, 1])) == [Finding(0, 2, "X"), Finding(4, 5, "Y")]


@given(st.integers(1, 900), st.integers(65, 300))
def test_a_token_takes_the_window_in_which_it_is_farthest_from_a_cut(tokens, room):
    starts = window_starts(tokens, room)
    windows = [np.arange(start, min(start + room, tokens)) for start in starts]
    placed = Placed(np.zeros((tokens, 2), np.int32), starts, windows, 0, room)

    def distance(window, token):
        first, last = window[0], window[-1]
        left = token - first if first else tokens
        return min(left, last - token if last < tokens - 1 else tokens)

    marks = [np.float32([[token, number] for token in window]) for number, window in enumerate(windows)]
    joined = placed.join(marks)
    assert joined[:, 0].tolist() == list(range(tokens))
    for token in range(0, tokens, 7):
        best = max(distance(window, token) for window in windows if window[0] <= token <= window[-1])
        assert distance(windows[int(joined[token, 1])], token) == best
