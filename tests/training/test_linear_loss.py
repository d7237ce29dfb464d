"""The loss from hidden states equals the plain loss of the logits, including gradients, in a fraction of the memory."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.test_objectives import EXAMPLES
from training.config import ModelConfig
from training.linear_loss import linear_loss
from training.model.language_model import build_model
from training.model.vocabulary import Vocabulary
from training.objectives import build


def inputs_of(blocks, length, vocabulary, *, width=6, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    exact = torch.promote_types(dtype, torch.float32)
    hidden = torch.randn(blocks, length, width, generator=generator).to(dtype)
    weight = torch.randn(vocabulary, width, generator=generator).to(dtype)
    bias = torch.randn(vocabulary, generator=generator).to(dtype)
    values = -torch.rand(blocks, length, generator=generator).to(exact)
    labels = torch.randint(0, vocabulary, (blocks, length), generator=generator)
    scores = torch.rand(blocks, length, generator=generator).to(exact) * 0.2
    return (hidden, weight, bias, values), labels, scores


def plain_loss(objective, hidden, weight, labels, scores, *, bias, values, count=None):
    return objective.loss(torch.nn.functional.linear(hidden, weight, bias), labels, scores, values, count=count)


def compute_with_gradients(function, objective, leaves, labels, scores, *, scale=3.0, **options):
    hidden, weight, bias, values = (each.clone().requires_grad_() for each in leaves)
    result = function(objective, hidden, weight, labels, scores, bias=bias, values=values, **options)
    (scale * result.loss).backward()
    gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in (hidden, weight, bias, values)]
    return result, gradients


@pytest.mark.parametrize(("name", "options"), EXAMPLES)
@given(
    blocks=st.integers(1, 3),
    length=st.integers(2, 9),
    vocabulary=st.integers(2, 40),
    chunk=st.integers(1, 30),
    count=st.one_of(st.none(), st.integers(1, 100)),
    seed=st.integers(0, 99),
)
@settings(max_examples=25)
def test_it_equals_the_plain_loss(name, options, blocks, length, vocabulary, chunk, count, seed):
    objective = build(name, **options)
    leaves, labels, scores = inputs_of(blocks, length, vocabulary, seed=seed)
    expected, their_gradients = compute_with_gradients(plain_loss, objective, leaves, labels, scores, count=count)
    found, gradients = compute_with_gradients(
        linear_loss, objective, leaves, labels, scores, count=count, chunk_tokens=chunk
    )
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-9, atol=1e-12)
    assert list(found.metrics) == list(expected.metrics)
    for key, value in expected.metrics.items():
        assert found.metrics[key].item() == pytest.approx(value.item(), rel=1e-9, abs=1e-12)
    for mine, theirs in zip(gradients, their_gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize(("name", "options"), EXAMPLES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_accurate_as_the_plain_form(name, options, dtype):
    objective = build(name, **options)
    leaves, labels, scores = inputs_of(4, 16, 50, dtype=dtype)
    # A large batch's count, compensated by a loss scale: nothing may underflow in between.
    cut = {"count": 10**7, "scale": 1e7}
    expected, exact = compute_with_gradients(
        plain_loss, objective, [each.double() for each in leaves], labels, scores, **cut
    )
    found, gradients = compute_with_gradients(linear_loss, objective, leaves, labels, scores, chunk_tokens=7, **cut)
    assert found.loss.dtype == torch.float32
    assert found.loss.item() == pytest.approx(expected.loss.item(), rel=2e-2)
    for mine, theirs in zip(gradients, exact, strict=True):
        assert (mine.double() - theirs).norm() <= 0.05 * theirs.norm()


@pytest.mark.parametrize("margin", [-1000.0, -80.0, 0.0, 17.0, 80.0, 1000.0])
@pytest.mark.parametrize("aligned", [True, False])
def test_it_stays_finite_however_certain_the_network_is(margin, aligned):
    objective = build("unlikelihood", threshold=0.5, alpha=1.0)
    weight = torch.tensor([[0.0], [0.0], [1.0], [0.0]])
    hidden = torch.full((1, 2, 1), margin, requires_grad=True)
    scores = torch.full((1, 2), 0.0 if aligned else 1.0)
    loss = linear_loss(objective, hidden, weight, torch.tensor([[0, 2]]), scores).loss
    loss.backward()
    expected = objective.loss(
        torch.full((1, 2, 1), margin).double() @ weight.double().t(), torch.tensor([[0, 2]]), scores
    )
    assert loss.item() == pytest.approx(expected.loss.item(), rel=1e-5, abs=1e-6)
    assert hidden.grad.isfinite().all()


def test_gradients_are_computed_once_and_only_if_needed():
    objective = build("mle")
    (hidden, weight, _, _), labels, scores = inputs_of(1, 4, 9)
    assert not linear_loss(objective, hidden, weight, labels, scores).loss.requires_grad
    hidden.requires_grad_()
    loss = linear_loss(objective, hidden, weight, labels, scores).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="were taken already"):
        loss.backward()
    with pytest.raises(ValueError, match="needs the output of a value head"):
        linear_loss(build("awr", alpha=0.5, beta=1.0), hidden, weight, labels, scores)
    with pytest.raises(ValueError, match="predict nothing"):
        linear_loss(objective, hidden[:, :1], weight, labels[:, :1], scores[:, :1])


@pytest.mark.parametrize(("name", "options"), EXAMPLES)
@pytest.mark.parametrize("overrides", [{}, {"tie_word_embeddings": False}])
def test_a_model_computes_its_loss_from_hidden_states(name, options, overrides):
    objective = build(name, **options)
    model = build_model(
        ModelConfig(name="nano", overrides=overrides), Vocabulary(300, 0), value_head=objective.needs_values
    )
    # In float32, the difference depends on the processor's kernels.
    model.double()
    assert model.has_linear_head
    torch.manual_seed(1)
    labels, scores = torch.randint(0, 300, (2, 33)), torch.rand(2, 33, dtype=torch.float64) * 0.1
    if model.value_head is not None:
        torch.nn.init.normal_(model.value_head.weight)
    logits, values = model(labels)
    expected = objective.loss(logits, labels, scores, values)
    expected.loss.backward()
    theirs = {key: each.grad.clone() for key, each in model.named_parameters()}
    model.zero_grad()
    loss, metrics = model(labels, objective=objective, scores=scores)
    loss.backward()
    torch.testing.assert_close(loss, expected.loss, rtol=1e-9, atol=0)
    torch.testing.assert_close(metrics, expected.metrics, rtol=1e-9, atol=1e-12)
    for key, each in model.named_parameters():
        torch.testing.assert_close(each.grad, theirs[key], rtol=1e-9, atol=1e-12)


def test_all_logits_are_computed_for_a_nonlinear_head(tmp_path):
    from transformers import GraniteConfig

    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    for scaling, linear in ((1.0, True), (4.0, False)):
        GraniteConfig(**shape, vocab_size=50, num_key_value_heads=2, logits_scaling=scaling).save_pretrained(tmp_path)
        model = build_model(ModelConfig(name=str(tmp_path)), Vocabulary(50, 0))
        assert model.has_linear_head == linear
        labels, scores = torch.randint(0, 50, (2, 9)), torch.zeros(2, 9)
        expected = build("mle").loss(model(labels)[0], labels, scores).loss
        torch.testing.assert_close(model(labels, objective=build("mle"), scores=scores)[0], expected)


PEAK = """
import resource, torch
from training.linear_loss import linear_loss
from training.objectives import build
torch.set_num_threads(2)
objective = build({name!r}, **{options!r})
def run(tokens):
    hidden = torch.randn(1, tokens + 1, 16, requires_grad=True)
    weight = torch.randn(50304, 16, requires_grad=True)
    labels, zeros = torch.randint(0, 50304, (1, tokens + 1)), torch.zeros(1, tokens + 1)
    linear_loss(objective, hidden, weight, labels, zeros, values=zeros).loss.backward()
run(2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
run({tokens})
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.parametrize(("name", "options"), [EXAMPLES[0], EXAMPLES[3], EXAMPLES[6]])
def test_its_peak_memory_is_under_a_fifth_of_the_logits(name, options):
    tokens = 2048
    done = subprocess.run(
        [sys.executable, "-c", PEAK.format(name=name, options=options, tokens=tokens)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < tokens * 50304 * 4 / 5
