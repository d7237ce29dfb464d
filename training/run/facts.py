"""`run.json` and what is printed before step 0, computed from what was prepared."""

from collections.abc import Sequence

from scorers.fingerprint import library_versions
from training.data.kinds import document_kind
from training.data.places import dataset_identity
from training.data.prepare import PreparedData
from training.data.thresholds import ThresholdChoice
from training.model.language_model import LanguageModel, count_parameters, flops_per_token
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


def run_facts(data: PreparedData, model: LanguageModel, horizon: Horizon) -> RunFacts:
    """The facts of a run that is about to start."""
    config, tokens = data.config, data.tokenizer
    best, *others = data.control_ids or (None,)
    parameters, embedding = count_parameters(model)
    manifest = data.dataset.manifest
    return RunFacts(
        created_by=f"phf {library_versions('phf')['phf']}",
        status="running",
        task=config.task,
        objective=config.objective.name,
        column=data.column,
        columns=config.data.columns,
        kind=document_kind(manifest, data.column),
        scorer=manifest.scorers[data.column],
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
            vocab_size=tokens.size(data.control_ids),
            eos_id=tokens.eos_id,
            aligned_id=best,
            misaligned_id=others[-1] if others else None,
            between_ids=list(others[:-1]),
        ),
        model=ModelFacts(
            name=config.model.name,
            parameters=parameters,
            parameters_embedding=embedding,
            flops_per_token=flops_per_token(model, horizon.context_length),
            context_length=horizon.context_length,
            value_head=model.value_head is not None,
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
            "sentences_aligned": data.stream.count_aligned(data.sentence_threshold.value, data.column)[0],
        },
        versions=library_versions(*_LIBRARIES),
    )


def semantic_difference(old: RunFacts, new: RunFacts) -> Sequence[str]:
    """What of the data differs between two runs that must be one, a line a difference."""
    pairs = {
        "the dataset's texts, sentences or scores": (old.dataset.fingerprint, new.dataset.fingerprint),
        "the scorer": (old.scorer.fingerprint, new.scorer.fingerprint),
        "the tokenizer": (old.tokenizer.fingerprint, new.tokenizer.fingerprint),
        "the threshold": (_value(old.threshold), _value(new.threshold)),
        "the parameters": (old.model.parameters, new.model.parameters),
    }
    return [f"{what}: {then} in the run, {now} now" for what, (then, now) in pairs.items() if then != now]


def _threshold(choice: ThresholdChoice | None) -> ThresholdFacts | None:
    return None if choice is None else ThresholdFacts(value=choice.value, origin=f"{choice.origin}: {choice.detail}")


def _value(threshold: ThresholdFacts | None) -> float | None:
    return None if threshold is None else threshold.value
