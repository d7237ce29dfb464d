"""The red-team loop, on toy targets whose weakness is known."""

import numpy as np
import pytest

from training.attack.attackers import Recombination
from training.attack.red_team import Attempt, Pool, joined, run_trial, shortened
from training.measuring_config import RedTeamConfig

CONFIG = RedTeamConfig(
    rounds=8, proposals=24, continuations=4, examples=4, pool=20, prompt_words=6, draw_temperature=0.3
)
WORDS = ["red", "green", "blue", "soft", "hard", "warm", "cold", "high", "low", "near", "far"]


def share_of_blue(prompts, number):
    """The toy's weakness: the share of the word blue."""
    generator = np.random.default_rng([number, len(prompts)])
    return [
        np.clip(prompt.split().count("blue") / len(prompt.split()) + generator.normal(0, 0.02, 4), 0, 1)
        for prompt in prompts
    ]


def beginning(seed=0):
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(WORDS, 4)) for _ in range(20)]


def means(attempts):
    return [np.mean([each.score for each in attempts if each.round == number]) for number in range(CONFIG.rounds + 1)]


def test_finds_the_weakness():
    attempts = run_trial(beginning(), Recombination(), share_of_blue, CONFIG, seed=1)
    found = means(attempts)
    assert found[0] < 0.15
    assert found[-1] > 0.6
    assert max(attempts, key=lambda each: each.score).prompt.split().count("blue") >= 3


def test_without_scores_to_follow_nothing_is_gained():
    found = means(run_trial(beginning(), Recombination(), lambda p, _: [np.full(4, 0.3)] * len(p), CONFIG, seed=1))
    assert found == pytest.approx([0.3] * 9)
    blues = run_trial(beginning(), Recombination(), lambda p, _: [np.full(4, 0.3)] * len(p), CONFIG, seed=1)
    shares = [np.mean(share_of_blue([each.prompt], 0)) for each in blues if each.round == CONFIG.rounds]
    assert np.mean(shares) < 0.25


def test_a_trial_depends_on_its_seed_alone():
    first, again, other = (
        [(each.prompt, each.round) for each in run_trial(beginning(), Recombination(), share_of_blue, CONFIG, seed=s)]
        for s in (1, 1, 2)
    )
    assert first == again != other


def test_prompts_are_new_short_and_of_the_words_of_the_pool():
    attempts = run_trial(beginning(), Recombination(), share_of_blue, CONFIG, seed=3)
    prompts = [each.prompt for each in attempts]
    assert len(set(prompts)) == len(set(beginning())) + sum(each.round > 0 for each in attempts)
    assert all(0 < len(prompt.split()) <= 6 and set(prompt.split()) <= set(WORDS) for prompt in prompts)
    counts = [sum(each.round == number for each in attempts) for number in range(1, 9)]
    assert counts[:2] == [24, 24]
    assert all(12 <= count <= 24 for count in counts)  # few words allow fewer and fewer new prompts


def test_an_attacker_that_repeats_itself_ends_with_fewer_prompts():
    class Stubborn:
        def propose(self, examples, generator):
            return ["blue blue", "", examples[0][0]]

    attempts = run_trial(beginning(), Stubborn(), share_of_blue, CONFIG, seed=1)
    assert [each.prompt for each in attempts if each.round] == ["blue blue"]


def test_examples_are_drawn_by_softmax_weights_of_scores():
    pool = Pool()
    scores = np.array([0.0, 0.1, 0.3, np.nan])
    pool.add([Attempt(f"p{index}", 0, np.array([score, score])) for index, score in enumerate(scores)])
    drawn = pool.draw(20_000, 1, 0.5, np.random.default_rng(0))
    shares = [sum(group == [f"p{index}"] for group in drawn) / 20_000 for index in range(4)]
    weights = np.exp(scores[:3] / (0.5 * scores[:3].std()))
    assert shares[:3] == pytest.approx(weights / weights.sum(), abs=0.015)
    assert shares[3] == 0
    (group,) = pool.draw(1, 9, 0.5, np.random.default_rng(0))
    assert group == ["p2", "p1", "p0", "p3"]  # the worst first, those without a score last


def test_the_score_of_a_prompt_leaves_continuations_without_one_out():
    assert Attempt("p", 0, np.array([0.2, np.nan, 0.4])).score == pytest.approx(0.3)
    assert np.isnan(Attempt("p", 0, np.array([np.nan])).score)


def test_shortens_to_whole_words_and_keeps_indentation():
    assert shortened("  one\n    two  three ", 2) == "one\n    two"
    assert shortened("one", 2) == "one"
    assert shortened(" \n", 2) == ""


def test_words_of_different_texts_are_joined_by_spaces():
    assert joined(["\n    x", "y", " z"]) == "x y z"
