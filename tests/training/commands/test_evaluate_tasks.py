"""`phf evaluate --tasks`: figures of the lm-evaluation-harness equal our own, and task files run no code."""

import importlib.util
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import phf
from scorers.errors import UserError
from tests.training.real_runs import make_code_dataset, make_real_run
from training.capability.task_files import check_task_path
from training.data.prepare import prepare
from training.data.tagged_stream import DocumentTokens
from training.evaluation.generating import Writer, open_writer
from training.evaluation.held_out_loss import held_out_loss
from training.export.model import export_model
from training.runs.folder import RunFolder
from training.runs.task_report import read_task_report, task_report_path

needs_harness = pytest.mark.skipif(
    any(importlib.util.find_spec(each) is None for each in ("lm_eval", "accelerate")), reason="lm-eval is not installed"
)
DOCUMENTS = [
    {"text": "value_1 = 3\n", "question": "value_2 = ", "choices": ["1\n", "2 ;x=1\n"], "answer": 0},
    {"text": "value_7=2 ;x=1\n" * 3, "question": "value_3=", "choices": ["5\n", "7 ;\n"], "answer": 1},
    {"text": "x = value_1\n", "question": "", "choices": ["value", "y"], "answer": 0},
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("tasks")
    run = make_real_run(make_code_dataset(folder / "labelled", 20), folder / "run", "conditional")
    # Let tags matter as much as text does.
    model = AutoModelForCausalLM.from_pretrained(run.model)
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.1, generator=generator)
    model.save_pretrained(run.model)
    return run


@pytest.fixture(scope="module")
def writer(run: RunFolder) -> Writer:
    return open_writer(run.model, "cpu")


@pytest.fixture
def task_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "mine"
    folder.mkdir()
    (tmp_path / "documents.jsonl").write_text("".join(json.dumps(each) + "\n" for each in DOCUMENTS))
    metrics = [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}]
    write(folder / "rolling.yaml", tmp_path, output_type="loglikelihood_rolling", doc_to_text="",
          doc_to_target="{{text}}", metric_list=metrics)  # fmt: skip
    write(folder / "choices.yaml", tmp_path, output_type="multiple_choice", doc_to_text="{{question}}",
          doc_to_choice="choices", doc_to_target="answer", target_delimiter="",
          metric_list=[{"metric": "acc", "higher_is_better": True}])  # fmt: skip
    write(folder / "written.yaml", tmp_path, output_type="generate_until", doc_to_text="{{question}}",
          doc_to_target="{{choices[0]}}", metric_list=[{"metric": "exact_match"}],
          generation_kwargs={"until": ["\n"], "max_gen_toks": 8})  # fmt: skip
    return folder


def write(path: Path, data: Path, **fields: Any) -> Path:
    config = {
        "task": path.stem,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data / "documents.jsonl")}},
        "test_split": "test",
        "metadata": {"version": 2.0},
        **fields,
    }
    path.write_text(yaml.safe_dump(config))
    return path


def evaluate(run: RunFolder, *options: Any, status: int = 0) -> Any:
    result = CliRunner().invoke(phf.app, ["evaluate", str(run.path), *map(str, options)])
    assert result.exit_code == status, f"{result.output}\n{result.exception!r}"
    return result.stdout if status == 0 else " ".join(result.stderr.split())


def figures(run: RunFolder, *options: Any) -> dict[str, Any]:
    [found] = json.loads(evaluate(run, *options, "--json"))["runs"]
    return {
        f"{task['name']}/{figure['metric']}": figure
        for report in found["reports"]
        for task in report["tasks"]
        for figure in task["figures"]
    }


def own_nats(writer: Writer, context: str, text: str) -> float:
    """Our own loss of a text after the same prefix and context."""
    before = writer.prompt_ids(context, "aligned")
    ids = np.array([*before, *writer.tokenizer.encode([text])[0]], dtype=np.int64)
    document = DocumentTokens(ids, np.arange(len(ids)) >= len(before), len(text.encode()))
    assert len(ids) <= 64
    return float(held_out_loss(writer.model, [document], context_length=64).nats[0])


