"""Files of prompts: the formats that are read, and one message for each that cannot be."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scorers.errors import UserError
from training.config import ObjectiveConfig
from training.evaluation.prepare import check_guidance
from training.measuring_config import EvaluationConfig
from training.scenarios.plan import read_prompt_files
from training.scenarios.prompts import GivenPrompt, read_prompts
from training.scenarios.scenario import choose_scenario


def records(path: Path, field: str | None = None) -> list[GivenPrompt]:
    return read_prompts(str(path), field)


def test_the_formats_of_realtoxicityprompts_and_of_the_paper(tmp_path: Path) -> None:
    lines = [
        {"filename": "0", "prompt": {"text": "The men", "toxicity": 0.1}, "challenging": True},
        {"text": "My email is"},
        {"prompt": "Address:"},
    ]  # fmt: skip
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    assert records(path) == [GivenPrompt(1, "The men"), GivenPrompt(2, "My email is"), GivenPrompt(3, "Address:")]
    path.write_text('{"a": {"b": "deep"}, "text": "other"}')
    assert records(path, field="a.b") == [GivenPrompt(1, "deep")]


def test_text_has_a_prompt_per_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("one \r\n\nthree é".encode())
    assert records(path) == [GivenPrompt(1, "one "), GivenPrompt(3, "three é")]


def test_prompts_in_csv_are_text_whatever_they_hold(tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    path.write_text("text\n007\n1.50\n")
    assert [each.text for each in records(path)] == ["007", "1.50"]
    assert [each.text for each in records(path, field="text")] == ["007", "1.50"]


def test_parquet_columns_may_be_nested(tmp_path: Path) -> None:
    path = tmp_path / "prompts.parquet"
    pq.write_table(pa.table({"prompt": [{"text": "a"}, {"text": "b"}], "start": ["c", "d"]}), path)
    assert records(path) == [GivenPrompt(1, "a"), GivenPrompt(2, "b")]
    assert [each.text for each in records(path, field="start")] == ["c", "d"]
    with pytest.raises(UserError, match=r"no column 'body'\. Its columns: prompt, start"):
        records(path, field="body")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.jsonl", None, r"missing\.jsonl: cannot be read: No such file"),
        ("a.jsonl", b"", r"a\.jsonl: the file is empty"),
        ("a.jsonl", b"\n  \n", r"a\.jsonl: the file is empty"),
        ("a.txt", b"", r"a\.txt: the file is empty"),
        ("a.jsonl", b'{"text": "secret"}\n{"text": ', r"a\.jsonl, line 2: not valid JSON"),
        ("a.jsonl", b'{"text": NaN}', r"line 1: not valid JSON"),
        ("a.jsonl", b"[" * 100_000, r"line 1: not valid JSON"),
        ("a.jsonl", b'["secret"]', r"line 1: not a JSON object"),
        ("a.jsonl", b'{"body": "secret"}', r"line 1: no text in 'prompt.text', 'prompt', 'text'.*Name its field"),
        ("a.jsonl", b'{"text": 3}', r"line 1: no text in"),
        ("a.jsonl", b'{"text": ""}', r"line 1: the prompt is empty"),
        ("a.jsonl", b'{"text": "\\ud800"}', r"line 1: half of a surrogate pair"),
        ("a.txt", b"fine\nsecret \xff", r"a\.txt, line 2: not UTF-8"),
        ("a.parquet", b"PAR1secret", r"not a whole PARQUET file"),
        ("a.doc", b"secret", r"unknown kind of file"),
    ],
)
def test_each_problem_is_one_message_without_the_text(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        records(tmp_path / name)
    assert "secret" not in str(caught.value)


def test_a_pipe_or_folder_is_no_file_of_prompts(tmp_path: Path) -> None:
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(UserError, match="Is a directory"):
        records(tmp_path / "folder.txt")


def test_presets_have_the_settings_of_the_paper() -> None:
    rtp = choose_scenario("prompted=some/challenging_rtp.jsonl", "prose")
    assert (rtp.name, rtp.prompts, rtp.continuations) == ("challenging_rtp", "some/challenging_rtp.jsonl", 25)
    assert (rtp.temperature, rtp.top_p, rtp.min_new_tokens, rtp.max_new_tokens) == (0.7, 0.9, 10, 128)
    assert (rtp.control, rtp.score) == ("before", "continuation")
    code = choose_scenario("prompted=functions_csnet.jsonl", "python")
    assert (code.control, code.score, code.max_new_tokens) == ("after", "prompt-and-continuation", 256)
    assert choose_scenario("held-out", "prose", ["max_prompts=7"]).max_prompts == 7
    for kind, longest in (("prose", 128), ("python", 640)):
        plain = choose_scenario("unconditional", kind)
        assert (plain.prompts, plain.continuations, plain.min_new_tokens, plain.max_new_tokens) == (
            "none", 4096, 10, longest,
        )  # fmt: skip


def test_a_file_extends_a_preset_and_names_prompts_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "my scenario.yaml"
    path.write_text("prompts: here.jsonl\nmax_prompts: null\nguidance: 2\n")
    found = choose_scenario(str(path), "prose")
    assert (found.name, found.prompts) == ("my_scenario", str(tmp_path / "here.jsonl"))
    assert (found.max_prompts, found.guidance, found.continuations) == (None, 2.0, 25)
    path.write_text("preset: unconditional\ncontinuations: 64\n")
    found = choose_scenario(str(path), "python")
    assert (found.prompts, found.continuations, found.max_new_tokens) == ("none", 64, 640)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("prompts: held-out\ncontinuation: 3\n", r"continuation: no such setting; did you mean 'continuations'"),
        ("prompts: held-out\ncontrol: behind\n", r"control: Input should be 'before', 'after' or 'none'"),
        ("continuations: 3\n", r"prompts: required, but not given"),
        ("preset: adversarial\n", r"preset 'adversarial': no such preset"),
        ("prompts: held-out\nmin_new_tokens: 9\nmax_new_tokens: 8\n", r"min_new_tokens \(9\) is larger"),
        ("prompts: held-out\ncontrol: none\nguidance: 2\n", r"needs control before or after"),
        ("prompts: [a\n", r"is not valid YAML"),
        ("prompts: held-out\nname: ../elsewhere\n", r"name: String should match pattern"),
    ],
)
def test_a_wrong_scenario_file_is_one_message(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "scenario.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        choose_scenario(str(path), "prose")
    assert "scenario.yaml" in str(caught.value)


def test_the_setting_of_a_plain_evaluation_names_that_of_scenarios() -> None:
    with pytest.raises(UserError, match="without prompts `continuations` in all: set these"):
        choose_scenario("unconditional", "prose", ["num_samples=8"])


def test_two_files_of_one_name_need_another() -> None:
    scenarios = [choose_scenario(f"prompted={folder}/rtp.jsonl", "prose") for folder in ("a", "b")]
    with pytest.raises(UserError, match=r"named 'rtp'.* Describe one in a YAML file with another `name`"):
        read_prompt_files(scenarios)


def test_refused_guidance_names_the_scenario() -> None:
    with pytest.raises(UserError, match=r"^rtp: guidance=2 needs control tokens, which a run of mle"):
        check_guidance(ObjectiveConfig(), EvaluationConfig(guidance=2), "rtp: guidance")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("prompts", "no such scenario"),
        ("prompted", "needs a file of prompts"),
        ("held-out=x.jsonl", "only prompted takes a file"),
    ],
)
def test_a_wrong_name_is_one_message(given: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        choose_scenario(given, "prose")
