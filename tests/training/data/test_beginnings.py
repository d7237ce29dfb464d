"""Documents begin with the same tokens in training, in samples and in an exported folder."""

import hashlib
import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from scorers.errors import UserError
from scorers.registry import ScorerSpec
from tests.training.foreign_tokenizers import byte_level, llama, unigram, word_piece
from tests.training.jobs import job_config, run_job
from tests.training.stores import byte_tokenizer
from training.config import ModelConfig
from training.data.prepare import prepare
from training.data.tokenizers import load_tokenizer, save_tokenizer, wrap_tokenizer
from training.evaluation.prepare import Judge, prepare_evaluation
from training.export.model import export_model
from training.model.language_model import build_model
from training.model.vocabulary import Vocabulary
from training.runs.folder import RunFolder

BOS, EOS = 0, 1
# By name: the tokenizer, and the tokens that begin and end documents.
KINDS = {
    "gpt2": (byte_level, EOS, EOS),
    "without bos_token": (lambda: byte_level(bos=None), EOS, EOS),
    "llama 3": (lambda: byte_level(add="<s> $A"), BOS, EOS),
    "roberta": (lambda: byte_level(prefix=True, add="<s> $A </s>"), BOS, EOS),
    "opt": (lambda: byte_level(add="</s> $A"), EOS, EOS),
    "codegen": (lambda: byte_level(add="$A </s>"), EOS, EOS),
    "llama without its template": (llama, 2, 2),
    "t5": (unigram, 1, 1),
    "bert": (word_piece, 1, 2),
}


@pytest.mark.parametrize("name", KINDS)
def test_an_exported_tokenizer_begins_texts_as_in_training(tmp_path, name):
    make, bos, eos = KINDS[name]
    tokenizer = wrap_tokenizer(name, make())
    assert (tokenizer.bos_id, tokenizer.eos_id) == (bos, eos)
    vocabulary = Vocabulary(tokenizer.size(), eos, bos_id=bos)
    model = build_model(ModelConfig(name="nano"), vocabulary)
    export_model(tmp_path / "model", model.causal, model.state_dict(), tokenizer.fast, eos_id=eos, bos_id=bos)
    exported = AutoTokenizer.from_pretrained(tmp_path / "model")
    text = "The old table. Is it?"
    ids = tokenizer.encode([text])[0].tolist()
    # OPT's tokenizer begins texts with EOS.
    before = [bos] if bos != eos or name == "opt" else []
    assert exported(text).input_ids == before + ids
    assert exported(text, add_special_tokens=False).input_ids == ids
    assert (exported.bos_token_id, exported.eos_token_id) == (bos, eos)
    for config in (model.causal.config, AutoModelForCausalLM.from_pretrained(tmp_path / "model").generation_config):
        assert (config.bos_token_id, config.eos_token_id) == (bos, eos)
    # A run initialised from the folder begins documents in the same way.
    again = load_tokenizer(str(tmp_path / "model"))
    assert (again.bos_id, again.eos_id) == (bos, eos)
    assert again.encode([text])[0].tolist() == ids
    config = json.loads((tmp_path / "model/tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config.get("add_prefix_space", False) is (name == "roberta")


def test_a_tokenizer_that_begins_texts_with_several_tokens_is_refused():
    with pytest.raises(UserError, match="puts 2 tokens before a text"):
        wrap_tokenizer("glm", byte_level(add="<s> </s> $A"))


def test_fingerprints_of_unchanged_tokenizers_are_stable():
    # Existing stores and runs stay valid.
    for fast in (byte_tokenizer(), byte_level(), byte_level(add="$A </s>")):
        content = f"{fast.backend_tokenizer.to_str()}\n{fast.eos_token_id}"
        assert wrap_tokenizer("t", fast).fingerprint == hashlib.sha256(content.encode()).hexdigest()[:32]
    for fast in (byte_level(prefix=True), byte_level(add="<s> $A"), llama()):
        content = f"{fast.backend_tokenizer.to_str()}\n{fast.eos_token_id}"
        assert wrap_tokenizer("t", fast).fingerprint != hashlib.sha256(content.encode()).hexdigest()[:32]


def test_an_older_run_is_exported_with_eos_as_its_beginning(tmp_path):
    # Its documents began with EOS, whatever its tokenizer puts before a text.
    tokenizer = byte_level(add="<s> $A")
    model = build_model(ModelConfig(name="nano"), Vocabulary(len(tokenizer), EOS))
    export_model(tmp_path / "model", model.causal, model.state_dict(), tokenizer, eos_id=EOS)
    exported = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert exported("a").input_ids == tokenizer("a").input_ids[1:]
    assert exported.bos_token_id == exported.eos_token_id == EOS


def test_training_with_a_beginning_token(tmp_path, code_dataset):
    fast = byte_level(prefix=True, add="<s> $A")
    (tmp_path / "tokenizer").mkdir()
    save_tokenizer(fast, tmp_path / "tokenizer")
    changes = {"data__tokenizer": str(tmp_path / "tokenizer"), "data__document_masking": True, "data__held_out": 0.3}
    facts, _ = run_job(code_dataset, tmp_path / "run", "conditional", **changes)
    assert (facts.tokenizer.bos_id, facts.tokenizer.eos_id) == (BOS, EOS)
    assert facts.stream["tokens_bos"] == facts.stream["tokens_eos"] == facts.stream["documents_used"]
    data = prepare(job_config(code_dataset, tmp_path / "run", "conditional", **changes))
    stream, tags = data.stream, list(data.control_ids)
    ids = stream.blocks(range(stream.num_blocks)).input_ids.reshape(-1).tolist()
    places = [place for place, token in enumerate(ids) if token == EOS]
    assert places[0] == 0
    assert all(ids[place + 1] == BOS and ids[place + 2] in tags for place in places[:-1])
    assert ids.count(BOS) >= len(places) - 1
    # The exported tokenizer encodes the beginning of a document as in training, except for the tags.
    exported = AutoTokenizer.from_pretrained(tmp_path / "run/model")
    document = stream.document(0)
    text = data.tokenizer.decode(document.input_ids[document.is_text])
    untagged = [token for token in document.input_ids.tolist() if token not in tags]
    line = text.splitlines(keepends=True)[0]
    assert exported(line).input_ids == untagged[: len(exported(line).input_ids)]
    setup = prepare_evaluation(
        data, kind="python", hit_threshold=0.1, judge=Judge("pep8", ScorerSpec(kind="pycodestyle"))
    )
    assert setup.prompt == [BOS, tags[0]]
    assert BOS in setup.banned_ids
    assert not [each for each in setup.warnings if "reproduce" in each]
    card = (tmp_path / "run/model/README.md").read_text()
    assert 'tokenizer.bos_token + "<|aligned|>"' in card
    assert "began with the tokenizer's `bos_token`, and" in card
    assert RunFolder(tmp_path / "run").read_facts().tokenizer.bos_id == BOS


def test_document_masking_separates_documents_at_bos():
    model = build_model(ModelConfig(name="nano"), Vocabulary(40, 5, bos_id=6), document_masking=True).eval()
    logits, _ = model(torch.tensor([[1, 2, 5, 6, 7, 8]]))
    for part in (slice(0, 3), slice(3, 6)):
        alone, _ = model(torch.tensor([[1, 2, 5, 6, 7, 8]])[:, part])
        torch.testing.assert_close(logits[:, part], alone, rtol=1e-4, atol=1e-5)