@needs_harness
def test_the_harness_measures_our_own_loss(run: RunFolder, writer: Writer, task_folder: Path) -> None:
    found = figures(run, "--tasks", task_folder)
    nats = sum(own_nats(writer, "", each["text"]) for each in DOCUMENTS)
    size = sum(len(each["text"].encode()) for each in DOCUMENTS)
    words = sum(len(re.split(r"\s+", each["text"])) for each in DOCUMENTS)
    assert found["rolling/bits_per_byte"]["estimate"]["value"] == pytest.approx(nats / math.log(2) / size, abs=1e-4)
    expected = math.exp(nats / words)
    assert found["rolling/word_perplexity"]["estimate"]["value"] == pytest.approx(expected, rel=1e-4)
    right = []
    for each in DOCUMENTS:
        losses = [own_nats(writer, each["question"], choice) for choice in each["choices"]]
        right.append(int(np.argmin(losses)) == each["answer"])
    accuracy = found["choices/acc"]
    assert accuracy["estimate"]["value"] == pytest.approx(np.mean(right))
    # The harness's standard error, and the normal interval.
    error = np.std(right, ddof=1) / math.sqrt(len(right))
    assert accuracy["standard_error"] == pytest.approx(error)
    assert accuracy["estimate"]["high"] - accuracy["estimate"]["low"] == pytest.approx(2 * 1.959964 * error)
    assert accuracy["higher_is_better"] is True
    report = read_task_report(run, "mine")
    assert report is not None
    assert report.prefix == writer.prompt_ids("", "aligned")
    assert (report.condition, report.request, report.run != "") == ("aligned", str(task_folder), True)
    assert [(each.name, each.documents, each.version) for each in report.tasks if each.name == "choices"] == [
        ("choices", 3, "2.0")
    ]
    assert "written/exact_match" in found
    assert not any(each["text"] in task_report_path(run, "mine").read_text() for each in DOCUMENTS)


@needs_harness
def test_the_harness_alone_measures_the_same_on_an_export_with_its_tag(
    run: RunFolder, writer: Writer, tmp_path: Path
) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    data, words = prepare(run.read_config()), run.read_facts().tokenizer
    folder = tmp_path / "export"
    export_model(
        folder, writer.model, {f"causal.{key}": value for key, value in writer.model.state_dict().items()},
        data.tokenizer.with_control_tokens(), eos_id=words.eos_id, control_ids=words.control_ids,
        condition_id=words.aligned_id, context_length=64,
    )  # fmt: skip
    model = HFLM(pretrained=str(folder), device="cpu", batch_size=2)
    pairs = [("value_2 = ", "1\n"), ("value_3", " = 7 ;\n"), ("x", "=1\n")]
    requests = [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)]
    theirs = [nats for nats, _ in model.loglikelihood(requests, disable_tqdm=True)]
    # It moves the spaces at the end of a context to the continuation.
    moved = [(context.rstrip(), context[len(context.rstrip()) :] + text) for context, text in pairs]
    whole = [own_nats(writer, "", context + text) - own_nats(writer, "", context) for context, text in moved]
    assert theirs == pytest.approx([-each for each in whole], abs=1e-4)


