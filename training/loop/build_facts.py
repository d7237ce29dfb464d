"""Build the facts of a run (`run.json`) from its prepared data, and compare the facts of two runs."""

from collections.abc import Collection, Sequence
from typing import Any

from pipeline.dataset import Manifest
from pipeline.dataset.derived import dataset_identity
from scorers.fingerprint import library_versions
from training.data.datasets import document_kind
from training.data.preference import report_threshold
from training.data.prepare import PreparedData, PreparedDataset
from training.data.thresholds import ThresholdChoice
from training.data.weighting import Solution
from training.engine.deepspeed_config import own_settings
from training.evaluation.validation import Validation
from training.model.counting import count_parameters, flops_per_token
from training.model.language_model import LanguageModel
from training.planning.resolved_run import ResolvedRun
from training.runs.facts import (
    DatasetFacts,
    HorizonFacts,
    MatchingFacts,
    MixedFacts,
    ModelFacts,
    MomentFacts,
    PhaseFacts,
    RunFacts,
    TargetFacts,
    ThresholdFacts,
    TokenizerFacts,
    ValidationFacts,
)
from training.schedule import Horizon, warmup_steps

_LIBRARIES = ("torch", "deepspeed", "transformers", "tokenizers", "numpy", "pyarrow")


def build_run_facts(
    data: PreparedData,
    model: LanguageModel,
    run: ResolvedRun,
    validation: Validation | None = None,
) -> RunFacts:
    """The facts of a run that is about to start."""
    config, horizon, tokens = run.config, run.horizon, data.tokenizer
    best, *others = data.control_ids or (None,)
    parameters, embedding = count_parameters(model)
    manifest = data.dataset.manifest
    return RunFacts(
        created_by=f"phf {library_versions('phf')['phf']}",
        status="running",
        saved=0,
        precision=run.precision,
        deepspeed=own_settings(config.training),
        task=config.task,
        objective=config.objective.name,
        column=data.column,
        columns=config.data.columns,
        kind=document_kind(manifest, data.column),
        scorer=manifest.scorers[data.column],
        threshold=_threshold(data.threshold),
        sentence_threshold=_threshold(data.sentence_threshold),
        sentence_thresholds={
            column: ThresholdFacts(value=choice.value, origin=f"{choice.origin}: {choice.detail}")
            for column in config.data.columns
            for choice in [report_threshold(config, data.datasets[0].source, column)]
        },
        dataset=DatasetFacts(**_dataset(config.data.dataset, manifest, {data.column, *config.data.columns})),
        tokenizer=TokenizerFacts(
            name=tokens.name,
            fingerprint=tokens.fingerprint,
            vocab_size=tokens.size(data.added_ids),
            eos_id=tokens.eos_id,
            bos_id=None if tokens.bos_id == tokens.eos_id else tokens.bos_id,
            aligned_id=best,
            misaligned_id=others[-1] if others else None,
            between_ids=list(others[:-1]),
            after_ids=list(data.stream.options.after_ids),
            hidden_id=data.stream.options.hidden_id,
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
            epochs=_epochs(data, data.datasets[0], horizon),
            tokens_per_parameter=horizon.tokens / parameters,
            warmup_steps=warmup_steps(config.training, horizon.steps),
        ),
        validation=None
        if validation is None
        else ValidationFacts(
            every=validation.every,
            documents=validation.documents,
            tokens=validation.tokens,
            bytes=validation.bytes,
            share_of_time=validation.share_of_time(horizon.steps, horizon.tokens_per_step),
        ),
        targets=None if data.targets is None else _targets(data.targets),
        stream={
            **data.stream.statistics,
            "sentences_aligned": data.stream.count_aligned(data.sentence_threshold.value, data.column)[0],
        },
        credit=data.stream.credit,
        mixture=[_mixed(data, each, horizon) for each in data.datasets] if len(data.datasets) > 1 else [],
        phases=_phases(data, horizon) if len(data.phases) > 1 else [],
        versions=library_versions(*_LIBRARIES),
    )


