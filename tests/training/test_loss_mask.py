"""Loss masks: the plain form, the form from hidden states and PyTorch's own agree; runs log the masked share."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scorers.errors import UserError
from tests.datasets import make_dataset
from tests.training.jobs import job_config, make_code_dataset, metrics, run_job
from tests.training.test_linear_loss import compute_with_gradients, inputs_of, plain_loss
from tests.training.test_objectives import EXAMPLES
from training.data.prepare import prepare
from training.linear_loss import linear_loss
from training.loss_mask import LossMask, TokenTerms
from training.objectives import build, merge_metrics

CONTROL = (1, 3)


@pytest.fixture(scope="module")
def code_dataset(tmp_path_factory):
    return make_code_dataset(tmp_path_factory.mktemp("code") / "labelled")


@given(
    above=st.one_of(st.none(), st.sampled_from([0.0, 0.05, 0.1, 1.0])),
    ids=st.sampled_from([(), CONTROL]),
    count=st.one_of(st.none(), st.integers(1, 100)),
    seed=st.integers(0, 99),
)
@settings(max_examples=60)
def test_mle_equals_pytorchs_ignore_index_up_to_the_divisor(above, ids, count, seed):
    (hidden, weight, bias, _), labels, scores = inputs_of(2, 7, 6, seed=seed)
    logits = torch.nn.functional.linear(hidden, weight, bias).requires_grad_()
    found = build("mle", mask=LossMask(ids, above)).loss(logits, labels, scores, count=count)
    found.loss.backward()
    gradient, logits.grad = logits.grad, None
    targets = labels.clone()
    for token in ids:
        targets[labels == token] = -100
    if above is not None:
        targets[scores > above] = -100
    expected = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten(), ignore_index=-100, reduction="sum"
    ) / (count or 12)
    expected.backward()
    torch.testing.assert_close(found.loss, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradient, logits.grad, rtol=1e-9, atol=1e-12)
    ignored = (targets[:, 1:] == -100).sum().item()
    assert found.metrics["masked_share"].item() == pytest.approx(ignored / (count or 12))
    assert found.metrics["ce"].item() == pytest.approx(found.loss.item())


@pytest.mark.parametrize(("name", "options"), EXAMPLES)
@given(length=st.integers(2, 9), chunk=st.integers(1, 30), seed=st.integers(0, 99))
@settings(max_examples=15)
def test_the_mask_from_hidden_states_equals_the_plain_form(name, options, length, chunk, seed):
    objective = build(name, **options, mask=LossMask(CONTROL, 0.1))
    leaves, labels, scores = inputs_of(2, length, 6, seed=seed)
    expected, their_gradients = compute_with_gradients(plain_loss, objective, leaves, labels, scores)
    found, gradients = compute_with_gradients(linear_loss, objective, leaves, labels, scores, chunk_tokens=chunk)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-9, atol=1e-12)
    assert found.metrics.keys() == expected.metrics.keys()
    for key, value in expected.metrics.items():
        assert found.metrics[key].item() == pytest.approx(value.item(), rel=1e-9, abs=1e-12)
    for mine, theirs in zip(gradients, their_gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize(("name", "options"), EXAMPLES)
def test_a_masked_token_has_no_gradient_at_all(name, options):
    leaves, labels, scores = inputs_of(1, 6, 9, dtype=torch.float32)
    scores[:] = 0.0
    scores[0, 3] = 0.9
    # The model is certain of another token, so the loss would be enormous.
    leaves[0][0, 2] *= 1e4
    _, gradients = compute_with_gradients(
        linear_loss, build(name, **options, mask=LossMask(above=0.5)), leaves, labels, scores
    )
    hidden, values = gradients[0], gradients[3]
    assert not hidden[0, 2].any()
    assert not values[0, 2]
    assert hidden[0, 1].any()


def test_shares_of_micro_batches_add_up():
    (hidden, weight, bias, _), labels, scores = inputs_of(4, 8, 6)
    objective = build("mle", mask=LossMask(CONTROL, 0.1))
    logits = torch.nn.functional.linear(hidden, weight, bias)
    whole = objective.loss(logits, labels, scores)
    parts = [objective.loss(logits[i : i + 1], labels[i : i + 1], scores[i : i + 1], count=28) for i in range(4)]
    assert sum(part.loss for part in parts).item() == pytest.approx(whole.loss.item())
    merged = merge_metrics([part.metrics for part in parts])
    assert merged["masked_share"].item() == pytest.approx(whole.metrics["masked_share"].item())


def test_a_run_with_masked_tags_and_worst_sentences_counts_them(tmp_path, code_dataset):
    settings = {"objective__mask_control_tokens": "true", "objective__mask_above": "p90", "objective__drop_tags": 0}
    facts, printed = run_job(code_dataset, tmp_path / "run", "conditional", **settings)
    shares = [each["masked_share"] for each in metrics(tmp_path / "run")]
    assert len(shares) == 12
    # About one token in ten is a tag, and a few in a hundred belong to the worst sentences.
    assert all(0.03 < share < 0.6 for share in shares)
    assert "mask_above=0.0" in printed
    # A second call finds the same percentile, and so the same run.
    again, _ = run_job(code_dataset, tmp_path / "run", "conditional", **settings)
    assert again.step == facts.step == 12


def test_a_percentile_refers_to_the_streams_sentences(tmp_path, code_dataset):
    data = prepare(job_config(code_dataset, tmp_path / "run", "mle", objective__mask_above="p80"))
    kept, sentences = data.stream.count_aligned(data.objective.mask.above)
    assert 0.8 <= kept / sentences < 1
    assert data.config.objective.mask_above == data.objective.mask.above
    assert prepare(data.config).objective.mask == data.objective.mask


@pytest.mark.parametrize("above", [-0.01, 0.05])
def test_the_end_of_a_document_is_learnt_with_a_negative_limit(tmp_path, above):
    scores = {"long": lambda each: len(each) / 1000, "short": lambda each: 1 / (1 + len(each))}
    texts = [f"{'x' * (7 * number)} y. And {number}. " * 3 for number in range(40)]
    dataset = make_dataset(tmp_path / "labelled", texts, scores, {"long": 0.2, "short": 0.5})
    settings = {"data__columns": "{long: 1, short: 1}", "data__held_out": 0, "objective__mask_above": above}
    settings |= {"objective__thresholds": "{long: 0.2, short: 0.5}"}
    data = prepare(job_config(dataset, tmp_path / "run", "conditional", **settings))
    mask, eos = data.objective.mask, data.tokenizer.eos_id
    zero = torch.zeros(2, 3)
    terms = TokenTerms(loss=zero + 1, means={}, maxima={})
    kept = mask.apply(terms, torch.tensor([[eos, 5, 5]] * 2), torch.tensor([[0.0, above - 1, above + 1]] * 2)).loss
    assert kept.tolist() == [[1, 1, 0]] * 2


@pytest.mark.parametrize(
    ("objective", "settings", "message"),
    [
        ("mle", {"objective__mask_control_tokens": "true"}, "mle has no control tokens to mask"),
        ("mle", {"objective__mask_above": 9}, r"mask_above=9\.0 masks no sentence of the stream\. Its scores: p50"),
        ("mle", {"objective__mask_above": -1}, r"masks every sentence"),
        ("unlikelihood", {"objective__mask_above": 0.001, "objective__threshold": 0.01}, "would push down"),
    ],
)
def test_masks_that_do_nothing_or_too_much_are_refused(tmp_path, code_dataset, objective, settings, message):
    if objective == "unlikelihood":
        settings = {**settings, "objective__alpha": 1}
    with pytest.raises(UserError, match=message):
        prepare(job_config(code_dataset, tmp_path / "run", objective, **settings))


@pytest.mark.parametrize("value", ["p100", "99", "worst", "p-1"])
def test_a_value_that_is_neither_score_nor_percentile_is_refused(tmp_path, code_dataset, value):
    if value == "99":
        assert job_config(code_dataset, tmp_path / "run", objective__mask_above=value).objective.mask_above == 99
        return
    with pytest.raises(UserError, match="mask_above"):
        job_config(code_dataset, tmp_path / "run", objective__mask_above=value)
