"""Folder names may contain brackets, stars, quotes, spaces and line feeds, and printed commands can be pasted."""

import json
import shutil
import subprocess

import pytest
from rich.console import Console

from scorers.shell import phf, quoted
from tests.training import real_runs
from training.comparison.load import load_comparison
from training.comparison.page import write_comparison
from training.comparison.reproduce import commands
from training.evaluation.evaluate_run import evaluate_run
from training.export.checkpoint import export_checkpoint
from training.loop.train import train
from training.runs import checkpoints
from training.runs.folder import RunFolder

ODD = "a b[1e-3]*?{x}'\"$HOME`%20#;&\\\n!"
SMALL = {
    "training.num_tokens": 6 * 8 * 64,
    "training.save_every": 2,
    "evaluation.num_samples": 4,
    "evaluation.max_new_tokens": 4,
    "evaluation.leakage_samples": 0,
    "training.log_every": 1,
}


@pytest.mark.parametrize(
    "word",
    ["plain", "a b", ODD, "", "-x", "ä\u202eb", "\x1b[31m", "tab\there", "$'x'", "\udcff", "~/x", "*", "a\\nb"],
)
def test_a_printed_word_is_what_it_was(word):
    line = f"printf '%s\\0' {quoted(word)} {quoted('next')}"
    assert all(each.isprintable() for each in line)
    environment = {"LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin", "HOME": "/root"}
    found = subprocess.run(["bash", "-c", line], capture_output=True, check=True, env=environment).stdout
    assert found.decode(errors="surrogateescape").split("\0") == [word, "next", ""]


def test_a_run_in_such_folders_goes_on_and_is_exported_evaluated_and_compared(tmp_path):
    place = tmp_path / ODD
    dataset, output = real_runs.make_code_dataset(place / "labelled"), place / "runs" / ODD
    folder = RunFolder(output)

    def run(stage=1):
        with (tmp_path / "printed").open("w") as printed:
            # Not where it lies by a setting, which is YAML.
            config = real_runs.config_of(
                dataset, output, **{**SMALL, "training.zero_stage": stage, "data.store": "null"}
            )
            train(config, Console(file=printed, width=1000))
        return (tmp_path / "printed").read_text()

    run()
    stopped = folder.read_facts().model_copy(update={"status": "stopped", "step": 4, "saved": 4})
    for ranks in (1, 2):
        # As if it had been stopped there; of another number of ranks, it is rewritten first.
        shutil.rmtree(folder.model)
        shutil.rmtree(checkpoints.checkpoint_path(folder.checkpoints, 6))
        marker = checkpoints.checkpoint_path(folder.checkpoints, 4) / checkpoints.MARKER_NAME
        marker.write_text(json.dumps({**json.loads(marker.read_text()), "ranks": ranks}))
        folder.write_facts(stopped)
        printed = run()
        assert "step 4 of 6" in printed
        assert phf("evaluate", output) in printed
    assert export_checkpoint(folder, 4, place / "exported") == 4
    evaluate_run(folder)
    comparison = load_comparison([str(output)])
    assert write_comparison(comparison, place / "comparison").is_file()
    assert any(line.startswith(phf("evaluate", output)) for line in commands(comparison))

    shutil.rmtree(output)
    run(stage=3)
    assert export_checkpoint(folder, 4, place / "exported of stage 3") == 4
