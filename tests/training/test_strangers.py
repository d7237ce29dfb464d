"""Foreign runs and token stores: nothing is read, written or deleted outside their folders."""

import json
import os
import re
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from typer.testing import CliRunner

from phf import app
from pipeline.dataset import open_dataset
from scorers.errors import UserError
from tests.training.jobs import job_config, run_job
from training.comparison.page import check_output
from training.data.cache import build_once
from training.data.prepare import tokenize
from training.data.store import META_NAME, TokenStore
from training.evaluation.checks import main_data
from training.model.language_model import load_model
from training.runs import best, checkpoints
from training.runs.checkpoints import MARKER_NAME, Damage
from training.runs.folder import RunFolder
from training.trackers.open import _known

HOSTILE = ["../x", "/tmp/x", "a/../../x", "a//b", "./a", "C:\\x", "a\0b", "", "a\x1b[31m"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, code_dataset: Path) -> Path:
    output = tmp_path_factory.mktemp("strangers") / "run"
    run_job(code_dataset, output, "mle", training__save_every=4, training__num_tokens=8 * 4 * 32)
    (output / "evaluation" / "others" / "pep8").mkdir(parents=True)
    (output / "evaluation" / "report.json").write_text("{}")
    return output


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "precious").write_text("precious")
    return Path(shutil.copytree(trained, tmp_path / "run"))


def state(folder: Path) -> dict[str, Any]:
    return {
        str(path): (path.read_bytes(), path.stat().st_mtime_ns) if path.is_file() else None
        for path in [folder, *sorted(folder.rglob("*"))]
    }


def invoke(*words: str | Path) -> tuple[int, str]:
    ended = CliRunner().invoke(app, [str(word) for word in words])
    assert ended.exception is None or isinstance(ended.exception, SystemExit), ended.exception
    assert "defect" not in ended.output, ended.output
    return ended.exit_code, ended.output


def test_no_command_works_on_a_run_with_a_link_in_it(
    run: Path, tmp_path: Path, trained: Path, code_dataset: Path
) -> None:
    places = [path.relative_to(run) for path in sorted(run.rglob("*"))]
    assert {"checkpoints", "run.json", "config.yaml", ".lock", "metrics.jsonl", "model", "evaluation"} <= {
        str(place) for place in places
    }
    for place in places:
        kept = tmp_path / "kept"
        (run / place).rename(kept)
        (run / place).symlink_to(kept)
        before = state(tmp_path)
        for words in (
            ("export-model", run, "--output", tmp_path / "exported"),
            ("evaluate", run),
            ("compare", run, trained, "--output", tmp_path / "compared"),
        ):
            status, printed = invoke(*words)
            assert status == 2
            assert f"{place} is a link" in " ".join(printed.split()), (place, printed)
        with pytest.raises(UserError, match="is a link"):
            run_job(code_dataset, run, "mle", training__save_every=4, training__num_tokens=8 * 4 * 32)
        assert state(tmp_path) == before
        (run / place).unlink()
        kept.rename(run / place)


