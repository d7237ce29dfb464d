"""Every document of a token store decodes back to its text, or the tokenizer is refused."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, normalizers
from typer.testing import CliRunner

from phf import app
from pipeline.dataset import open_dataset
from scorers.errors import UserError
from tests.datasets import make_dataset, sentences_of
from tests.training.foreign_tokenizers import (
    TEXTS,
    byte_level,
    llama,
    unigram,
    unigram_with_bytes,
    word_level,
    word_piece,
)
from training.data import round_trips as module
from training.data.build_store import ensure_store
from training.data.prepare import prepare
from training.data.round_trips import COUNTS, FOLDER, RoundTrips, refuse_changes, round_trips
from training.data.texts import is_text
from training.data.tokenizers import wrap_tokenizer
from training.evaluation.prepare import Judge, choose_held_out
from training.evaluation.prepare import _held_out_warnings as held_out_warnings
from training.settings import resolve_config

# Lossless except for U+2581, which SentencePiece treats as a space.
LOSSLESS = {
    "byte-level": byte_level,
    "byte-level with a prefix": lambda: byte_level(prefix=True),
    "llama": llama,
    "mistral": lambda: llama(metaspace="always"),
    "llama 3.1": lambda: llama(metaspace="first"),
    "unigram with bytes": unigram_with_bytes,
}
HOSTILE = st.text(
    alphabet=st.one_of(
        st.sampled_from(" \n\t\r\0 .!?aZ<>|#\N{COMBINING ACUTE ACCENT}\N{ZERO WIDTH JOINER}\N{NO-BREAK SPACE}😀é"),
        st.characters(exclude_categories=["Cs"], exclude_characters="▁"),
    ),
    max_size=30,
)
SPECIAL = st.sampled_from(["<s>", "</s>", "<unk>", "<0x0A>", "<|aligned|>", "[CLS]", "##a", " . "])


@pytest.fixture(scope="module")
def tokenizers():
    return {name: wrap_tokenizer(name, make()) for name, make in LOSSLESS.items()}


def dataset_of(folder, texts):
    return open_dataset(str(make_dataset(folder, texts, {"toxicity": lambda sentence: 0.0})))


def count_round_trips(folder, texts, fast):
    tokenizer = wrap_tokenizer("theirs", fast)
    dataset = dataset_of(folder, texts)
    store = ensure_store(dataset, tokenizer)
    return round_trips(store, dataset, tokenizer), store, tokenizer


@pytest.mark.parametrize("name", LOSSLESS)
@given(st.lists(st.one_of(HOSTILE, SPECIAL), max_size=4).map("".join))
@settings(max_examples=60)
def test_sentences_of_a_document_decode_to_its_text(tokenizers, name, text):
    tokenizer = tokenizers[name]
    sentences = sentences_of(text, "prose")
    ids, lengths = tokenizer.encode(sentences, np.arange(len(sentences)) == 0)
    assert len(lengths) == len(sentences)
    decoded = tokenizer.decode(ids)
    # A single leading space is indistinguishable from the prefix space; a second one is not.
    assert decoded == text or (tokenizer.adds_prefix_space and f" {decoded}" == text)
    if not tokenizer.adds_prefix_space:
        assert ids.tolist() == tokenizer.encode(sentences)[0].tolist()


@pytest.mark.parametrize("name", LOSSLESS)
def test_the_first_sentence_is_encoded_as_the_tokenizer_encodes_a_text(tokenizers, name):
    tokenizer = tokenizers[name]
    sentences = sentences_of(TEXTS[0], "python")
    ids, lengths = tokenizer.encode(sentences, np.arange(len(sentences)) == 0)
    assert ids[: lengths[0]].tolist() == tokenizer.fast(sentences[0], add_special_tokens=False).input_ids
    # Continuations of a cut sentence are decoded with the spaces at the boundary.
    before, after = ids[: lengths[:3].sum()], ids[lengths[:3].sum() :]
    assert tokenizer.decode_continuation(before.tolist(), after) == "".join(sentences[3:])


@pytest.mark.parametrize("name", LOSSLESS)
def test_spans_of_tokens_match_their_text(tokenizers, name):
    tokenizer = tokenizers[name]
    sentences = ["def f(x):\n", "    return x\n", "y = 1\n"]
    first = np.array([True, False, False])
    _, lengths = tokenizer.encode(sentences, first)
    spans = tokenizer.spans(sentences, first)
    assert [len(each) for each in spans] == lengths.tolist()
    for sentence, places in zip(sentences, spans, strict=True):
        assert {place for start, end in places for place in range(start, end)} == set(range(len(sentence)))


@pytest.mark.parametrize("name", LOSSLESS)
def test_a_store_decodes_back_to_the_texts(tmp_path, monkeypatch, name):
    # Long documents are decoded in parts.
    monkeypatch.setattr(module, "_TOKENS", 20)
    texts = [*TEXTS, "", " leads. Ends. ", "\n\nTwo.\n", TEXTS[0] * 5, "<s> is </s> text. So is <unk>."]
    trips, store, tokenizer = count_round_trips(tmp_path / "labelled", texts, LOSSLESS[name]())
    assert trips == RoundTrips(documents=len(texts), changed=0, changes={}, first_changed=None)
    document = store.document_offsets[len(texts) - 3 : len(texts) - 1]
    first, last = store.sentence_offsets[document]
    assert tokenizer.decode(store.tokens[first:last]) == "\n\nTwo.\n"
    assert refuse_changes(trips, tokenizer, "labelled", allowed=False) == ()


# A document for each kind of change, and an unchanged one.
PROSE = [
    "a table opens. it is nice.",
    "two  and\na line.",
    "An UPPER table.",
    "\N{FULLWIDTH LATIN SMALL LETTER A} line.",
    "日本語.",
]
LOSSY = {
    # SentencePiece without byte fallback.
    "unigram": (unigram, {"unknown": 2}),
    "t5": (lambda: unigram(words=True), {"space": 1, "unknown": 2}),
    "lowercase": (lambda: unigram(normalizer=normalizers.Lowercase()), {"case": 1, "unknown": 2}),
    "albert": (lambda: unigram(normalizer=normalizers.NFKC()), {"compatibility": 1, "unknown": 1}),
    "bert": (word_piece, {"case": 1, "space": 1, "unknown": 2}),
}


@pytest.mark.parametrize("name", LOSSY)
def test_changes_are_counted_by_kind(tmp_path, name):
    make, changes = LOSSY[name]
    trips, store, tokenizer = count_round_trips(tmp_path / "labelled", PROSE, make())
    assert trips.changes == changes
    assert trips.changed == sum(changes.values())
    assert trips.first_changed == min(1 if "space" in changes else 2 if "case" in changes else 3, 3)
    with pytest.raises(UserError, match=f"changes the text of {trips.changed} of 5 documents of labelled.*allow_lossy"):
        refuse_changes(trips, tokenizer, "labelled", allowed=False)
    (warning,) = refuse_changes(trips, tokenizer, "labelled", allowed=True)
    assert "the model is trained on the changed text" in warning
    assert f"the first is row {trips.first_changed}" in warning
    assert json.loads((store.path / FOLDER / COUNTS).read_text())["changed"] == trips.changed


def test_one_leading_space_may_be_the_prefix_space(tmp_path):
    texts = [" a table opens.", "   a table opens."]
    squeezing = unigram(normalizer=normalizers.Replace(Regex(" +"), " "))
    trips, store, tokenizer = count_round_trips(tmp_path / "labelled", texts, squeezing)
    assert (trips.changes, trips.first_changed) == ({"space": 1}, 1)
    decoded = tokenizer.decode(store.tokens[: store.sentence_offsets[1]])
    places = zip(store.text_hashes.tolist(), store.text_bytes.tolist(), strict=True)
    assert [is_text(decoded, *place, prefixed=True) for place in places] == [True, False]


def test_names_of_tokens_in_a_text_are_plain_text():
    # A foreign text may contain the name of the end-of-text token.
    text, fast = "a </s> is <unk>. A</s><0x41>", unigram_with_bytes()
    tokenizer = wrap_tokenizer("theirs", fast)
    ids, _ = tokenizer.encode([text])
    assert not {0, 1, *fast.convert_tokens_to_ids(["<0x41>"])} & {*ids.tolist()}
    assert tokenizer.decode(ids) == text
    assert 2 not in wrap_tokenizer("words", word_level("</s>")).encode(["a </s> a"])[0]
    with pytest.raises(UserError, match=r"encodes the text '\|' as its special token of that name"):
        wrap_tokenizer("words", word_level("|"))


def test_single_spaces_between_words_are_lossless(tmp_path):
    # The space before each word is then that of the text, also between sentences.
    trips, _, tokenizer = count_round_trips(
        tmp_path / "labelled", ["a table opens. it is nice. a window is a table."], unigram(words=True)
    )
    assert trips.changed == 0
    assert not tokenizer.adds_prefix_space


def test_one_changed_document_in_a_thousand_is_a_warning(tmp_path):
    # SentencePiece treats U+2581 as a space, as in Llama's own training.
    texts = ["a table opens."] * 999 + ["a ▁ bar. it is nice."]
    trips, _, tokenizer = count_round_trips(tmp_path / "labelled", texts, llama())
    assert (trips.changed, trips.changes) == (1, {"space": 1})
    (warning,) = refuse_changes(trips, tokenizer, "labelled", allowed=False)
    assert "the text of 1 of 1,000 documents of labelled (1 differ in white space; the first is row 999)" in warning
    two = trips.model_copy(update={"changed": 2})
    with pytest.raises(UserError, match="2 of 1,000"):
        refuse_changes(two, tokenizer, "labelled", allowed=False)


def test_an_existing_store_is_counted_once(tmp_path, monkeypatch):
    tokenizer, dataset = wrap_tokenizer("theirs", word_piece()), dataset_of(tmp_path / "labelled", PROSE)
    store = ensure_store(dataset, tokenizer)
    assert not (store.path / FOLDER).exists()
    seen = []
    first = round_trips(store, dataset, tokenizer, lambda done, total: seen.append((done, total)))
    assert seen == [(5, 5)]
    monkeypatch.setattr(module, "_count", None)
    assert round_trips(store, dataset, tokenizer) == first
    (store.path / FOLDER / COUNTS).write_text("{")
    with pytest.raises(UserError, match=r"counts\.json is damaged"):
        round_trips(store, dataset, tokenizer)


def test_a_lossy_tokenizer_is_reported_by_tokenize_and_refused_by_training(tmp_path):
    texts = [text + " a" * number for number in range(4) for text in PROSE]
    dataset = str(make_dataset(tmp_path / "labelled", texts, {"toxicity": lambda sentence: 0.0}))
    word_piece().save_pretrained(tmp_path / "bert")
    shown = CliRunner().invoke(app, ["tokenize", dataset, "--tokenizer", str(tmp_path / "bert")])
    assert shown.exit_code == 0, shown.output
    assert "changes the text of 16 of 20 documents" in " ".join(shown.stdout.split())
    assert "phf train refuses it" in shown.stdout
    facts = json.loads(
        CliRunner().invoke(app, ["tokenize", dataset, "--tokenizer", str(tmp_path / "bert"), "--json"]).stdout
    )
    assert (facts["changed"], facts["changes"]["unknown"]) == (16, 8)
    flags = {"output": "o", "task": "toxicity", "data": {"dataset": dataset, "tokenizer": str(tmp_path / "bert")}}
    small = ["data.context_length=8", "data.held_out=0.6", "model.name=nano", "objective.name=mle"]
    with pytest.raises(UserError, match=r"changes the text of 16 of 20 documents.*data\.allow_lossy_tokenizer=true"):
        prepare(resolve_config(flags=flags, overrides=small))
    data = prepare(resolve_config(flags=flags, overrides=[*small, "data.allow_lossy_tokenizer=true"]))
    assert any("16 of 20 documents" in each for each in data.warnings)
    # An evaluation reports how many held-out documents it excludes.
    held_out = data.stream.held_out_documents()
    changed = sum(number % 5 > 0 for number in held_out.tolist())
    choice = choose_held_out(data, data.config.evaluation, Judge("toxicity"))
    assert 0 < changed < len(held_out)
    assert f"the text of {changed} of {len(held_out)} held-out" in " ".join(held_out_warnings(data, choice))
