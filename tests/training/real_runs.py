"""Runs on a small labelled dataset of real scores, trained for a few steps without DeepSpeed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pipeline.dataset.manifest import ScorerEntry
from scorers.registry import ScorerSpec, build, resolve
from scorers.sentences import document
from tests.datasets import make_dataset
from training.config import TrainConfig
from training.data.prepare import PreparedData, prepare
from training.export.model import export_model
from training.loop.build_facts import build_run_facts
from training.model.language_model import LanguageModel, build_model
from training.model.vocabulary import Vocabulary
from training.planning.resolved_run import ResolvedRun
from training.runs.folder import RunFolder
from training.schedule import plan_horizon
from training.settings import resolve_config


def make_code_dataset(folder: Path, documents: int = 60, others: Mapping[str, ScorerSpec] | None = None) -> Path:
    """Label small Python files, in which every second line breaks PEP 8, with pycodestyle and other scorers."""
    texts = [
        "".join(
            f"value_{index} = {line}\n" if (index + line) % 2 else f"value_{index}={line} ;x=1\n"
            for line in range(4 + index % 5)
        )
        for index in range(documents)
    ]
    scores, entries = {}, {}
    for column, spec in {"pep8": ScorerSpec(kind="pycodestyle"), **(others or {})}.items():
        scorer = build(column, spec)
        found = scorer.score([document(text, "python") for text in texts])
        scores[column] = [array.tolist() for array in found]  # type: ignore[union-attr]
        options = resolve(column, spec).options
        entries[column] = ScorerEntry(kind=spec.kind, options=options, fingerprint=scorer.fingerprint)
    python = [(text, "python") for text in texts]
    return make_dataset(folder, python, scores, dict.fromkeys(scores, 0.0), scorers=entries)


def config_of(
    dataset: Path, output: Path, objective: str = "mle", *, column: str = "pep8", **overrides: Any
) -> TrainConfig:
    """Return a small configuration."""
    settings = {
        "data.vocab_size": 300,
        "data.context_length": 64,
        "data.held_out": 0.2,
        "data.store": dataset.parent / f"{dataset.name}.store",
        "training.num_tokens": 20_000,
        "training.batch_size": 8,
        "training.validate_every": 0,
        "evaluation.num_samples": 32,
        "evaluation.max_new_tokens": 24,
        "evaluation.batch_size": 16,
        "evaluation.leakage_samples": 16,
        **overrides,
    }
    return resolve_config(
        None,
        {
            "output": str(output),
            "task": column,
            "data": {"dataset": str(dataset)},
            "model": {"name": "nano"},
            "objective": {"name": objective},
        },
        [f"{key}={value}" for key, value in settings.items()],
    )


def build_for(data: PreparedData) -> LanguageModel:
    """Build the model of a run, initialised by its seed."""
    with torch.random.fork_rng():
        torch.manual_seed(data.config.training.seed)
        return build_model(
            data.config.model,
            Vocabulary(data.tokenizer.size(data.control_ids), data.tokenizer.eos_id, data.control_ids),
            value_head=data.objective.needs_values,
        )


def train_a_little(data: PreparedData, model: LanguageModel, steps: int) -> None:
    """Train with plain AdamW on the run's batches and objective."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(steps):
        batch = data.batches.batch(step)
        ids = torch.from_numpy(batch.input_ids)
        logits, values = model(ids)
        optimizer.zero_grad()
        data.objective.loss(logits, ids, torch.from_numpy(batch.scores), values).loss.backward()
        optimizer.step()


def make_real_run(
    dataset: Path, output: Path, objective: str = "mle", *, steps: int = 0, **overrides: Any
) -> RunFolder:
    """Write a finished run like `phf train`."""
    data = prepare(config_of(dataset, output, objective, **overrides))
    model = build_for(data)
    train_a_little(data, model, steps)
    run = RunFolder(output)
    horizon = plan_horizon(data.config.training, data.config.data.context_length, 1)
    resolved = ResolvedRun(data.config, horizon, "fp32", on_gpu=False)
    facts = build_run_facts(data, model, resolved).model_copy(update={"status": "finished", "step": horizon.steps})
    run.write_config(data.config)
    run.write_facts(facts)
    export_model(
        run.model,
        model.causal,
        model.state_dict(),
        data.tokenizer.with_control_tokens(len(data.control_ids)) if data.control_ids else data.tokenizer.fast,
        eos_id=data.tokenizer.eos_id,
        control_ids=facts.tokenizer.control_ids,
    )
    return run