def test_a_run_whose_folder_is_a_link_works(run: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("run")
    assert invoke("export-model", link, "--output", tmp_path / "exported")[0] == 0
    assert (tmp_path / "exported" / "model.safetensors").is_file()


def test_links_created_by_wandb_are_allowed(run: Path) -> None:
    (run / "wandb" / "run-1" / "logs").mkdir(parents=True)
    (run / "wandb" / "latest-run").symlink_to("run-1")
    (run / "wandb" / "run-1" / "logs" / "debug-core.log").symlink_to("/tmp/core-debug.log")
    RunFolder.existing(run)
    (run / "wandb" / "run-1" / "x").symlink_to("/etc")
    with pytest.raises(UserError, match=r"wandb/run-1/x is a link"):
        RunFolder.existing(run)


@pytest.mark.parametrize("path", HOSTILE)
def test_a_checkpoint_that_names_a_file_elsewhere_is_damaged(run: Path, tmp_path: Path, path: str) -> None:
    folder = checkpoints.checkpoint_path(RunFolder(run).checkpoints, 8)
    marker = json.loads((folder / MARKER_NAME).read_text())
    marker["files"][0]["path"] = path
    (folder / MARKER_NAME).write_text(json.dumps(marker))
    found = checkpoints.verify(folder)
    assert isinstance(found, Damage)
    assert "files.0.path" in found.reason
    assert "not a plain relative path" in found.reason
    status, printed = invoke("export-model", run, "--step", "8", "--output", tmp_path / "exported")
    assert status == 2
    assert "files.0.path" in printed
    assert not (tmp_path / "exported").exists()


def test_a_checkpoint_of_another_step_is_damaged(run: Path) -> None:
    folder = checkpoints.checkpoint_path(RunFolder(run).checkpoints, 8)
    marker = json.loads((folder / MARKER_NAME).read_text())
    for step, reason in ((4, "of step 4"), (10**9, "of step 1,000,000,000"), (-1, "at step: ")):
        (folder / MARKER_NAME).write_text(json.dumps({**marker, "step": step}))
        found = checkpoints.verify(folder)
        assert isinstance(found, Damage)
        assert reason in found.reason


def test_an_export_does_not_replace_a_link(run: Path, tmp_path: Path) -> None:
    for target in ("home", "nowhere"):
        output = tmp_path / f"to-{target}"
        output.symlink_to(target)
        status, printed = invoke("export-model", run, "--output", output)
        assert status == 2
        assert "exists already" in printed
    assert not (tmp_path / "nowhere").exists()
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["precious"]


def test_a_comparison_does_not_overwrite_a_link(tmp_path: Path) -> None:
    output = tmp_path / "output"
    output.mkdir()
    (output / "comparison.json").write_text("{}")
    check_output(output)
    (output / "trade_off.png").symlink_to(tmp_path / "precious.png")
    with pytest.raises(UserError, match=r"trade_off\.png is a link"):
        check_output(output)


@pytest.fixture
def store(code_dataset: Path, tmp_path: Path, trained: Path) -> Path:
    config = RunFolder(trained).read_config().data
    folder = tmp_path / "store"
    tokenize(config.model_copy(update={"store": str(folder)}), [open_dataset(str(code_dataset))])
    return folder


def test_a_token_store_does_not_read_outside_its_folder(store: Path, tmp_path: Path) -> None:
    TokenStore.open(store)
    meta = json.loads((store / META_NAME).read_text())
    for path in HOSTILE:
        hostile = {**meta, "files": {path: 1, **meta["files"]}}
        (store / META_NAME).write_text(json.dumps(hostile))
        with pytest.raises(UserError, match=r"field files\..*not a plain relative path"):
            TokenStore.open(store)
    for column in ("../x", "/x", "a/b"):
        (store / META_NAME).write_text(json.dumps({**meta, "columns": [column]}))
        with pytest.raises(UserError, match=r"field columns\.0.*not a column name"):
            TokenStore.open(store)
    (store / META_NAME).write_text(json.dumps(meta))
    (store / "tokens.arrow").rename(tmp_path / "tokens.arrow")
    (store / "tokens.arrow").symlink_to(tmp_path / "tokens.arrow")
    with pytest.raises(UserError, match=r"tokens\.arrow is a link"):
        TokenStore.open(store)
    (store / "tokens.arrow").unlink()
    os.mkfifo(store / "tokens.arrow")
    with pytest.raises(UserError, match="neither a file nor a folder"):
        TokenStore.open(store)


def test_an_array_longer_than_its_file_is_damaged(store: Path) -> None:
    whole = (store / "sentence_offsets.arrow").read_bytes()
    opened = TokenStore.open(store)
    length = struct.pack("<q", opened.num_sentences + 1)
    assert whole.count(length) >= 2
    # Read with this length, it would reach past the end of the mapped file.
    (store / "sentence_offsets.arrow").write_bytes(whole.replace(length, struct.pack("<q", 2**40)))
    with pytest.raises(UserError, match=r"damaged: sentence_offsets\.arrow"):
        _ = opened.sentence_offsets
    columns = [
        [pa.array(["text"] * (opened.num_sentences + 1))],
        [pa.array([0.5] * (opened.num_sentences + 1))],
        [pa.array([None, 1], pa.int64())],
        [pa.array([0, 1])],
        [pa.array([7] * (opened.num_sentences + 1))],
        [pa.array([1]), pa.array([2])],
        [],
    ]
    for arrays in columns:
        batch = pa.record_batch(arrays, names=[f"value{number}" for number in range(len(arrays))])
        with (
            pa.OSFile(str(store / "sentence_offsets.arrow"), "wb") as sink,
            pa.ipc.new_file(sink, batch.schema) as writer,
        ):
            writer.write_batch(batch)
        with pytest.raises(UserError, match=r"damaged: sentence_offsets\.arrow"):
            _ = TokenStore(store, opened.meta).sentence_offsets


def test_a_model_with_any_config_never_crashes(run: Path) -> None:
    file = run / "model" / "generation_config.json"
    good = json.loads(file.read_text())
    for name, value in (("suppress_tokens", 5), ("suppress_tokens", ["x", -1]), ("eos_token_id", {"a": 1})):
        file.write_text(json.dumps({**good, name: value}))
        assert invoke("generate", run, "-n", "1", "--max-new-tokens", "2")[0] in (0, 2), (name, value)
    file.write_text(json.dumps(good))
    file = run / "model" / "config.json"
    good = json.loads(file.read_text())
    for name, value in (
        ("activation_function", None),
        ("dtype", []),
        ("n_head", 0),
        ("n_head", -1),
        ("n_layer", "x"),
        ("n_embd", -1),
    ):
        file.write_text(json.dumps({**good, name: value}))
        status, printed = invoke("generate", run, "-n", "1", "--max-new-tokens", "2")
        assert status == 2, (name, value, printed)
        assert "Cannot load a model from" in printed


def test_a_store_may_be_a_link_that_the_user_names(store: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(store)
    assert TokenStore.open(tmp_path / "link").num_tokens


def test_a_linked_default_store_is_refused(code_dataset: Path, tmp_path: Path, trained: Path, store: Path) -> None:
    dataset = open_dataset(str(shutil.copytree(code_dataset, tmp_path / "labelled")))
    config = RunFolder(trained).read_config().data
    _, ((found, _),) = tokenize(config.model_copy(update={"store": None}), [dataset])
    assert found.path.parent == tmp_path / "labelled.tokens"
    shutil.rmtree(found.path)
    found.path.symlink_to(store)
    with pytest.raises(UserError, match="is a link"):
        tokenize(config.model_copy(update={"store": None}), [dataset])


def test_nothing_is_written_through_a_link_beside_the_dataset(
    code_dataset: Path, tmp_path: Path, trained: Path
) -> None:
    dataset = open_dataset(str(shutil.copytree(code_dataset, tmp_path / "labelled")))
    (tmp_path / "home").mkdir()
    (tmp_path / "labelled.tokens").symlink_to("home")
    config = RunFolder(trained).read_config().data
    for tokenizer in (config.tokenizer, None):
        with pytest.raises(UserError, match=r"labelled\.tokens is a link, and phf does not follow"):
            tokenize(config.model_copy(update={"store": None, "tokenizer": tokenizer}), [dataset])
    assert list((tmp_path / "home").iterdir()) == []


def test_a_linked_lock_does_not_truncate_its_target(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / ".store.lock").symlink_to("precious")
    with pytest.raises(UserError, match="Cannot write"):
        build_once(tmp_path / "store", lambda folder: None)
    assert (tmp_path / "precious").read_text() == "precious"


def test_an_evaluation_builds_nothing_at_paths_from_the_run(run: Path, tmp_path: Path) -> None:
    config = RunFolder(run).read_config()
    elsewhere = config.data.model_copy(update={"store": str(tmp_path / "home" / "new")})
    assert main_data(config.model_copy(update={"data": elsewhere}), None).data.store is None
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / META_NAME).write_text("{}")
    there = config.data.model_copy(update={"store": str(tmp_path / "there")})
    assert main_data(config.model_copy(update={"data": there}), None).data.store == str(tmp_path / "there")


@pytest.mark.parametrize("name", [*HOSTILE, "a/b", ".."])
def test_a_tracker_id_is_not_a_path(tmp_path: Path, name: str) -> None:
    file = tmp_path / "trackers.json"
    file.write_text(json.dumps({"wandb": {"id": "abc-1", "lines": 3, "sha256": "ab"}}))
    assert _known(file) == {"wandb": {"id": "abc-1", "lines": 3, "sha256": "ab"}}
    file.write_text(json.dumps({"wandb": {"id": name, "lines": 3, "sha256": "ab"}}))
    assert _known(file) == {}
    for text in ("[" * 100_000, '{"wandb": {"id": "abc", "lines": 1e400}}', '{"wandb": {"id": 5}}'):
        file.write_text(text)
        assert _known(file) == {}


def test_paths_in_a_run_are_only_read(run: Path, tmp_path: Path, trained: Path, code_dataset: Path) -> None:
    # The stores beside the dataset exist already.
    named = [(name, key) for name in ("run.json", "config.yaml") for key in strings_in(content_of(run / name))]
    assert {".".join(map(str, key)) for _, key in named} >= {"data.dataset", "data.tokenizer", "dataset.uri", "output"}
    before = state(tmp_path / "home"), sorted(path.name for path in code_dataset.parent.iterdir())
    for name, key in named:
        content = (run / name).read_text()
        for path in (
            str(tmp_path / "home" / "new"),
            "../home/new",
            str(tmp_path / "home" / "precious"),
            "a\0b",
            "\x1b[31m",
        ):
            changed = content_of(run / name)
            holder = changed
            for part in key[:-1]:
                holder = holder[part]
            holder[key[-1]] = path
            (run / name).write_text(yaml.safe_dump(changed) if name.endswith("yaml") else json.dumps(changed))
            for words in (
                ("export-model", run, "--output", tmp_path / "exported"),
                ("evaluate", run),
                ("compare", run, trained, "--output", tmp_path / "compared"),
            ):
                invoke(*words)
            shutil.rmtree(tmp_path / "exported", ignore_errors=True)
            now = state(tmp_path / "home"), sorted(path.name for path in code_dataset.parent.iterdir())
            assert now == before, (name, key, path)
        (run / name).write_text(content)


def test_nested_aliases_are_damaged(tmp_path: Path) -> None:
    # Each list refers to the previous one nine times: expanded, 9^12 values.
    nested = "".join(f", &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]" for level in range(1, 12))
    (tmp_path / "config.yaml").write_text(f"model: {{overrides: {{k: [&a0 [x]{nested}]}}}}\n")
    with pytest.raises(UserError, match="YAML aliases"):
        RunFolder(tmp_path).read_config()


@pytest.mark.parametrize("key", ["column", "context_length"])
def test_a_stored_configuration_leaves_nothing_open(tmp_path: Path, key: str) -> None:
    # Filling it in would load the model that the file names.
    config = job_config(tmp_path / "labelled", tmp_path)
    open_data = config.data.model_copy(update={key: None})
    foreign = config.model.model_copy(update={"name": "somebody/model"})
    RunFolder(tmp_path).write_config(config.model_copy(update={"data": open_data, "model": foreign}))
    with pytest.raises(UserError, match=rf"config\.yaml is damaged.*data\.{key}"):
        RunFolder(tmp_path).read_config()


def test_deeply_nested_brackets_are_damaged_at_once(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("model: " + "[" * 100_000)
    with pytest.raises(UserError, match="nested more than"):
        RunFolder(tmp_path).read_config()


@pytest.mark.parametrize(
    "line",
    [
        "[" * 100_000,
        "{}",
        '{"step": null}',
        '{"step": -1}',
        '{"step": 1, "loss": "text"}',
        '{"step": 1, "loss": 1e400}',
        '{"step": 1, "loss": NaN}',
        f'{{"step": 1, "tokens": {"9" * 400}}}',
        '{"step": 1, "evaluation": 5}',
        '{"step": 1, "loss": {"a": 1}}',
        '{"step": 1, "validation": {"loss": []}}',
        '{"step": 1, "text": "' + "x" * 2_000_000 + '"}',
    ],
)
def test_a_line_without_figures_is_damaged(tmp_path: Path, line: str) -> None:
    good = '{"step": 1, "loss": 0.5, "grad_norm": null, "seconds": {"data": 1}, "validation": {"loss": 2}}'
    file = tmp_path / "metrics.jsonl"
    file.write_text(f"{good}\n{good[:20]}")
    assert RunFolder(tmp_path).read_metrics() == [json.loads(good)]
    file.write_text(f"{good}\n{line}\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2 is damaged"):
        RunFolder(tmp_path).read_metrics()


def test_damaged_figures_are_not_returned(tmp_path: Path) -> None:
    file = tmp_path / best.FIGURES_NAME
    file.write_text('{"4": {"loss": 1.5}}')
    assert best.read(tmp_path) == {4: {"loss": 1.5}}
    for text in ("[" * 100_000, "[]", "null", '{"4": {"a": "x"}}', '{"4": {"a": 1e400}}', '{"x": {"a": 1}}', "{" * 9):
        file.write_text(text)
        assert best.read(tmp_path) == {}


@pytest.mark.parametrize(
    "changes",
    [
        {"seconds": "@1e400"},
        {"step": "@" + "9" * 400},
        {"stream": {"tags": 5}},
        {"stream": {"documents_used": "x"}},
        {"deepspeed": {"a": "@NaN"}},
    ],
)
def test_impossible_facts_are_damaged(run: Path, changes: dict[str, Any]) -> None:
    file = run / "run.json"
    file.write_text(re.sub(r'"@([^"]*)"', r"\1", json.dumps(json.loads(file.read_text()) | changes)))
    with pytest.raises(UserError, match=r"run\.json is damaged, or of another version of phf, at "):
        RunFolder(run).read_facts()


@pytest.mark.parametrize("changes", [{"skips": [[2, -10]]}, {"origin": {"run": "a", "step": -1, "checkpoint": "ab"}}])
def test_facts_of_a_run_count_from_zero(run: Path, changes: dict[str, Any]) -> None:
    file = run / "run.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(UserError, match=r"run\.json"):
        RunFolder(run).read_facts()


def content_of(file: Path) -> Any:
    return yaml.safe_load(file.read_text())


def strings_in(value: Any, key: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the keys of strings in a JSON value that are paths, or might be used as one."""
    if isinstance(value, dict | list):
        for name, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield from strings_in(each, (*key, name))
    elif isinstance(value, str) and ("/" in value or key[-1] in ("name", "store", "uri", "column")):
        yield key


def test_a_model_may_consist_of_links_as_in_the_hub_cache(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "snapshots" / "1"
    folder.mkdir(parents=True)
    (run / "model").rename(tmp_path / "blobs")
    for file in (tmp_path / "blobs").iterdir():
        (folder / file.name).symlink_to(f"../../blobs/{file.name}")
    assert load_model(folder).causal.config.vocab_size
