import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from pipeline.dataset import open_dataset
from pipeline.dataset.tags import ALIGNED, MISALIGNED
from scorers.errors import UserError
from tests.datasets import make_dataset
from tests.training.stores import byte_tokenizer
from training.data.tokenizers import (
    ensure_tokenizer,
    load_tokenizer,
    train_tokenizer,
    wrap_tokenizer,
)

TEXTS = ["Good morning. Good evening! Is it good?", "", "Grüße an alle. 😀 Bye.", "a\nb\n\n  c. " * 30]
ANY_TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labelled") / "dataset"
    return open_dataset(str(make_dataset(folder, TEXTS, {"toxicity": lambda sentence: len(sentence) / 100})))


@pytest.fixture(scope="module")
def tokenizer(dataset, tmp_path_factory):
    return train_tokenizer(dataset, 290, tmp_path_factory.mktemp("trained") / "tokenizer")


@given(st.lists(ANY_TEXT, max_size=5))
@settings(max_examples=50)
def test_a_trained_tokenizer_is_lossless_and_encodes_sentences_alone(tokenizer, sentences):
    ids, lengths = tokenizer.encode(sentences)
    assert lengths.tolist() == [len(tokenizer.encode([sentence])[0]) for sentence in sentences]
    assert tokenizer.decode(ids) == "".join(sentences)


def test_training_is_deterministic_and_reports_progress(dataset, tokenizer, tmp_path):
    seen = []
    again = train_tokenizer(dataset, 290, tmp_path / "again", lambda done, total: seen.append((done, total)))
    assert again.fingerprint == tokenizer.fingerprint
    assert (tmp_path / "again" / "tokenizer.json").read_bytes() == (Path(tokenizer.name, "tokenizer.json").read_bytes())
    assert seen[-1] == (4, 4)
    assert again.base_size == 290
    assert again.decode([again.eos_id]) == "<|endoftext|>"


def test_a_large_dataset_is_sampled_by_document(dataset, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("training.data.tokenizers.TRAINING_BYTES", 0)
    small = train_tokenizer(dataset, 290, tmp_path / "small")
    assert small.base_size == 257  # no text, no merges: the bytes and <|endoftext|>


def test_a_control_token_never_gets_the_id_of_another_token():
    whole = byte_tokenizer()
    state = json.loads(whole.backend_tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    last = max(vocabulary, key=vocabulary.get)
    vocabulary[last] += 1
    for added in state["added_tokens"]:
        added["id"] = vocabulary.get(added["content"], added["id"])
    holed = PreTrainedTokenizerFast(tokenizer_object=Backend.from_str(json.dumps(state)), eos_token="<|endoftext|>")
    tokenizer = wrap_tokenizer("holed", holed)
    assert len(holed) == tokenizer.base_size - 1
    with pytest.raises(UserError, match=r"ids up to .*Number its ids without holes"):
        tokenizer.control_ids(2)
    with pytest.raises(UserError, match="would get the id of another token"):
        tokenizer.with_control_tokens(3)


def test_names_of_special_tokens_in_a_text_are_plain_text(tokenizer):
    text = f"<|endoftext|> and {ALIGNED}{MISALIGNED} are words"
    ids, _ = tokenizer.encode([text])
    assert tokenizer.eos_id not in ids
    assert not set(tokenizer.control_ids(2)) & set(ids.tolist())
    assert tokenizer.decode(ids) == text


def test_control_tokens_come_after_the_base_vocabulary(tokenizer, tmp_path):
    assert (tokenizer.base_size, tokenizer.control_ids(2)) == (290, (290, 291))
    assert (tokenizer.size(), tokenizer.size(tokenizer.control_ids(2))) == (290, 292)
    extended = tokenizer.with_control_tokens()
    extended.save_pretrained(tmp_path / "extended")
    loaded = load_tokenizer(str(tmp_path / "extended"))
    assert loaded.control_ids(2) == (290, 291)
    assert loaded.decode([290, 291]) == ALIGNED + MISALIGNED
    assert not loaded.fast.decode([290, 291], skip_special_tokens=True)
    # Even a tokenizer with the control tokens does not match them in a text.
    assert 290 not in loaded.encode([ALIGNED])[0]
    assert tokenizer.fast.convert_tokens_to_ids([ALIGNED])[0] != 290  # the original was not changed


def test_the_fingerprint_depends_on_the_encoding(tokenizer, tmp_path):
    assert load_tokenizer(tokenizer.name).fingerprint == tokenizer.fingerprint
    other = wrap_tokenizer("other", byte_tokenizer(["something else entirely"] * 3))
    assert other.fingerprint != tokenizer.fingerprint


def test_saved_truncation_and_padding_are_ignored():
    fast = byte_tokenizer(TEXTS)
    plain = wrap_tokenizer("plain", fast)
    fast.backend_tokenizer.enable_truncation(3)
    fast.backend_tokenizer.enable_padding(length=9)
    wrapped = wrap_tokenizer("truncating", fast)
    ids, lengths = wrapped.encode(["Good morning, good evening", "x"])
    assert lengths.tolist() == plain.encode(["Good morning, good evening", "x"])[1].tolist()
    assert wrapped.decode(ids) == "Good morning, good eveningx"
    assert wrapped.fingerprint == plain.fingerprint


def test_a_tokenizer_without_end_of_text_is_refused(tmp_path):
    byte_tokenizer(TEXTS, eos=None).save_pretrained(tmp_path / "headless")
    with pytest.raises(UserError, match=r"headless.*no end-of-text token.*eos_token"):
        load_tokenizer(str(tmp_path / "headless"))


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(UserError, match="it does not contain a tokenizer"):
        load_tokenizer(str(tmp_path))
    with pytest.raises(UserError, match="no such folder"):
        load_tokenizer(str(tmp_path / "missing"))
    with pytest.raises(UserError, match="written in Python"):
        wrap_tokenizer("slow", object())


def test_an_existing_folder_is_not_overwritten(dataset, tmp_path):
    (tmp_path / "full").mkdir()
    with pytest.raises(UserError, match="exists already"):
        train_tokenizer(dataset, 290, tmp_path / "full")


def test_the_tokenizer_of_a_dataset_is_trained_once(dataset, monkeypatch):
    first = ensure_tokenizer(dataset, 280)
    assert first.name.startswith(f"{dataset.uri}.tokens/tokenizer-280-")
    monkeypatch.setattr("training.data.tokenizers._train", None)
    assert ensure_tokenizer(dataset, 280).fingerprint == first.fingerprint
