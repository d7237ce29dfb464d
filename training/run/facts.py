"""`run.json` and what is printed before step 0, computed from what was prepared."""

from collections.abc import Sequence

from pipeline.dataset import Manifest
from scorers.contract import DocumentKind
from scorers.fingerprint import library_versions
from training.data.places import dataset_identity
from training.data.prepare import PreparedData
from training.data.thresholds import ThresholdChoice
from training.model.counting import count_parameters, flops_per_token
from training.model.language_model import LanguageModel
from training.run.folder import (
    DatasetFacts,
    HorizonFacts,
    ModelFacts,
    RunFacts,
    ThresholdFacts,
    TokenizerFacts,
)
from training.run.schedule import Horizon

_LIBRARIES = ("torch", "deepspeed", "transformers", "tokenizers", "numpy", "pyarrow")
_PYTHON_SCORERS = {"pycodestyle", "pylint"}


def run_facts(data: PreparedData, model: LanguageModel, horizon: Horizon) -> RunFacts:
    """The facts of a run that is about to start."""
    config, tokens = data.config, data.tokenizer
    tags = data.objective.tags
    parameters, embedding = count_parameters(model)
    manifest = data.dataset.manifest
    return RunFacts(
        created_by=f"phf {library_versions('phf')['phf']}",
        status="running",
        task=config.task,
        objective=config.objective.name,
        column=data.stream.column,
        kind=document_kind(manifest, data.stream.column),
        scorer=manifest.scorers[data.stream.column],
        threshold=_threshold(data.threshold),
        sentence_threshold=_threshold(data.sentence_threshold),
        dataset=DatasetFacts(
            uri=config.data.dataset,
            generation=manifest.generation,
            fingerprint=dataset_identity(manifest),
            rows=manifest.rows,
        ),
        tokenizer=TokenizerFacts(
            name=tokens.name,
            fingerprint=tokens.fingerprint,
            vocab_size=tokens.size(tags=tags),
            eos_id=tokens.eos_id,
            aligned_id=tokens.aligned_id if tags else None,
            misaligned_id=tokens.misaligned_id if tags else None,
        ),
        model=ModelFacts(
            name=config.model.name,
            parameters=parameters,
            parameters_embedding=embedding,
            flops_per_token=flops_per_token(model, horizon.context_length),
            context_length=horizon.context_length,
            value_head=model.value_head is not None,
            rows=model.padding.rows,
        ),
        horizon=HorizonFacts(
            steps=horizon.steps,
            tokens=horizon.tokens,
            batch_size=horizon.batch_size,
            micro_batch_size=horizon.micro_batch_size,
            accumulation=horizon.accumulation,
            ranks=horizon.ranks,
            epochs=horizon.steps * horizon.batch_size / data.stream.num_blocks,
            tokens_per_parameter=horizon.tokens / parameters,
        ),
        stream={
            **data.stream.statistics,
            "sentences_aligned": data.stream.count_aligned(data.sentence_threshold.value)[0],
        },
        versions=library_versions(*_LIBRARIES),
    )


def document_kind(manifest: Manifest, column: str) -> DocumentKind:
    """What a column's documents are: as the labelling job was told, or what its scorer applies to, or most bytes."""
    asked = manifest.config.get("kind")
    if asked == "python" or asked == "prose":
        return "python" if asked == "python" else "prose"
    entry = manifest.scorers[column]
    applies = "python" if entry.kind in _PYTHON_SCORERS else entry.options.get("documents")
    if applies in ("python", "prose"):
        return "python" if applies == "python" else "prose"
    python = sum(source.size for source in manifest.sources if source.uri.lower().endswith(".py"))
    return "python" if 2 * python > sum(source.size for source in manifest.sources) else "prose"


def semantic_difference(old: RunFacts, new: RunFacts) -> Sequence[str]:
    """What of the data differs between two runs that must be one, a line a difference."""
    pairs = {
        "the dataset's texts, sentences or scores": (old.dataset.fingerprint, new.dataset.fingerprint),
        "the scorer": (old.scorer.fingerprint, new.scorer.fingerprint),
        "the tokenizer": (old.tokenizer.fingerprint, new.tokenizer.fingerprint),
        "the threshold": (_value(old.threshold), _value(new.threshold)),
        "the parameters": (old.model.parameters, new.model.parameters),
        "the rows of the embedding (model.pad_vocab_to)": (old.model.rows or new.model.rows, new.model.rows),
    }
    return [f"{what}: {then} in the run, {now} now" for what, (then, now) in pairs.items() if then != now]


def _threshold(choice: ThresholdChoice | None) -> ThresholdFacts | None:
    return None if choice is None else ThresholdFacts(value=choice.value, origin=f"{choice.origin}: {choice.detail}")


def _value(threshold: ThresholdFacts | None) -> float | None:
    return None if threshold is None else threshold.value
