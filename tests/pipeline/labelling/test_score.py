"""Adding columns and inputs later: `phf score` and `phf label --extend`, also if they are interrupted."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.checking.verify import verify
from pipeline.dataset import open_dataset
from pipeline.sealing.extent import unfinished
from pipeline.storage.failpoints import VARIABLE
from pipeline.storage.open import open_storage
from tests.pipeline import forked, probe
from tests.pipeline.label_job import Labelling, data_hashes, wait_for

TEXTS = [f"Sentence one of {number}. And a second one, {number * number}. " * 20 for number in range(40)]
UNITS = ("--unit-size", "4000")


def score(made: Labelling, *options: str) -> list[str]:
    return ["score", str(made.output), *options]


def run(made: Labelling, arguments: list[str]) -> "subprocess.CompletedProcess[str]":
    return forked.run(arguments, folder=made.folder, env=made.env)


def again(made: Labelling, *options: str) -> "subprocess.CompletedProcess[str]":
    return made.run_without_ray(*UNITS, *options)


def rows(output: Path, *columns: str) -> list[tuple]:
    dataset = open_dataset(str(output))
    names = ("source", "position", "text", "ends", *columns)
    return sorted(
        (
            row
            for batch in dataset.read_batches(names)
            for row in zip(*(map(_frozen, batch.column(name).to_pylist()) for name in names), strict=True)
        ),
        key=str,
    )


def _frozen(value):
    return tuple(value) if isinstance(value, list) else value


@pytest.fixture
def made(tmp_path: Path) -> Labelling:
    made = Labelling(tmp_path)
    made.write(TEXTS)
    made.write(["", "One. Two."], "more.jsonl")
    made.run_undisturbed(*UNITS)
    return made


def test_adding_a_column_scores_nothing_again(made: Labelling) -> None:
    before, scored = rows(made.output, "probe"), made.scored()
    first = json.loads((made.output / "manifest.json").read_text())
    # The rows are in the dataset, so the inputs are no longer needed.
    (made.corpus / "corpus.jsonl").unlink()
    result = run(made, score(made, "--scorer", "style=probe:0.0", "--threshold", "style=p10"))
    assert result.returncode == 0, result.stderr
    assert "Added style to" in result.stdout
    manifest = json.loads((made.output / "manifest.json").read_text())
    assert manifest["generation"] == 2
    assert list(manifest["scorers"]) == list(manifest["config"]["scorers"]) == ["probe", "style"]
    assert manifest["thresholds"]["style"]["spec"] == "p10"
    assert manifest["thresholds"]["probe"] == first["thresholds"]["probe"]
    assert rows(made.output, "probe") == before
    assert [row[-1] for row in rows(made.output, "style")] == [row[-1] for row in before], "the same scorer, twice"
    assert made.scored() == scored + scored, "each text once more, for the new column alone"
    assert not (made.output / "data/0001").exists()
    assert verify(str(made.output)).problems == []

    retagged = run(made, ["retag", str(made.output), "--threshold", "style=0"])
    assert retagged.returncode == 0, retagged.stderr
    assert verify(str(made.output)).problems == []
    assert rows(made.output, "probe") == before

    again_result = run(made, score(made, "--scorer", "style=probe:0.0", "--threshold", "style=p10"))
    assert again_result.returncode == 0
    assert "already" in again_result.stdout
    present = run(made, score(made, "--scorer", "style=probe:0.0", "--threshold", "style=0"))
    assert present.returncode == 0, "the threshold that the column has now"

    sealed = (made.output / "manifest.json").read_bytes()
    for column, threshold in (("style=probe:0.0", "style=0.9"), ("probe=probe", "probe=0.9")):
        other = run(made, score(made, "--scorer", column, "--threshold", threshold))
        assert other.returncode == 2, "never ignored"
        assert f"phf retag {made.output} --threshold {threshold}" in " ".join(other.stderr.split())
    assert "thresholds.probe: was 'p50', now '0.9'" in other.stderr
    assert (made.output / "manifest.json").read_bytes() == sealed
    assert made.scored() == scored + scored


def test_a_record_that_a_new_scorer_cannot_score_leaves_the_dataset(tmp_path: Path) -> None:
    other = Labelling(tmp_path / "other", scorer="lines=pycodestyle")
    other.write(["Fine.", f"Not {probe.RAISE}.", "Fine again.", ""])
    command = other.command("--kind", "python")[3:]
    command = [each for each in command if each != "probe=p50" and each != "--threshold"]
    assert run(other, command).returncode == 0
    result = run(other, score(other, "--scorer", "probe=probe"))
    assert result.returncode == 3, result.stderr
    manifest = json.loads((other.output / "manifest.json").read_text())
    assert manifest["ledger"]["records"] == 4
    assert manifest["ledger"]["quarantined"] == {"scorer-error": 1}
    assert len(rows(other.output, "lines", "probe")) == 3
    assert verify(str(other.output)).problems == []


def test_invalid_commands_are_refused_before_anything_is_written(made: Labelling) -> None:
    before = {path: path.stat().st_mtime_ns for path in made.output.rglob("*")}
    for options, message in [
        (("--scorer", "probe=linear"), "already has a column 'probe'"),
        (("--scorer", "text=linear"), "cannot fill the column 'text'"),
        (("--scorer", "style=probe", "--threshold", "probe=1"), "no scorer fills that column"),
        ((), "No scorer is given"),
    ]:
        result = run(made, score(made, *options))
        assert result.returncode == 2, result.stderr
        assert message in " ".join(result.stderr.split())
    assert {path: path.stat().st_mtime_ns for path in made.output.rglob("*")} == before
    (made.folder / "empty").mkdir()
    made.output = made.folder / "empty"
    assert "There is nothing" in " ".join(run(made, score(made, "--scorer", "a=probe")).stderr.split())


def test_inputs_that_were_added_later_are_labelled_too(made: Labelling) -> None:
    run(made, score(made, "--scorer", "style=probe:0.0"))
    settled, first = made.scored(), data_hashes(made.output)
    made.write([f"New {number}. Indeed." for number in range(30)], "another.jsonl")

    refused = again(made)
    assert refused.returncode == 2
    assert "--extend" in refused.stderr
    assert data_hashes(made.output) == first

    # A pool may name a column that was added later, but no unknown one.
    unknown = again(made, "--extend", "--set", "execution.pools.other.max=1")
    assert unknown.returncode == 2
    assert "the columns are: probe, style" in " ".join(unknown.stderr.split())

    result = again(made, "--extend", "--set", "execution.pools.style.max=1")
    assert result.returncode == 0, result.stderr
    manifest = json.loads((made.output / "manifest.json").read_text())
    assert [source["uri"] for source in manifest["sources"]] == [
        "corpus/corpus.jsonl",
        "corpus/more.jsonl",
        "corpus/another.jsonl",
    ]
    assert manifest["generation"] == 3
    assert list(manifest["scorers"]) == ["probe", "style"]
    new = {probe.key(f"New {number}. Indeed."): 2 for number in range(30)}
    assert made.scored() - settled == Counter(new), "only what is new, by both scorers"
    checked = run(made, ["verify", str(made.output), "--inputs"])
    assert checked.returncode == 0, checked.stdout

    # The same content as if the input had been present from the start, in another order.
    whole = Labelling(made.folder / "whole")
    whole.write(TEXTS)
    whole.write(["", "One. Two."], "more.jsonl")
    whole.write([f"New {number}. Indeed." for number in range(30)], "another.jsonl")
    whole.run_undisturbed(*UNITS)
    assert rows(whole.output, "probe") == rows(made.output, "probe")

    for options in ((), ("--extend",)):
        same = again(made, *options)
        assert same.returncode == 0
        assert "already" in same.stdout
    with (made.corpus / "another.jsonl").open("a") as file:
        file.write('{"text": "Grown."}\n')
    grown = again(made, "--extend")
    assert grown.returncode == 2
    assert "Put records to add into a file of their own" in " ".join(grown.stderr.split())


def test_there_must_be_something_to_extend(tmp_path: Path) -> None:
    made = Labelling(tmp_path)
    made.write(TEXTS[:2])
    result = again(made, "--extend")
    assert result.returncode == 2
    assert "no job to extend" in " ".join(result.stderr.split())
    assert not made.output.exists()


@pytest.mark.slow
def test_a_killed_score_resumes_and_ends_with_the_same_bytes(made: Labelling, tmp_path: Path) -> None:
    undisturbed = Labelling(tmp_path / "undisturbed")
    undisturbed.write(TEXTS)
    undisturbed.write(["", "One. Two."], "more.jsonl")
    undisturbed.run_undisturbed(*UNITS)
    assert run(undisturbed, score(undisturbed, "--scorer", "style=probe")).returncode == 0
    sealed = data_hashes(made.output)

    made.hold(made.scored().total() + 10)
    process = subprocess.Popen(
        [sys.executable, "-m", "phf", *score(made, "--scorer", "style=probe", "--workers", "1")],
        cwd=made.folder,
        env=made.env,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    layer = made.output / "units/0002/00000"
    wait_for(lambda: len(list(layer.glob("*.json"))) >= 2 or process.poll() is not None)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert data_hashes(made.output) == sealed, "the dataset stays as it was until the column is complete"
    assert verify(str(made.output)).problems == []
    committed = {path.stem for path in layer.glob("*.json")}
    before = made.scored()
    made.release()
    result = run(made, score(made, "--scorer", "style=probe"))
    assert result.returncode == 0, result.stderr
    assert data_hashes(made.output) == data_hashes(undisturbed.output)
    texts = {
        probe.key(text)
        for unit in committed
        for text in pq.read_table(layer.parents[1] / f"0001/00000/{unit}.cpu.parquet", columns=["text"])[
            "text"
        ].to_pylist()
        if text
    }
    assert texts
    assert all(made.scored()[text] == before[text] for text in texts), "no committed unit is scored again"


def test_a_layer_that_is_finished_after_a_later_one_keeps_its_place(made: Labelling) -> None:
    early, late = (score(made, "--scorer", f"{column}=probe") for column in ("early", "late"))
    dying = made.env | {VARIABLE: "staged-written=kill@1"}
    log = made.folder / "phf.log"
    assert forked.start(early, folder=made.folder, env=dying, log=log).wait().died
    other = run(made, [*early, "--threshold", "early=0.9"])
    assert other.returncode == 2, "a column that was begun is resumed as it was begun"
    assert "thresholds.early: was 'p50', now '0.9'" in other.stderr
    assert run(made, late).returncode == 0
    done = run(made, early)
    assert done.returncode == 0, done.stderr
    assert list(open_dataset(str(made.output)).manifest.scorers) == ["probe", "early", "late"]
    assert verify(str(made.output)).problems == []
    assert unfinished(open_storage(str(made.output))) == ()


def test_an_extension_after_score_and_a_repair_of_two_layers_start_a_ray_for_each(tmp_path: Path) -> None:
    made = Labelling(tmp_path)
    made.write(["One. Two."])
    made.run_undisturbed()
    assert run(made, score(made, "--scorer", "style=probe:0.0", "--threshold", "style=0")).returncode == 0
    made.write(["Three. Four."], "more.jsonl")
    result = made.run("--extend")
    assert result.returncode == 0, result.stderr
    assert len(rows(made.output, "probe", "style")) == 2
    for part in made.output.glob("units/*/00000/00000001.*.parquet"):
        part.write_bytes(part.read_bytes()[:-1])
    arguments = [sys.executable, "-m", "phf", "repair", str(made.output)]
    repaired = subprocess.run(
        arguments, cwd=made.folder, env=made.env, capture_output=True, text=True, timeout=120, check=False
    )
    assert repaired.returncode == 0, repaired.stderr + repaired.stdout
    assert repaired.stdout.count("the unit is labelled again") == 2
    assert verify(str(made.output)).problems == []
