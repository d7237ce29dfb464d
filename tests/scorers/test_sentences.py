import time
import tracemalloc

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scorers import sentences
from scorers.doctor.sample import sample
from scorers.sentences import document, fingerprint, split
from scorers.tokenizer import LONGEST_RUN, make_linear, shorten_runs

MARKS = "ab1 .,!?\U00011944\U0001bc9f…。？\n\t\r\u00a0\u2028'\"()[]-:/\\@#%$€°—é漢क।\x00\x0c\x1c\ufeff😀"
texts = st.one_of(
    st.text(alphabet=MARKS, max_size=80),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=80),
    st.lists(
        st.sampled_from(
            [
                "Mr. Smith",
                "U.S.",
                "e.g.",
                "etc.",
                "...",
                "!!",
                ":)",
                "don't",
                "http://a.b/c?d",
                "3.5km.",
                "end.Start",
                " ",
                "\n\n",
            ]
        ),
        max_size=12,
    ).map("".join),
)


@pytest.fixture(scope="module")
def spacy_sentencizer():
    from spacy.lang.en import English

    nlp = English()
    nlp.add_pipe("sentencizer")
    nlp.max_length = 10_000_000
    return nlp


def _by_spacy(nlp, text):
    starts = [sentence.start_char for sentence in nlp(text).sents]
    return [*starts[1:], len(text)] if text else []


@given(texts, st.sampled_from(["prose", "python"]))
def test_sentences_partition_the_text(text, kind):
    each = document(text, kind)
    assert "".join(each.sentences()) == text
    ends = each.ends.tolist()
    assert ends == sorted(set(ends))
    assert ends[-1:] == ([len(text)] if text else [])
    assert each.ends.dtype == "int32"


@settings(max_examples=300)
@given(text=texts)
def test_prose_has_the_boundaries_of_spacys_sentencizer(spacy_sentencizer, text):
    assert split(text).tolist() == _by_spacy(spacy_sentencizer, text)


@settings(max_examples=30)
@given(parts=st.lists(st.tuples(st.sampled_from("(.!?'\")]}-a…,:"), st.integers(1, 70)), min_size=1, max_size=4))
def test_long_runs_of_marks_are_tokenised_as_by_spacy(spacy_sentencizer, parts):
    text = "".join(mark * count for mark, count in parts)
    from spacy.lang.en import English

    linear = English().tokenizer
    make_linear(linear)
    assert [token.text for token in linear(text)] == [token.text for token in spacy_sentencizer.tokenizer(text)]


def test_the_memory_of_splitting_is_a_small_multiple_of_the_text():
    text = "A sentence with (some) words in it, e.g. these. " * 40_000 + "x" * 4_000_000 + " . " * 100_000
    tracemalloc.start()
    try:
        ends = sum(1 for _ in sentences._sentence_starts(text))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert ends > 40_000
    assert peak < 5 * len(text)


def test_a_text_longer_than_spacys_limit_is_split_as_its_parts_are():
    part = "One sentence is here. Another one? "
    count = 1_100_000 // len(part)
    ends = split(part * count)
    assert len(ends) == 2 * count
    assert ends[:4].tolist() == [22, 35, 57, 70]


def test_a_run_that_takes_spacy_minutes_takes_seconds_and_is_split_correctly():
    began = time.monotonic()
    text = "Before. x" + "(" * 60_000 + " middle. After" + "x" * 50_000 + ". Last"
    found = document(text).sentences()
    assert time.monotonic() - began < 20
    assert found[0] == "Before. "
    assert found[1].endswith(" middle. ")
    assert found[2].endswith("x. ")
    assert found[3] == "Last"


