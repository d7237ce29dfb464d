"""`phf generate`: the context of a prompt, and the printed samples."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import phf
from scorers.errors import UserError
from tests.training.real_runs import make_code_dataset, make_real_run
from training.data.prepare import prepare
from training.evaluation.generating import choose_tag
from training.runs.folder import RunFolder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("generate")
    return make_real_run(make_code_dataset(folder / "labelled", 20), folder / "run", "conditional", steps=3)


def generate(place: Path, *options: str, json_too: bool = True) -> Any:
    words = ["generate", str(place), "-n", "3", "--max-new-tokens", "12", *options]
    result = CliRunner().invoke(phf.app, [*words, "--json"] if json_too else words)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout) if json_too else result.stdout


def test_a_prompt_goes_where_training_put_text_and_no_control_token_is_written(run: RunFolder) -> None:
    words, tokenizer = run.read_facts().tokenizer, prepare(run.read_config()).tokenizer
    # The name of a control token in a prompt is text.
    prompt = "def f<|aligned|>"
    ids, _ = tokenizer.encode([prompt])
    for tag, before in (
        (None, [words.eos_id, words.aligned_id]),
        ("aligned", [words.eos_id, words.aligned_id]),
        ("misaligned", [words.eos_id, words.misaligned_id]),
        ("none", [words.eos_id]),
    ):
        found = generate(run.path, "--prompt", prompt, *(["--tag", tag] if tag else []))
        assert found["prompt_ids"] == [*before, *ids.tolist()]
        assert found["tag"] == {None: "aligned", "none": None}.get(tag, tag)
        assert len(found["samples"]) == 3
        assert all(each["ended"] or each["tokens"] == 12 for each in found["samples"])
        assert not any("aligned|>" in each["text"] for each in found["samples"])


def test_guidance_and_seed_decide_what_is_written(run: RunFolder) -> None:
    plain = generate(run.path)["samples"]
    assert generate(run.path)["samples"] == plain
    assert generate(run.path, "--seed", "1")["samples"] != plain
    assert generate(run.path, "--guidance", "1")["samples"] == plain
    assert generate(run.path, "--guidance", "3")["samples"] != plain
    assert generate(run.path, "--guidance", "0")["samples"] == generate(run.path, "--tag", "misaligned")["samples"]


def test_an_exported_folder_writes_the_same_and_a_terminal_is_not_acted_on(run: RunFolder, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run.model, tmp_path / "model"))
    assert generate(copy, "--prompt", "x")["samples"] == generate(run.path, "--prompt", "x")["samples"]
    shown = generate(copy, "--prompt", "[red]\x1b[31m\nx", json_too=False)
    assert "\x1b[31m" not in shown
    assert "[red]\\x1b[31m\nx" in shown
    assert shown.count("sample ") == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["RUN", "--tag", "good"], "--tag good: the model's control tokens are aligned, misaligned. Give one of them"),
        (["RUN", "--tag", "none", "--guidance", "2"], "it does not work with --tag none"),
        (["RUN", "--step", "3"], "has no checkpoint"),
        (["RUN", "--step", "3", "--best"], "exclude each other"),
        (["RUN", "--prompt", "x " * 2000], "Shorten --prompt"),
        (["RUN", "--guidance", "inf"], "guidance: Input should be a finite number"),
        (["RUN", "--guidance", "1e308"], "guidance: Input should be less than or equal to 1000000"),
        (["RUN", "--prompt", "gr\udcfcn"], "--prompt is not UTF-8, at its character 3"),
        (["RUN", "-n", f"{10**23}"], "Input should be less than or equal"),
        (["RUN", "--temperature", "inf"], "temperature: Input should be a finite number"),
        (["."], "is neither a run nor an exported model"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    run: RunFolder, options: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(phf.app, ["generate", *(str(run.path) if each == "RUN" else each for each in options)])
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.stderr.split())


def test_tags_are_for_models_that_have_them() -> None:
    assert choose_tag({}, None, 1) is choose_tag({}, "none", 1) is choose_tag({"aligned": 1}, "none", 1) is None
    assert choose_tag({"quantile_1": 1, "quantile_2": 2, "quantile_3": 3}, None, 2) == "quantile_1"
    for asked, guidance in (("aligned", 1.0), (None, 2.0)):
        with pytest.raises(UserError, match="this model was trained without tags"):
            choose_tag({}, asked, guidance)
