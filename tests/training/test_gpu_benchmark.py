"""The GPU benchmark runs on a CPU with a small model, and reports a missing GPU."""

import json

import pytest
import torch

from tests.benchmarks import gpu_training


def test_every_variant_is_measured_and_recorded(tmp_path, capsys):
    output = tmp_path / "found.json"
    small = ["--device", "cpu", "--sizes", "nano", "--context", "32", "--vocabulary", "300", "--micro-batch", "2"]
    few = ["--accumulation", "2", "--steps", "2", "--warm-up", "1", "--no-compile", "--one-process"]
    assert gpu_training.main([*small, *few, "--objectives", "mle", "awr", "--output", str(output)]) == 0
    results = json.loads(output.read_text())["results"]
    assert [each["way"] for each in results] == ["plain loop", "mle", "awr"]
    for each in results:
        assert each["size"] == "nano"
        assert len(each["seconds"]) == 2
        assert each["tokens_per_second"] > 0 < each["mfu"] < 1 < each["peak_memory"]
    printed = capsys.readouterr().out
    assert "nano: 2 x 2 blocks of 32 tokens" in printed
    assert "awr" in printed


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_reported(capsys):
    assert gpu_training.main([]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "make bench-gpu needs a GPU" in error
