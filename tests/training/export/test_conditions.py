"""Exported tokenizers that put a control token before every text."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
from typer.testing import CliRunner

import phf
from scorers.errors import UserError
from tests.training.foreign_tokenizers import byte_level, llama, unigram, unigram_with_bytes, word_piece
from tests.training.jobs import run_job
from tests.training.run_folders import make_run
from tests.training.stores import byte_tokenizer
from training.config import ModelConfig
from training.data.conditions import add_condition, condition_of, without_condition
from training.data.tokenizers import load_tokenizer, wrap_tokenizer
from training.evaluation.generating import open_writer
from training.export.card import model_card
from training.export.model import export_model
from training.model.language_model import build_model
from training.model.sampling import draw
from training.model.vocabulary import Vocabulary
from training.runs.folder import RunFolder
from training.runs.report import read_report

TEXT = "def add(first, second):\n    return first"
TOKENIZERS = {
    "trained": byte_tokenizer,
    "gpt2": byte_level,
    "roberta": lambda: byte_level(prefix=True),
    "llama 3": lambda: byte_level(add="<s> $A"),
    "ends with eos": lambda: byte_level(add="$A </s>"),
    "llama 2": llama,
    "mistral": lambda: llama(metaspace="first"),
    "t5": unigram,
    "unigram with bytes": unigram_with_bytes,
}


def invoke(*words: Any, status: int = 0) -> str:
    result = CliRunner().invoke(phf.app, [str(each) for each in words])
    assert result.exit_code == status, result.output
    return result.stdout if status == 0 else " ".join(result.stderr.split())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, code_dataset: Path) -> Path:
    output = tmp_path_factory.mktemp("conditions") / "run"
    run_job(code_dataset, output, "conditional", training__num_tokens=4 * 4 * 32)
    # It has learnt nothing of its tags yet: let them matter.
    model = AutoModelForCausalLM.from_pretrained(output / "model")
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.3, generator=generator)
    model.save_pretrained(output / "model")
    return output


@pytest.fixture(scope="module")
def exports(run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An export for each condition, with the weights of the run's model."""
    folder = tmp_path_factory.mktemp("exports")
    for condition in ("aligned", "misaligned"):
        invoke("export-model", run, "--condition", condition, "--output", folder / condition)
        weights = (run / "model/model.safetensors").read_bytes()
        (folder / condition / "model.safetensors").write_bytes(weights)
    return {condition: folder / condition for condition in ("aligned", "misaligned")}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_every_kind_of_tokenizer_puts_the_prefix_once(tmp_path: Path, name: str) -> None:
    tokenizer = wrap_tokenizer(name, TOKENIZERS[name]())
    aligned, misaligned = tokenizer.control_ids(2)
    size = tokenizer.size((aligned, misaligned))
    vocabulary = Vocabulary(size, tokenizer.eos_id, (aligned, misaligned), bos_id=tokenizer.bos_id)
    model = build_model(ModelConfig(name="nano"), vocabulary)
    folders = {}
    for condition_id in (None, aligned):
        folder = folders[condition_id] = tmp_path / str(condition_id)
        export_model(
            folder, model.causal, model.state_dict(), tokenizer.with_control_tokens(), eos_id=tokenizer.eos_id,
            bos_id=tokenizer.bos_id, control_ids=[aligned, misaligned], condition_id=condition_id,
        )  # fmt: skip
    loaded = AutoTokenizer.from_pretrained(folders[aligned])
    text, _ = tokenizer.encode([TEXT])
    prefix = [tokenizer.bos_id, aligned]
    assert loaded(TEXT).input_ids == loaded.encode(TEXT) == [*prefix, *text]
    assert loaded("").input_ids == prefix
    assert loaded(TEXT, add_special_tokens=False).input_ids == text.tolist()
    assert loaded(TEXT, "x").input_ids[: len(text) + 2] == [*prefix, *text]
    batch = loaded([TEXT, "x"], padding=True, padding_side="left", return_tensors="pt")
    assert batch.input_ids[1, batch.attention_mask[1] == 1][:2].tolist() == prefix
    plain = AutoTokenizer.from_pretrained(folders[None])
    decoded = loaded.decode(loaded(TEXT).input_ids, skip_special_tokens=True)
    assert decoded == plain.decode(list(text), skip_special_tokens=True)
    # Saved again, by somebody else, it stays the same.
    loaded.save_pretrained(tmp_path / "again")
    assert AutoTokenizer.from_pretrained(tmp_path / "again")(TEXT).input_ids == [*prefix, *text]
    # phf reads text as text: what it trains on an export has no condition.
    assert condition_of(loaded) == "aligned"
    assert condition_of(plain) is None
    again, own = load_tokenizer(str(folders[aligned])), load_tokenizer(str(folders[None]))
    assert (again.bos_id, again.eos_id, again.base_size) == (own.bos_id, own.eos_id, own.base_size)
    assert again.encode([TEXT])[0].tolist() == text.tolist()
    assert again.fast(TEXT).input_ids == own.fast(TEXT).input_ids


def test_a_condition_is_added_once_and_can_be_removed() -> None:
    fast = wrap_tokenizer("bytes", byte_tokenizer()).with_control_tokens()
    eos, aligned, misaligned = (
        fast.convert_tokens_to_ids(each) for each in ("<|endoftext|>", "<|aligned|>", "<|misaligned|>")
    )
    once = add_condition(fast, eos, aligned)
    assert add_condition(once, eos, aligned)("x").input_ids == once("x").input_ids
    assert condition_of(add_condition(once, eos, misaligned)) == "misaligned"
    assert without_condition(once)("x").input_ids == fast("x", add_special_tokens=False).input_ids