def semantic_difference(old: RunFacts, new: RunFacts) -> Sequence[str]:
    """The differences in data, model and precision between a run and its resumption, one line each."""
    pairs = {
        "the dataset's texts, sentences or scores": (old.dataset.fingerprint, _fingerprint(new.dataset, old.dataset)),
        "the scorer": (old.scorer.fingerprint, new.scorer.fingerprint),
        "the tokenizer": (old.tokenizer.fingerprint, new.tokenizer.fingerprint),
        "the threshold": (_value(old.threshold), _value(new.threshold)),
        "the token scores": (old.credit, new.credit),
        "the parameters": (old.model.parameters, new.model.parameters),
        "the rows of the embedding (model.pad_vocab_to)": (old.model.rows or new.model.rows, new.model.rows),
    }
    # The first is `data.dataset` itself.
    for number, (then, now) in enumerate(zip(old.mixture[1:], new.mixture[1:], strict=False)):
        mixed = f"of data.mixture.{number} ({now.uri})"
        pairs |= {
            f"the texts, sentences or scores {mixed}": (then.fingerprint, _fingerprint(now, then)),
            f"the scorer {mixed}": (then.scorer.fingerprint, now.scorer.fingerprint),
            f"the threshold {mixed}": (_value(then.threshold), _value(now.threshold)),
            f"the token scores {mixed}": (then.credit, now.credit),
        }
    pairs |= _matching_pairs(old.matching, new.matching)
    lines = [f"{what}: {then} in the run, {now} now" for what, (then, now) in pairs.items() if then != now]
    lines += [
        f"documents purged from {now.uri}: {then.purged:,} in the run, {now.purged:,} now. A run's batches follow from "
        "its dataset, so it cannot resume; --init-from with this run and another --output starts from its weights"
        for then, now in [(old.dataset, new.dataset), *zip(old.mixture[1:], new.mixture[1:], strict=False)]
        if now.purged > then.purged
    ]
    if old.deepspeed is not None:
        before, after = old.deepspeed, new.deepspeed or {}
        lines += [
            f"{name} in the file of training.deepspeed: {before.get(name)!r} in the run, {after.get(name)!r} now"
            for name in sorted(before.keys() | after.keys())
            if before.get(name) != after.get(name)
        ]
    if old.precision not in (None, new.precision):
        lines.append(
            f"the precision: {old.precision} in the run, {new.precision} now; to resume in {old.precision}, give "
            f"--set training.precision={old.precision}"
        )
    return lines


def _matching_pairs(old: MatchingFacts | None, new: MatchingFacts | None) -> dict[str, tuple[Any, Any]]:
    if old is None or new is None:
        names = ["phf train" if each is None else "phf match" for each in (old, new)]
        return {"the command": (names[0], names[1])}
    keys = sorted(old.settings.keys() | new.settings.keys())
    return {
        "the run that was matched": (old.fingerprint, new.fingerprint),
        "the scorers of the constraints": (old.scorers, new.scorers),
        **{key: (old.settings.get(key), new.settings.get(key)) for key in keys},
    }


def _dataset(uri: str, manifest: Manifest, columns: Collection[str]) -> dict[str, Any]:
    return {
        "uri": uri,
        "generation": manifest.generation,
        "fingerprint": dataset_identity(manifest),
        "own_fingerprint": dataset_identity(manifest, columns),
        "rows": manifest.rows,
        "purged": manifest.ledger.purged,
    }


def _targets(solution: Solution) -> TargetFacts:
    weighting = solution.weighting
    return TargetFacts(
        moments=[
            MomentFacts(
                feature=each.feature, target=each.moment, before=before, weight=None if each.is_filter else value
            )
            for each, before, value in zip(weighting.targets, solution.before, weighting.lambdas, strict=True)
        ],
        sentences=solution.sentences,
        effective_sentences=solution.effective_sentences,
        least_weight=solution.least,
        greatest_weight=solution.greatest,
    )


def _mixed(data: PreparedData, dataset: PreparedDataset, horizon: Horizon) -> MixedFacts:
    source = dataset.source
    return MixedFacts(
        **_dataset(source.uri, source.manifest, {source.column, *data.config.data.columns}),
        share=float(source.share),
        column=source.column,
        scorer=source.scorer,
        threshold=_threshold(dataset.threshold),
        epochs=_epochs(data, dataset, horizon),
        stream=dataset.streams[data.with_preferences].statistics,
        credit=dataset.streams[data.with_preferences].credit,
    )


def _epochs(data: PreparedData, dataset: PreparedDataset, horizon: Horizon) -> float:
    number = data.with_preferences
    blocks = data.phases[number].steps * horizon.batch_size * float(dataset.source.share)
    return blocks / dataset.streams[number].num_blocks


def _phases(data: PreparedData, horizon: Horizon) -> list[PhaseFacts]:
    return [
        PhaseFacts(
            name=phase.name,
            first_step=phase.first,
            steps=phase.steps,
            tokens=phase.steps * horizon.tokens_per_step,
            documents=sum(len(each.streams[number].documents) for each in data.datasets),
            tokens_in_stream=sum(each.streams[number].num_tokens for each in data.datasets),
        )
        for number, phase in enumerate(data.phases)
    ]


def _fingerprint(dataset: DatasetFacts, then: DatasetFacts) -> str:
    """The fingerprint of a dataset; the earlier one if since then only columns that the run does not use were added."""
    same = dataset.own_fingerprint is not None and dataset.own_fingerprint == then.own_fingerprint
    return then.fingerprint if same else dataset.fingerprint


def _threshold(choice: ThresholdChoice | None) -> ThresholdFacts | None:
    return None if choice is None else ThresholdFacts(value=choice.value, origin=f"{choice.origin}: {choice.detail}")


def _value(threshold: ThresholdFacts | None) -> float | None:
    return None if threshold is None else threshold.value