@given(st.lists(st.tuples(st.sampled_from(["a", " "]), st.integers(1, 3 * LONGEST_RUN)), max_size=6))
def test_shortened_runs_map_back_to_the_text(parts):
    text = "".join(character * count for character, count in parts)
    short, removed = shorten_runs(text)
    assert max(map(len, short.split()), default=0) <= LONGEST_RUN
    assert [removed.original(position) for position in (0, len(short))] == [0, len(text)]
    for position in range(0, len(short), 997):
        assert text[removed.original(position)] == short[position]


def test_lines_end_after_line_feeds_and_carriage_returns_only():
    text = "a\n\nb\r\nc\rd\x0ce\x0bf\x1cg\u2028h\x85i\n\r"
    assert document(text, "python").sentences() == [
        "a\n", "\n", "b\r\n", "c\r", "d\x0ce\x0bf\x1cg\u2028h\x85i\n", "\r"
    ]  # fmt: skip


def test_the_vocabulary_is_renewed_without_changing_a_boundary(monkeypatch):
    texts = [f"word{i}. And {i} more! " * 3 for i in range(4)]
    before = [split(text).tolist() for text in texts]
    first = sentences._load_spacy()
    monkeypatch.setattr(sentences, "_MOST_STRINGS", len(first.strings) - 1)
    sentences._read_short.cache_clear()
    assert [split(text).tolist() for text in texts] == before
    assert sentences._load_spacy() is not first


def test_the_fingerprint_of_the_splitter_is_stable():
    assert fingerprint() == fingerprint()
    assert fingerprint().startswith("sentences-")


@pytest.mark.parametrize(
    "text",
    [
        "2pm10p.m. : ( :>-_- 12am  6p.m. ",
        ":-P\n:'-) 7a.m.\n.:() :o:’)\n",
        "°k. :-]'' 'cos’’\n",
        "<3.) -:>",
    ],
)
def test_emoticons_across_white_space_are_split_as_spacy_splits_them(spacy_sentencizer, text):
    assert split(text).tolist() == _by_spacy(spacy_sentencizer, text)


@settings(max_examples=200)
@given(st.data())
def test_any_mixture_of_special_tokens_is_split_as_spacy_splits_it(spacy_sentencizer, data):
    specials = sorted(rule for rule in spacy_sentencizer.tokenizer.rules if not rule[0].isalpha())
    pieces = data.draw(
        st.lists(
            st.tuples(
                st.sampled_from([*specials, ".", "!", "Word", "x", ")", "(", ":", "8", "'s"]),
                st.sampled_from(["", " ", " ", "  ", "\n"]),
            ),
            max_size=10,
        )
    )
    text = "".join(piece + space for piece, space in pieces)
    assert split(text).tolist() == _by_spacy(spacy_sentencizer, text)


WEB = (
    " :", ":1", ":", "1", ": )", ":)", " ", "  ", "a", ".", "?!", "\r\n", "\r", "\n\n", "\x00", "👩\u200d👩\u200d👧",
    "🇩🇪", "☠️", "e\u0301", "\u202eמה.", "שלום. ", "مرحبا؟ ", "你好。", "…", "\u00a0", "\ufeff", "(", "p.m.", "Ph.D.",
)  # fmt: skip


@settings(max_examples=200)
@given(st.lists(st.sampled_from(WEB), max_size=14).map("".join))
@example("x. :1 y")
@example("No : 1. :1 Yes :")
@example("\x00")
@example("\x00.\x00 \x00!\r\n\x00")
@example(".\r\n\r\nA.\r\n")
@example("👍. 👍! 👍")
def test_web_text_is_split_as_spacy_splits_it(spacy_sentencizer, text):
    assert split(text).tolist() == _by_spacy(spacy_sentencizer, text)


def test_a_line_longer_than_spacys_limit_is_split_as_spacy_would(spacy_sentencizer):
    line = " ".join(" ".join(sample("prose")).split())
    text = line + " " + line.swapcase() + " " + line.replace(". ", "! ").replace("e", "é")
    assert len(text) > 1_000_000
    assert "\n" not in text
    assert split(text).tolist() == _by_spacy(spacy_sentencizer, text)