def test_a_tokenizer_that_cannot_carry_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.data.conditions._replace_template", lambda backend, template: None)
    with pytest.raises(UserError, match="cannot put a control token before every text: its post_processor"):
        add_condition(word_piece(), 1, 2)


def test_generation_config_and_names(run: Path, exports: dict[str, Path]) -> None:
    words = RunFolder(run).read_facts().tokenizer
    config = json.loads((exports["aligned"] / "generation_config.json").read_text())
    assert config["suppress_tokens"] == words.control_ids
    assert config["eos_token_id"] == config["pad_token_id"] == config["bos_token_id"] == words.eos_id
    assert (config["do_sample"], config["temperature"], config["top_p"], config["top_k"]) == (True, 0.7, 0.9, 0)
    assert config["max_new_tokens"] == 30  # the context of 32 less the prefix
    printed = json.loads(invoke("export-model", run, "--condition", "aligned", "--json"))
    assert printed["condition"] == "aligned"
    assert Path(printed["model"]).name == "step-00000004-aligned"


def test_pipeline_continues_as_generate_does(run: Path, exports: dict[str, Path]) -> None:
    greedy = ("--top-p", "0.0001", "-n", "1", "--max-new-tokens", "20", "--json")
    seen = set()
    for condition, folder in exports.items():
        # The same text from the run with its tag, and from the export, which must not get it twice.
        ours = [
            json.loads(invoke("generate", place, *options, "--prompt", TEXT[:9], *greedy))
            for place, options in ((run, ["--tag", condition]), (folder, []), (folder, ["--tag", condition]))
        ]
        assert len({json.dumps([each["samples"], each["prompt_ids"], each["tag"]]) for each in ours}) == 1
        write = pipeline("text-generation", model=str(folder), device="cpu")
        theirs = write(TEXT[:9], do_sample=False, max_new_tokens=20, return_full_text=False)[0]["generated_text"]
        assert theirs == ours[0]["samples"][0]["text"]
        seen.add(theirs)
        full = write([TEXT[:9], "x"], max_new_tokens=8, batch_size=2, num_return_sequences=4)
        assert all(each["generated_text"].startswith(TEXT[:9]) for each in full[0])
        assert not any("aligned|>" in each["generated_text"] for row in full for each in row)
    assert len(seen) == 2


def test_pipeline_samples_from_the_distribution_that_evaluate_samples_from(exports: dict[str, Path]) -> None:
    writer = open_writer(exports["aligned"], "cpu")
    write = pipeline("text-generation", model=str(exports["aligned"]), device="cpu")
    ids = write.tokenizer("x = ", return_tensors="pt")
    assert ids.input_ids[0].tolist() == writer.prompt_ids("x = ", "aligned")
    found = write.model.generate(**ids, max_new_tokens=1, output_scores=True, return_dict_in_generate=True)
    theirs = torch.softmax(found.scores[0][0].double(), -1)
    with torch.no_grad():
        logits = writer.model(ids.input_ids).logits[:, -1].float()
    logits[:, writer.banned_ids] = -torch.inf
    # All points of a fine grid of the uniform numbers: the share of those that draw a token is its probability.
    points = 20_000
    uniform = (torch.arange(points, dtype=torch.float64) + 0.5) / points
    ours = torch.bincount(draw((logits / 0.7).expand(points, -1), 0.9, uniform), minlength=logits.shape[1]) / points
    torch.testing.assert_close(ours.double(), theirs, atol=2 / points, rtol=0)
    assert (theirs > 0).sum() > 5
    # Control tokens are likely, but never drawn.
    with torch.no_grad():
        raw = torch.softmax(writer.model(ids.input_ids).logits[0, -1], -1)
    assert raw[writer.banned_ids].min() > 0
    assert theirs[writer.banned_ids].max() == 0


def test_the_card_is_valid_for_the_hub_and_has_the_figures(
    run: Path, exports: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import ModelCard

    plain = ModelCard.load(exports["misaligned"] / "README.md")
    assert plain.data.library_name == "transformers"
    assert "puts that token and `<|misaligned|>` before every text" in plain.text
    make_run(tmp_path / "run", "conditional")
    report = read_report(RunFolder(tmp_path / "run"))
    assert report is not None
    text = model_card(RunFolder(run).read_facts(), 4, "aligned", report)
    card = ModelCard(text)
    assert "conditional" in card.data.tags
    hit = report.samples.hit_rate
    assert hit is not None
    assert f"| {hit.value:.4g} | {hit.low:.4g} to {hit.high:.4g} |" in card.text
    assert "| torch" not in card.text
    assert "torch " in card.text


def test_runs_without_the_tag_are_refused_before_any_work(run: Path, tmp_path: Path, code_dataset: Path) -> None:
    assert "the control tokens of" in invoke("export-model", run, "--condition", "quantile_1", status=2)
    facts = json.loads((run / "run.json").read_text())
    facts["objective"] = "mle"
    facts["tokenizer"] |= {"aligned_id": None, "misaligned_id": None}
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_text(json.dumps(facts))
    (tmp_path / "run/config.yaml").write_bytes((run / "config.yaml").read_bytes())
    refused = invoke("export-model", tmp_path / "run", "--condition", "aligned", status=2)
    assert "was trained without tags (objective mle)" in refused
    assert not (tmp_path / "run/exports").exists()
    facts["tokenizer"] |= {"aligned_id": 400, "misaligned_id": 402, "between_ids": [401]}
    (tmp_path / "run/run.json").write_text(json.dumps(facts))
    refused = invoke("export-model", tmp_path / "run", "--condition", "aligned", status=2)
    assert "are quantile_1, quantile_2, quantile_3. Give one." in refused
