import os
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from scorers.classifiers import encoding
from scorers.classifiers.encoding import OVERLAP, PIECE, Encoder, pieces, window_starts
from scorers.errors import UserError
from tests.scorers.helpers import NAMES, TEXTS, tiny_folder


@pytest.fixture(scope="module", params=NAMES)
def tokenizer(request, tmp_path_factory):
    folder = tiny_folder(request.param, tmp_path_factory.mktemp(request.param) / "model")
    loaded = getattr(transformers, NAMES[request.param][2]).from_pretrained(folder)
    loaded.model_max_length = 512
    return loaded


def _expected(tokenizer, sentence, **options):
    return tokenizer(sentence, **options)["input_ids"]


@settings(max_examples=40)
@given(st.lists(st.text(max_size=60) | st.sampled_from(["<s>", "[SEP] a", "é 😀\r\n", "\0", " \u3000 ", "x" * 300])))
def test_ids_are_those_of_transformers(tokenizer, sentences):
    encode = Encoder(tokenizer, 512, "truncate", 1)
    for sentence, found in zip(sentences, encode(sentences), strict=True):
        assert [each.tolist() for each in found] == [_expected(tokenizer, sentence, truncation=True)]


def test_a_sentence_that_fits_is_one_sequence_however_long_ones_are_treated(tokenizer):
    sentences = [*TEXTS, "", "fox " * 40]
    cut, windows = (Encoder(tokenizer, 512, long, 1)(sentences) for long in ("truncate", "windows"))
    assert [[ids.tolist() for ids in each] for each in cut] == [[ids.tolist() for ids in each] for each in windows]


def test_a_long_sentence_is_its_beginning_or_windows_that_cover_it(tokenizer):
    sentence = "the quick brown fox jumps over 42 lazy dogs " * 100
    content = np.asarray(_expected(tokenizer, sentence, add_special_tokens=False))
    (cut,) = Encoder(tokenizer, 512, "truncate", 1)([sentence])
    assert [each.tolist() for each in cut] == [_expected(tokenizer, sentence, truncation=True)]
    (windows,) = Encoder(tokenizer, 512, "windows", 1)([sentence])
    assert len(windows) > 1
    np.testing.assert_array_equal(windows[0], cut[0])
    np.testing.assert_array_equal(windows[-1][1:-1], content[-510:])
    assert {len(each) for each in windows} == {512}
    assert all((each[[0, -1]] == cut[0][[0, -1]]).all() for each in windows)


@given(st.integers(0, 5000), st.integers(OVERLAP + 1, 600))
def test_windows_cover_every_token_and_overlap(tokens, room):
    starts = window_starts(tokens, room)
    assert starts[0] == 0
    assert starts[-1] + room >= tokens
    assert starts[-1] == max(tokens - room, 0)
    for one, other in pairwise(starts):
        assert one < other <= one + room - OVERLAP


@given(st.lists(st.sampled_from(["a" * 700, " \n", "b ", "c" * 90_000, "\u3000"]), max_size=120).map("".join))
def test_pieces_are_the_text_in_bounded_parts(text):
    found = list(pieces(text))
    assert "".join(found) == text
    assert all(len(each) <= PIECE for each in found)


def test_a_text_in_pieces_has_the_tokens_of_the_whole(tokenizer, monkeypatch):
    sentence = "".join(f"the lazy dog  number {i}, jumps over!\n\n" for i in range(300))
    whole = Encoder(tokenizer, 512, "windows", 1)([sentence])
    monkeypatch.setattr(encoding, "PIECE", 500)
    in_pieces = Encoder(tokenizer, 512, "windows", 1)([sentence])
    assert [each.tolist() for each in in_pieces[0]] == [each.tolist() for each in whole[0]]


def test_a_sentence_that_cannot_be_encoded_fails_alone(tokenizer):
    first, broken, last = Encoder(tokenizer, 512, "windows", 1)(["the fox", "a \ud800", "the dog"])
    assert isinstance(broken, Exception)
    assert first[0].tolist() == _expected(tokenizer, "the fox")
    assert last[0].tolist() == _expected(tokenizer, "the dog")


@pytest.mark.parametrize("before", [None, "true"])
def test_the_environment_is_left_as_it_was(tokenizer, monkeypatch, before):
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    if before:
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", before)
    Encoder(tokenizer, 512, "windows", 4)(["a"])
    assert os.environ.get("TOKENIZERS_PARALLELISM") == before


def test_memory_for_a_huge_sentence_is_a_few_bytes_a_token(tokenizer):
    encode = Encoder(tokenizer, 512, "windows", 1)
    sentence = "the quick brown fox " * 40_000
    tracemalloc.start()
    (windows,) = encode([sentence])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    tokens = sum(map(len, windows))
    assert tokens > 160_000
    assert peak < 40 * tokens


def test_a_model_too_short_for_text_is_refused(tokenizer):
    with pytest.raises(UserError, match="takes 10 tokens at once"):
        Encoder(tokenizer, 10, "windows", 1)
    with pytest.raises(UserError, match="object is not a fast tokenizer"):
        Encoder(object(), 512, "windows", 1)


def test_a_sentence_without_any_token_is_an_error():
    import tokenizers

    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    bare = transformers.PreTrainedTokenizerFast(tokenizer_object=words)
    found, empty = Encoder(bare, 512, "windows", 1)(["a a", " "])
    assert [each.tolist() for each in found] == [[0, 0]]
    assert isinstance(empty, ValueError)