@needs_harness
def test_long_contexts_and_texts_keep_the_prefix(run: RunFolder, writer: Writer) -> None:
    from lm_eval.api.instance import Instance

    from training.capability.language_model import PrefixedModel

    seen: list[list[int]] = []
    model = PrefixedModel(writer, "aligned", 4, lambda *_: None)
    forward = model._model_call
    model._model_call = lambda inps, **_: seen.extend(inps.tolist()) or forward(inps)  # type: ignore[func-returns-value]
    text = "value_1 = 22\n" * 40
    assert model.max_length == writer.context_length
    [long] = model.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0)])
    assert len(seen) > 2
    assert all(row[:2] == model.prefix for row in seen)
    ids = writer.tokenizer.encode([text])[0].tolist()
    nats, size = 0.0, model.max_length - 2
    for start in range(0, len(ids), size):
        row = [*model.prefix, *ids[max(0, start - 1) : start + size]]
        with torch.no_grad():
            logits = torch.log_softmax(writer.model(torch.tensor([row[:-1]])).logits[0].double(), -1)
        count = len(ids[start : start + size])
        nats += float(logits[-count:].gather(1, torch.tensor(row[-count:])[:, None]).sum())
    assert long == pytest.approx(nats, abs=1e-3)
    seen.clear()
    model.loglikelihood([Instance("loglikelihood", {}, (text, "x = 1\n"), 0)])
    assert [len(row) for row in seen] == [model.max_length]
    assert seen[0][:2] == model.prefix
    padded, mask = model.tok_batch_encode([text, "x"], left_truncate_len=20)
    assert padded[0, :2].tolist() == padded[1, mask[1] == 1][:2].tolist() == model.prefix
    assert padded.shape == (2, 20)


@needs_harness
def test_figures_are_reused_until_something_changes(run: RunFolder, task_folder: Path) -> None:
    file = task_folder / "choices.yaml"
    path = task_report_path(run, "choices")
    shown = evaluate(run, "--tasks", file)
    assert "choices" in shown
    assert "<|aligned|>" in shown
    first = path.read_bytes()
    evaluate(run, "--tasks", file)
    assert path.read_bytes() == first
    # Damaged figures are measured again.
    path.write_text("{")
    evaluate(run, "--tasks", file)
    assert read_task_report(run, "choices") is not None
    evaluate(run, "--tasks", file, "--task-limit", 2)
    report = read_task_report(run, "choices")
    assert report is not None
    assert (report.tasks[0].documents, report.tasks[0].documents_in_all) == (2, 3)
    # Its data changed: the old figures do not count.
    evaluate(run, "--tasks", file)
    before = path.read_bytes()
    data = task_folder.parent / "documents.jsonl"
    data.write_text(data.read_text().replace('"answer": 0', '"answer": 1'))
    evaluate(run, "--tasks", file)
    assert path.read_bytes() != before


HOSTILE = {
    "function": ("doc_to_text: !function evil.touch\n", "runs Python of its own (`!function evil.touch`)"),
    "tag": ("doc_to_text: !!python/object/apply:os.system [id]\n", "it is not plain YAML"),
    "metric": ("metric_list: [{metric: ./evil}]\n", "a metric that is not the harness's own"),
    "hub metric": ("metric_list: [{metric: acc, hf_evaluate: true}]\n", "a metric that is not the harness's own"),
    "pickle": ("dataset_path: pandas\n", "reads data by `dataset_path: pandas`"),
    "cache": ("dataset_kwargs: {cache_dir: /somewhere}\n", "has dataset_kwargs other than"),
    "generate": ("generation_kwargs: {custom_generate: a/b}\n", "generates by code of its own"),
    "prompts": ("use_prompt: prompts.yaml:x\n", "runs other code (`use_prompt`)"),
    "aliases": ("a: &a [x]\nb: *a\n", "may have no aliases"),
    "no task": ("task: [1, 2]\n", "defines no task"),
}


@needs_harness
@pytest.mark.parametrize("name", HOSTILE)
def test_task_files_that_could_run_code_are_refused(run: RunFolder, tmp_path: Path, name: str) -> None:
    lines, problem = HOSTILE[name]
    (tmp_path / "evil.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n")
    task = "" if name == "no task" else "task: x\n"
    (tmp_path / "included.yaml").write_text(lines)
    for file, content in (("direct.yaml", task + lines), ("including.yaml", f"{task}include: included.yaml\n")):
        (tmp_path / file).write_text(content)
        assert problem in evaluate(run, "--tasks", tmp_path / file, status=2)
        if name == "no task":
            break
    assert not (tmp_path / "ran").exists()


