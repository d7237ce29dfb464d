"""Masked documents are computed as if each were alone; architectures without support are refused."""

from itertools import chain

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention
from transformers import BloomConfig, MambaConfig, PreTrainedModel, modeling_flash_attention_utils
from transformers.integrations import flash_attention

from scorers.errors import UserError
from tests.datasets import make_dataset
from tests.training.jobs import metrics, run_job, style
from tests.training.model.test_models import small_llama
from training.config import ModelConfig
from training.model.build_network import use_attention
from training.model.language_model import build_model
from training.model.masking import document_positions
from training.model.vocabulary import Vocabulary
from training.objectives import build

EOS = 5
VOCABULARY = Vocabulary(40, EOS)
# Documents begin at EOS; the first block begins inside a document, and one document is empty.
BLOCKS = [[[7, 8, 9], [EOS, 1, 2, 3, 4], [EOS], [EOS, 9, 8]], [[EOS, 3, 3], [EOS, 6, 7, 8, 9, 10, 11, 12, 13]]]
IDS = torch.tensor([list(chain.from_iterable(documents)) for documents in BLOCKS])


def make(name="nano", *, masked=True, attention="auto", **options):
    torch.manual_seed(0)
    config = ModelConfig(name=name, attention=attention)
    model = build_model(config, VOCABULARY, document_masking=masked, **options)
    use_attention(model.causal, config)
    return model


def dense(queries, keys, values, **options):
    """Attention [B, T, heads, width] of blocks of one text each."""
    parts = [each.transpose(1, 2) for each in (queries, keys, values)]
    scale = options["softmax_scale"]
    found = scaled_dot_product_attention(*parts, is_causal=options["causal"], scale=scale, enable_gqa=True)
    return found.transpose(1, 2)


def end_to_end(queries, keys, values, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, **options):
    """Attention [tokens, heads, width] of concatenated texts."""
    assert torch.equal(cu_seqlens_q, cu_seqlens_k)
    cuts = cu_seqlens_q[1:-1].tolist()
    texts = zip(*(each.tensor_split(cuts) for each in (queries, keys, values)), strict=True)
    return torch.cat([dense(*(each.unsqueeze(0) for each in text), **options)[0] for text in texts])


@pytest.fixture
def flash(monkeypatch):
    """Flash Attention without its package and a GPU: transformers' code over torch's attention."""
    monkeypatch.setattr(PreTrainedModel, "_flash_attn_can_dispatch", lambda *_, **__: True)
    monkeypatch.setattr(flash_attention, "get_target_dtype", lambda *_: None)  # a GPU has no float32 to cast
    utils = modeling_flash_attention_utils
    monkeypatch.setattr(utils, "_lazy_imports", lambda *_, **__: (dense, end_to_end, None, None, None))
    # transformers imports it only once.
    monkeypatch.setattr(utils, "_loaded_implementation", None)


@given(st.lists(st.lists(st.integers(0, 3), min_size=8, max_size=8), min_size=1, max_size=3))
@settings(max_examples=50)
def test_positions_restart_at_each_document(rows):
    expected = []
    for row in rows:
        position, found = -1, []
        for token in row:
            position = 0 if token == 0 else position + 1
            found.append(position)
        expected.append(found)
    assert document_positions(torch.tensor(rows), 0).tolist() == expected


@pytest.mark.usefixtures("flash")
@pytest.mark.parametrize("attention", ["auto", "sdpa", "eager", "flash_attention_2", "flash_attention_3"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_masked_document_is_computed_as_if_alone(tmp_path, kind, attention):
    if kind == "llama":
        small_llama().save_pretrained(tmp_path)
    name = str(tmp_path) if kind == "llama" else "nano"
    model = make(name, attention=attention, value_head=True).eval()
    with torch.no_grad():
        model.value_head.weight.normal_()
    logits, values = model(IDS)
    for row, documents in enumerate(BLOCKS):
        start = 0
        for document in documents:
            alone, value = model(torch.tensor([document]))
            part = slice(start, start := start + len(document))
            torch.testing.assert_close(logits[row, part], alone[0], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(values[row, part], value[0], rtol=1e-4, atol=1e-5)
    mixed, _ = make(name, attention=attention, masked=False)(IDS)
    assert (mixed - logits).abs().max() > 1e-2


@pytest.mark.parametrize("linear_head", [False, True])
def test_gradients_equal_those_of_separate_documents(linear_head):
    model = make()
    model.has_linear_head = linear_head
    mle = build("mle")
    count = IDS[:, 1:].numel()

    def gradients():
        found = [each.grad.clone() for each in model.parameters()]
        model.zero_grad()
        return found

    model(IDS, objective=mle, scores=torch.zeros(IDS.shape))[0].backward()
    together = gradients()
    # The EOS after a document is predicted from its last token, so it belongs to both documents.
    for documents in BLOCKS:
        for document, after in zip(documents, [*documents[1:], None], strict=True):
            text = document if after is None else [*document, EOS]
            if len(text) > 1:
                logits = model.causal(input_ids=torch.tensor([document])).logits[0, : len(text) - 1]
                loss = torch.nn.functional.cross_entropy(logits, torch.tensor(text[1:]), reduction="sum")
                (loss / count).backward()
    for mine, theirs in zip(together, gradients(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "config",
    [
        MambaConfig(vocab_size=40, hidden_size=16, num_hidden_layers=2, state_size=4),
        BloomConfig(vocab_size=40, hidden_size=16, n_layer=2, n_head=2),
    ],
)
def test_an_architecture_without_document_masking_is_refused(tmp_path, config):
    config.save_pretrained(tmp_path)
    with pytest.raises(
        UserError, match=r"data\.document_masking: \w+ForCausalLM lets documents .* Set data.document_masking to false"
    ):
        make(str(tmp_path))
    make(str(tmp_path), masked=False)


def test_a_run_masks_documents_from_the_first_step(tmp_path):
    texts = [(f"def name_{number}(value):\n    return value + {number}\n", "python") for number in range(200)]
    dataset = make_dataset(tmp_path / "labelled", texts, {"style": style}, {"style": 0.0})
    steps = {"training__num_tokens": 4 * 4 * 32}
    masked, _ = run_job(dataset, tmp_path / "masked", data__document_masking="true", **steps)
    run_job(dataset, tmp_path / "mixed", **steps)
    ours, theirs = (metrics(tmp_path / each) for each in ("masked", "mixed"))
    assert masked.status == "finished"
    assert [each["ce"] for each in ours] != [each["ce"] for each in theirs]
