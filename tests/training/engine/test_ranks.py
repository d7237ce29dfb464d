"""Every ZeRO stage trains the same on one and two ranks, and resumes from another number of ranks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scorers.errors import IncompleteError
from tests.training import ranks
from tests.training.jobs import ENVIRONMENT
from tests.training.model.test_models import small_llama
from training.config import ModelConfig
from training.engine.zero import to_universal
from training.export.checkpoint import checkpoint_weights
from training.model.language_model import build_model
from training.model.vocabulary import Vocabulary

CASES = ["0-fp32", "1-fp32", "2-fp32", "3-fp32"]


def on_ranks(number, folder, action, written_by, cases):
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(number), "-m"] if number > 1 else []
    done = subprocess.run(
        [sys.executable, "-m", *launcher, "tests.training.ranks", str(folder), action, str(written_by), *cases],
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=240,
        cwd=Path(__file__).parents[3],
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """By number of ranks: the folder of the checkpoints, and the losses before and after them."""
    found = {}
    for number in (1, 2):
        folder = tmp_path_factory.mktemp(f"ranks{number}")
        found[number] = (folder, on_ranks(number, folder, "save", number, CASES))
    return found


@pytest.mark.slow
def test_stages_and_ranks_learn_the_same(saved):
    expected = saved[1][1]["0-fp32"]
    assert len(set(expected)) == len(expected) == 7
    for _, losses in saved.values():
        for case, found in losses.items():
            assert found == pytest.approx(expected, abs=1e-4), case


@pytest.mark.slow
@pytest.mark.parametrize(("before", "now"), [(2, 1), (1, 2)])
def test_a_checkpoint_resumes_on_another_number_of_ranks(saved, before, now):
    folder, losses = saved[before]
    found = on_ranks(now, folder, "load", before, CASES)
    for case in CASES:
        assert found[case] == pytest.approx(losses[case][len(ranks.BEFORE) :], abs=1e-4), case
    assert not list(folder.glob(".staging*"))


@pytest.mark.slow
def test_an_asynchronous_checkpoint_has_the_state_of_its_step(saved):
    folder, losses = saved[2]
    for case, found in on_ranks(2, folder, "load", 2, ["2-fp32", "3-fp32"]).items():
        assert found == losses[case][len(ranks.BEFORE) :], case


@pytest.mark.slow
def test_the_whole_weights_are_read_from_any_checkpoint(saved):
    for folder, _ in saved.values():
        for case in CASES:
            expected, found = torch.load(folder / f"{case}.whole0.pt"), checkpoint_weights(folder / case)
            assert found.keys() == expected.keys()
            assert "value_head.weight" in found
            assert all(torch.equal(found[name], expected[name]) for name in found), case


@pytest.mark.slow
def test_a_checkpoint_grown_by_control_tokens_learns_the_same_in_every_stage(tmp_path):
    torch.manual_seed(3)
    # With an untied output embedding, and frequencies in buffers.
    small_llama(tie=False).save_pretrained(tmp_path / "config")
    start = build_model(ModelConfig(name=str(tmp_path / "config")), Vocabulary(ranks.VOCABULARY, 0))
    start.causal.save_pretrained(tmp_path / "base")
    cases = ["1-fp32-grown", "2-fp32-grown-optimizer", "3-fp32-grown", "3-fp32-grown-parameters"]
    found = on_ranks(2, tmp_path, "save", 2, cases)
    *losses, rows, _ = expected = found[cases[0]]
    assert rows == ranks.VOCABULARY + 2
    assert len(set(losses)) == len(losses) == 7
    for case in cases[1:]:
        assert found[case] == pytest.approx(expected, rel=1e-5), case


def test_a_full_disk_during_conversion_is_reported(tmp_path):
    source = tmp_path / "step-00000001" / "deepspeed"
    source.mkdir(parents=True)
    (tmp_path / "checkpoints").write_text("a file where a folder should be")
    with pytest.raises(IncompleteError, match=r"step-00000001 could not be converted .* unchanged"):
        to_universal(source, tmp_path / "checkpoints" / ".staging-universal")
