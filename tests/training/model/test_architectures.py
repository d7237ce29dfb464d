"""Architectures with different mechanisms complete a run, and the README's table names every architecture."""

from pathlib import Path

import pytest
from transformers import LlamaConfig

from tests.architectures.configs import KINDS, PADDED, tiny_config
from tests.architectures.lifecycle import WORKS, try_architecture, try_config
from tests.architectures.table import read_table
from tests.training.real_runs import make_code_dataset
from tests.training.stores import byte_tokenizer

# One per mechanism: experts, linear attention layers, a recurrent state, no cache, an encoder as decoder, a projected
# output embedding, positions counted by padding.
REPRESENTATIVE = ("mixtral", "qwen3_next", "mamba", "openai-gpt", "opt", "roberta")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("architectures")
    make_code_dataset(folder / "labelled")
    byte_tokenizer(padding="<pad>").save_pretrained(folder / "tokenizer")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", REPRESENTATIVE)
def test_an_architecture_completes_a_run(place: Path, tmp_path: Path, kind: str) -> None:
    assert try_architecture(kind, place / "labelled", place / "tokenizer", tmp_path) == WORKS


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [
        ("bert", {"is_decoder": False}, "The network bert (BertLMHeadModel) sees the future"),
        ("xlnet", {}, "The network xlnet (XLNetLMHeadModel) sees the future"),
        ("llama", {"is_causal": False}, "The network llama (LlamaForCausalLM) sees the future"),
    ],
)
def test_untrainable_architectures_are_refused_before_step_0(
    place: Path, tmp_path: Path, kind: str, changes: dict[str, object], reason: str
) -> None:
    config = tiny_config(kind)
    for name, value in changes.items():
        setattr(config, name, value)
    config.save_pretrained(tmp_path / "config")
    outcome = try_config(kind, place / "labelled", place / "tokenizer", tmp_path)
    assert outcome.startswith(f"refused: {reason}")


def test_the_table_names_every_architecture_of_transformers() -> None:
    table = read_table()
    assert set(table) == set(KINDS)
    tried = [outcome for outcome in table.values() if not outcome.startswith("not tried: ")]
    assert len(tried) >= 40
    assert all(outcome == WORKS or outcome.startswith("refused: ") for outcome in tried)
    assert all(table[kind] == WORKS for kind in REPRESENTATIVE)
    assert set(PADDED) <= set(KINDS)
    assert isinstance(tiny_config("llama"), LlamaConfig)