@needs_harness
def test_templates_are_rendered_in_a_sandbox(run: RunFolder, task_folder: Path, tmp_path: Path) -> None:
    evil = "{{ cycler.__init__.__globals__.os.system('touch " + str(tmp_path / "ran") + "') }}"
    file = write(
        task_folder / "evil.yaml", tmp_path, output_type="loglikelihood", doc_to_text=evil, doc_to_target="{{text}}"
    )
    assert "evil.yaml: SecurityError" in evaluate(run, "--tasks", file, status=2)
    assert not (tmp_path / "ran").exists()


@needs_harness
def test_code_runs_if_it_is_allowed(run: RunFolder, task_folder: Path, tmp_path: Path) -> None:
    file = write(task_folder / "coded.yaml", tmp_path, output_type="loglikelihood", doc_to_target="{{choices[0]}}",
                 metric_list=[{"metric": "perplexity"}])  # fmt: skip
    file.write_text(file.read_text() + "doc_to_text: !function helper.question\n")
    (task_folder / "helper.py").write_text("def question(doc):\n    return doc['question'] + 'x'\n")
    assert "--allow-task-code" in evaluate(run, "--tasks", file, status=2)
    first = figures(run, "--tasks", file, "--allow-task-code")["coded/perplexity"]["estimate"]["value"]
    assert first > 1


@pytest.mark.parametrize(
    "text",
    [
        "metric_list: [{metric: [acc]}]",
        "dataset_path: [json]",
        "dataset_path: {json: 1}",
        "dataset_kwargs: 5",
        "dataset_kwargs: [{a: 1}]",
        "generation_kwargs: 7",
        'include: "a\\0b"',
        "include: ~nobody-of-this-name/x.yaml",
        f"dataset_path: {'a' * 300}/../../b",
        f"include: {'a' * 300}",
    ],
)
def test_task_files_with_values_of_another_kind_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "odd.yaml").write_text(f"task: odd\n{text}\n")
    with pytest.raises(UserError, match=r"task file .*(odd\.yaml|nobody|a.x00b|aaa)"):
        check_task_path(tmp_path / "odd.yaml", {"acc"}, allow_code=False)


def test_names_that_are_too_long_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "long.yaml").write_text(
        f"task: long\ndataset_path: {'a' * 300}/b\ndataset_kwargs: {{data_files: {'a' * 300}}}\n"
    )
    assert check_task_path(tmp_path / "long.yaml", {"acc"}, allow_code=False).names == ["long"]


@needs_harness
@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["missing.yaml"], "there is no such file or folder"),
        (["a" * 300 + ".yaml"], "there is no such file or folder"),
        (["empty"], "has no task files"),
        (["no_data.yaml"], "Cannot load the task"),
    ],
)
def test_bad_input_is_one_sentence_before_any_work(
    run: RunFolder, task_folder: Path, tmp_path: Path, options: list[str], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    write(tmp_path / "no_data.yaml", tmp_path / "nowhere", output_type="loglikelihood", doc_to_text="x")
    monkeypatch.setattr("training.capability.evaluate_tasks.open_writer", lambda *_: pytest.fail("work was done"))
    stderr = evaluate(run, "--tasks", *(tmp_path / each for each in options), status=2)
    assert problem in stderr
    assert "Traceback" not in stderr


@needs_harness
def test_an_empty_name_is_refused() -> None:
    from training.capability.harness import check_requests

    with pytest.raises(UserError, match="a name is empty"):
        check_requests(["a,"], allow_code=False)


def test_without_the_harness_one_sentence_says_how_to_install_it(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "lm_eval" else find(name, *rest)
    )
    assert "pip install 'phf[lm-eval]'" in evaluate(run, "--tasks", "arc_easy", status=2)
