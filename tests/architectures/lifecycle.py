"""Take one architecture through train, resume, evaluate and export in this process, as `phf` does it."""

import io
import shutil
from pathlib import Path

import torch
from rich.console import Console
from transformers import AutoModelForCausalLM

from scorers.errors import UserError
from tests.architectures.configs import PADDED, NotTriedError, tiny_config
from tests.training.jobs import metrics
from tests.training.real_runs import config_of
from training.evaluation.evaluate_run import evaluate_run
from training.export.checkpoint import export_checkpoint
from training.loop.train import train
from training.model.counting import count_parameters
from training.model.language_model import build_model
from training.model.vocabulary import Vocabulary
from training.runs.folder import RunFolder

WORKS = "works"
_LARGEST = 20_000_000  # parameters that two cores can train
_STEPS = 4


def try_architecture(kind: str, dataset: Path, padded: Path, folder: Path) -> str:
    """Try a tiny model of the kind, and return `works`, `refused: why` or `not tried: why`.

    Args:
        kind: the model type.
        dataset: a labelled one from `tests.training.real_runs.make_code_dataset`.
        padded: a tokenizer with a padding token, for architectures that need one.
        folder: a new one.

    Raises:
        AssertionError: a result is wrong.
        Exception: a bug.
    """
    try:
        config = tiny_config(kind)
        config.save_pretrained(folder / "config")
        shape = build_model(_model(folder), Vocabulary(300, 0, pad_id=1), skeleton=True)
        if count_parameters(shape)[0] > _LARGEST:
            raise NotTriedError("its other parts than text stay large")
    except NotTriedError as reason:
        return f"not tried: {reason}"
    except UserError:
        pass  # the run reports it
    return try_config(kind, dataset, padded, folder)


def try_config(kind: str, dataset: Path, padded: Path, folder: Path) -> str:
    """Try the config in `config` of the folder; returns and raises as `try_architecture`."""
    output = folder / "run"
    settings = _settings(folder)
    if kind in PADDED:
        settings |= {"data.tokenizer": padded, "data.store": dataset.parent / "padded.store"}
    of = config_of(dataset, output, "awr", **settings)
    printed = Console(file=io.StringIO())
    try:
        train(of, printed)
    except UserError as error:
        assert not (output / "checkpoints").exists(), "it was refused after step 0"
        return f"refused: {_short(error, folder)}"
    run, lines = RunFolder(output), _lines(output)
    assert len(lines) == _STEPS
    # Pretend that it was stopped half way.
    shutil.rmtree(run.model)
    shutil.rmtree(run.checkpoints / f"step-{_STEPS:08d}")
    train(of, printed)
    assert _lines(output)[-_STEPS // 2 :] == lines[-_STEPS // 2 :], "it resumes differently"
    found = evaluate_run(run, device="cpu")
    assert found.report.samples.number == of.evaluation.num_samples
    assert found.report.held_out is not None
    export_checkpoint(run, None, folder / "exported")
    ids = torch.arange(3, 40).unsqueeze(0)
    with torch.no_grad():
        finished, exported = (
            AutoModelForCausalLM.from_pretrained(each, dtype=torch.float32).eval()(input_ids=ids, use_cache=False)
            for each in (run.model, folder / "exported")
        )
    assert torch.equal(finished.logits, exported.logits), "a checkpoint is exported as another model"
    return WORKS


def _settings(folder: Path) -> dict[str, object]:
    return {
        "model.name": folder / "config",
        "training.num_tokens": _STEPS * 2 * 64,
        "training.batch_size": 2,
        "training.save_every": _STEPS // 2,
        "training.log_every": 1,
        "tracking.tensorboard": "false",
        "evaluation.num_samples": 8,
        "evaluation.batch_size": 8,
        "evaluation.max_new_tokens": 8,
        "evaluation.held_out_documents": 4,
    }


def _lines(output: Path) -> list[tuple[float, float, float]]:
    return [(line["step"], line["loss"], line["grad_norm"]) for line in metrics(output)]


def _short(error: UserError, folder: Path) -> str:
    text = str(error).replace(str(folder), "").split(": Check ")[0]
    return text.split(". ")[0].rstrip(".")


def _model(folder: Path):  # type: ignore[no-untyped-def]
    from training.config import ModelConfig

    return ModelConfig(name=str(folder / "config"))
