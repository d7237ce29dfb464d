"""Samples of small GPT-2 models with random weights."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

from scorers.errors import UserError
from training.measuring_config import EvaluationConfig
from training.model.sampling import Guidance, Row, Samples, draw, evaluation_mode, guided, sample, sample_rows

EOS, ALIGNED, MISALIGNED = 0, 30, 31
TOKENIZER_SIZE = 32
ROWS = 40  # the embedding is padded


def config(**changes: Any) -> EvaluationConfig:
    return EvaluationConfig(**{"num_samples": 12, "max_new_tokens": 10, "batch_size": 4, "top_p": 1.0, **changes})


@pytest.fixture(scope="module")
def model() -> GPT2LMHeadModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=ROWS, n_embd=32, n_layer=2, n_head=2, n_positions=32, resid_pdrop=0.5, embd_pdrop=0.5,
                bos_token_id=0, eos_token_id=0, initializer_range=0.3,
            )
        )  # fmt: skip


def draw_samples(model: Any, seed: int = 0, banned: tuple[int, ...] = (ALIGNED, MISALIGNED), **changes: Any) -> Any:
    return sample(
        model, eos_id=EOS, prompt_ids=[EOS, ALIGNED], banned_ids=banned, config=config(**changes), seed=seed,
        vocab_size=TOKENIZER_SIZE,
    )  # fmt: skip


def test_samples_depend_on_the_seed(model: Any) -> None:
    first = draw_samples(model, 1)
    torch.manual_seed(123)
    assert draw_samples(model, 1) == first
    assert draw_samples(model, 2) != first


def test_the_batch_size_does_not_matter(model: Any) -> None:
    assert draw_samples(model, batch_size=12) == draw_samples(model, batch_size=5)


def test_fewer_samples_are_the_first_of_more(model: Any) -> None:
    assert draw_samples(model, num_samples=7).ids == draw_samples(model).ids[:7]


def test_sampling_leaves_the_training_state_unchanged(model: Any) -> None:
    model.train()
    model.transformer.h[1].eval()  # a frozen module
    modes = [module.training for module in model.modules()]
    state = torch.random.get_rng_state()
    numpy_state = np.random.get_state()[1].tolist()
    draw_samples(model)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert np.random.get_state()[1].tolist() == numpy_state
    assert [module.training for module in model.modules()] == modes
    assert torch.is_grad_enabled()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_modes_are_restored_after_a_failure(model: Any) -> None:
    model.train()
    with pytest.raises(RuntimeError), evaluation_mode(model):
        assert not model.training
        raise RuntimeError
    assert model.training


def test_dropout_is_off(model: Any) -> None:
    model.train()
    in_training = draw_samples(model)
    model.eval()
    assert draw_samples(model) == in_training


def test_banned_tokens_and_padding_never_occur(model: Any) -> None:
    # Their logits are the largest, so only the ban keeps them out.
    with torch.no_grad():
        model.lm_head.bias = torch.nn.Parameter(torch.zeros(ROWS))
        model.lm_head.bias[[ALIGNED, MISALIGNED, ROWS - 1, TOKENIZER_SIZE]] = 50.0
    try:
        seen = {token for ids in draw_samples(model).ids for token in ids}
        assert seen
        assert max(seen) < ALIGNED
        leaked = {token for ids in draw_samples(model, banned=()).ids for token in ids}
        assert leaked == {ALIGNED, MISALIGNED}
    finally:
        model.lm_head.bias = None


def test_samples_end_at_eos_and_exclude_it(model: Any) -> None:
    samples = draw_samples(model, num_samples=60, batch_size=60, max_new_tokens=15)
    assert any(samples.ended)
    for ids, ended in zip(samples.ids, samples.ended, strict=True):
        assert EOS not in ids
        assert len(ids) < 15 if ended else len(ids) == 15


def draw_guided(model: Any, scale: float, **changes: Any) -> Samples:
    return sample(
        model, eos_id=EOS, prompt_ids=[EOS, ALIGNED], banned_ids=[ALIGNED, MISALIGNED], config=config(**changes),
        seed=5, vocab_size=TOKENIZER_SIZE, guidance=Guidance(scale, [EOS, MISALIGNED]),
    )  # fmt: skip


def test_guidance_of_one_is_plain_sampling_and_of_zero_uses_the_other_prompt(model: Any) -> None:
    plain, other = (
        sample(
            model, eos_id=EOS, prompt_ids=[EOS, tag], banned_ids=[ALIGNED, MISALIGNED], config=config(), seed=5,
            vocab_size=TOKENIZER_SIZE,
        )
        for tag in (ALIGNED, MISALIGNED)
    )  # fmt: skip
    assert draw_guided(model, 1) == plain
    assert draw_guided(model, 0) == other != plain
    assert draw_guided(model, 1.001).ids[0][:3] == plain.ids[0][:3]


def test_guided_samples_follow_the_formula(model: Any) -> None:
    """Every token equals that of the formula on both whole prefixes, for the same uniform number."""
    samples = draw_guided(model, 2.5, num_samples=6, batch_size=6, top_p=0.8, temperature=0.9)
    assert len({len(ids) for ids in samples.ids}) > 1, "rows that end at different steps"
    uniform = torch.rand(6, 10, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    with evaluation_mode(model):
        for row, ids in enumerate(samples.ids):
            whole = [*ids, EOS] if samples.ended[row] else ids
            for step, token in enumerate(whole):
                good, bad = (
                    model(torch.tensor([[EOS, tag, *ids[:step]]])).logits[:, -1] for tag in (ALIGNED, MISALIGNED)
                )
                logits = bad + 2.5 * (good - bad)
                logits[:, [ALIGNED, MISALIGNED]] = -torch.inf
                logits[:, TOKENIZER_SIZE:] = -torch.inf
                assert draw(logits / 0.9, 0.8, uniform[row, step : step + 1]).item() == token


def test_ruled_out_tokens_stay_ruled_out_and_nan_stays_nan() -> None:
    nothing, nan = -torch.inf, float("nan")
    towards = torch.tensor([[1.0, nothing, 2.0, nothing, nan]])
    away = torch.tensor([[0.5, nothing, nothing, 3.0, 0.0]])
    for scale in (0.5, 2.0, 4.0):
        found = guided(towards, away, scale)
        assert found[0, 0].item() == pytest.approx(0.5 + scale * 0.5)
        assert found[0, 1:4].tolist() == [nothing] * 3
        assert found[0, 4].isnan()


def test_samples_stay_within_the_trained_context(model: Any) -> None:
    samples = sample(
        model, eos_id=EOS, prompt_ids=[EOS, ALIGNED], banned_ids=[], config=config(), seed=0, context_length=7,
        vocab_size=TOKENIZER_SIZE,
    )  # fmt: skip
    assert samples.max_new_tokens == 5
    assert max(len(ids) for ids in samples.ids) == 5


def test_progress_is_reported(model: Any) -> None:
    calls: list[tuple[int, int]] = []
    sample(
        model, eos_id=EOS, prompt_ids=[EOS], banned_ids=[], config=config(max_new_tokens=2), seed=0,
        progress=lambda done, total: calls.append((done, total)),
    )  # fmt: skip
    assert calls == [(4, 12), (8, 12), (12, 12)]


def test_draw_follows_the_distribution() -> None:
    probabilities = torch.tensor([0.1, 0.5, 0.15, 0.25])
    uniform = torch.rand(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tokens = draw(probabilities.log().expand(20_000, -1), 1.0, uniform)
    shares = torch.bincount(tokens, minlength=4) / 20_000
    assert torch.allclose(shares, probabilities, atol=0.015)


def test_nan_outputs_are_reported() -> None:
    logits = torch.tensor([[0.0, 1.0], [0.0, float("nan")]])
    with pytest.raises(UserError, match=r"outputs are NaN.*phf export-model"):
        draw(logits, 0.9, torch.zeros(2, dtype=torch.float64))


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    logits = torch.tensor([[0.1, 0.5, 0.15, 0.25]]).log().expand(1000, -1)
    uniform = torch.linspace(0, 0.9999, 1000, dtype=torch.float64)
    assert set(draw(logits, 0.5, uniform).tolist()) == {1}
    assert set(draw(logits, 0.51, uniform).tolist()) == {1, 3}
    assert set(draw(logits, 0.76, uniform).tolist()) == {1, 3, 2}
    assert set(draw(logits, 1e-9, uniform).tolist()) == {1}


@settings(max_examples=30)
@given(st.integers(2, 3000), st.floats(0.01, 1), st.floats(0, 0.999999), st.floats(0.1, 8))
def test_trying_the_likeliest_tokens_first_changes_nothing(size: int, top_p: float, at: float, scale: float) -> None:
    logits = torch.randn(3, size, generator=torch.Generator().manual_seed(size)) * scale
    uniform = torch.full((3,), at, dtype=torch.float64)
    probabilities, order = torch.softmax(logits, -1).sort(dim=-1, descending=True)
    expected = []
    for row in range(3):
        cumulated = probabilities[row].double().cumsum(0)
        kept = int((cumulated - probabilities[row] < top_p).sum())
        index = int(torch.searchsorted(cumulated[:kept], at * cumulated[kept - 1], right=True))
        expected.append(int(order[row, min(index, kept - 1)]))
    assert draw(logits, top_p, uniform).tolist() == expected


def test_tokens_of_zero_probability_are_never_drawn() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0]])
    for at in (0.0, 0.3, 0.5, 0.999999999):
        assert draw(logits, 1.0, torch.tensor([at], dtype=torch.float64)).item() in (1, 3)


def rows_of(lengths: list[int], *, guided: bool = False) -> list[Row]:
    generator = torch.Generator().manual_seed(9)
    rows = []
    for number, length in enumerate(lengths):
        text = [1 + (number + place) % 25 for place in range(length)]
        uniform = torch.rand(10, generator=generator, dtype=torch.float64)
        rows.append(Row([EOS, ALIGNED, *text], uniform, [EOS, MISALIGNED, *text] if guided else None))
    return rows


def draw_rows(model: Any, rows: list[Row], batch_size: int = 8, **changes: Any) -> tuple[list[list[int]], list[bool]]:
    return sample_rows(
        model, rows, eos_id=EOS, banned_ids=[ALIGNED, MISALIGNED], temperature=0.9, top_p=0.95, batch_size=batch_size,
        vocab_size=TOKENIZER_SIZE, **changes,
    )  # fmt: skip


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_a_batch_of_unequal_prompts_gives_the_samples_of_single_prompts(model: Any, scale: float) -> None:
    rows = rows_of([3, 7, 3, 1, 7, 3, 3, 12], guided=scale != 1)
    together = draw_rows(model, rows, scale=scale)
    alone = [draw_rows(model, [row], scale=scale) for row in rows]
    assert together == ([ids for (ids,), _ in alone], [ended for _, (ended,) in alone])
    assert draw_rows(model, rows, batch_size=2, scale=scale) == together
    assert draw_rows(model, rows[::-1], scale=scale)[0] == together[0][::-1]


def test_rows_equal_the_samples_of_one_prompt(model: Any) -> None:
    plain = draw_samples(model, 4, num_samples=5, temperature=0.9, top_p=0.95)
    uniform = torch.rand(5, 10, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    ids, ended = draw_rows(model, [Row([EOS, ALIGNED], each) for each in uniform])
    assert (ids, ended) == (plain.ids, plain.ended)


def test_no_row_ends_before_its_fewest_tokens(model: Any) -> None:
    rows = rows_of([2] * 60)
    free, _ = draw_rows(model, rows)
    assert min(map(len, free)) < 4
    ids, ended = draw_rows(model, rows, min_new_tokens=4)
    assert min(map(len, ids)) >= 4
    assert any(ended)
