"""The suggested first training run suits the corpus and the machine, and works."""

import re
import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.dataset import open_dataset
from pipeline.dataset.card import render_card
from pipeline.dataset.first_run import SIZES, cpu_flops, first_run, train_command
from tests.datasets import make_dataset

TEXT = "Sentence is here. Another damn one follows. " * 40


def manifest(folder: Path, scores, thresholds, text=TEXT):
    return open_dataset(str(make_dataset(folder, [text] * 3, scores, thresholds))).manifest


def options(command: str) -> dict[str, str]:
    words = shlex.split(command)
    return dict(zip(words[3::2], words[4::2], strict=True))


@given(st.floats(256, 1e13), st.integers(1, 256))
def test_the_run_takes_at_most_a_few_epochs_and_an_hour(tokens, cores):
    found = first_run(tokens, cpu_flops(cores))
    assert 0 < found.num_tokens <= 4 * tokens
    assert found.num_tokens * SIZES[found.model][1] <= 3600 * cpu_flops(cores)
    assert 1 <= found.batch_size <= 64
    # Many updates, not a single one with the whole text.
    steps = found.num_tokens / (found.batch_size * SIZES[found.model][2])
    assert steps >= 200 or found.batch_size == 1
    assert float(re.search(r"--num-tokens (\S+)", found.options)[1]) == pytest.approx(found.num_tokens, rel=0.05)


def test_more_text_and_cores_give_larger_models():
    order = list(SIZES)
    sizes = [order.index(first_run(10.0**power, cpu_flops(16)).model) for power in range(3, 12)]
    assert sizes == sorted(sizes)
    assert sizes[0] == 0
    assert sizes[-1] > 1
    assert first_run(1e9, cpu_flops(1)).model == "tiny"


def test_the_command_names_what_the_dataset_has(tmp_path):
    plain = {"style": lambda sentence: float("damn" in sentence)}
    found = train_command(manifest(tmp_path / "a b", plain, {"style": 0}), "a b")
    assert found.startswith("phf train 'a b' --task style --objective conditional --model nano --num-tokens ")
    assert found.endswith(" --output runs/conditional")
    both = {**plain, "toxicity": plain["style"]}
    assert options(train_command(manifest(tmp_path / "c", both, {}), "c"))["--task"] == "toxicity"


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_the_run_is_not_conditional_if_all_tags_are_equal(tmp_path, score):
    made = manifest(tmp_path / "d", {"toxicity": lambda sentence: score}, {"toxicity": 0.5})
    assert options(train_command(made, "d"))["--objective"] == "mle"


def test_nothing_is_suggested_without_scores_or_text(tmp_path):
    scores = {"toxicity": lambda sentence: 0.5}
    assert train_command(manifest(tmp_path / "short", scores, {}, text="One. Two."), "short") is None
    unscored = manifest(tmp_path / "none", {"toxicity": [None, None, None]}, {"toxicity": 0})
    assert train_command(unscored, "none") is None
    assert "How to train" not in render_card(unscored)


def test_the_card_has_the_same_command_on_every_machine(tmp_path, monkeypatch):
    made = manifest(tmp_path / "e", {"toxicity": lambda sentence: float("damn" in sentence)}, {"toxicity": 0})
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(500)))
    command = train_command(made, "DIR", "RUN")
    assert f"```sh\n{command}\n```" in render_card(made)
