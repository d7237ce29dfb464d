"""Build the report of a scenario from its samples."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from scorers.amounts import format_count
from scorers.fingerprint import library_versions
from training import statistics
from training.runs.report import MAXIMUM_OF, Estimate, ScorerFacts, run_fingerprint
from training.runs.scenario_report import (
    HELD_OUT,
    NO_PROMPTS,
    OverlapFacts,
    PromptFacts,
    ScenarioReport,
    SliceFacts,
)
from training.scenarios.figures import sample_facts
from training.scenarios.overlap import GRAM
from training.scenarios.plan import ScenarioPlan
from training.scenarios.prompts import REST, WORST_TENTH
from training.scoring import EMPTY


def build_report(
    plan: ScenarioPlan,
    samples: pa.Table,
    overlaps: NDArray[np.bool_],
    seconds: float,
    rates: tuple[float, float] | None,
) -> ScenarioReport:
    """Build the report of a scenario.

    Args:
        plan: the scenario.
        samples: all samples, as for `sample_facts`.
        overlaps: bool [prompts], those that overlap with the training text.
        seconds: duration of the evaluation.
        rates: samples and tokens drawn per second; None if none were drawn now.
    """
    setup, drawing, facts = plan.setup, plan.drawing, plan.run.read_facts()
    limits = [drawing.limit(each) for each in plan.prompts.every]
    names = samples["slice"].to_pylist()
    slices = [
        SliceFacts(
            name=name,
            prompts=sum(each.slice == name for each in plan.prompts.every),
            samples=sample_facts(
                samples.filter([each == name for each in names]),
                hit_threshold=setup.hit_threshold,
                max_new_tokens=max(limits),
                diversity=False,  # Self-BLEU and entropy grow with the number of samples
            ),
        )
        for name in (WORST_TENTH, REST)
        if name in names
    ]
    of_all = sample_facts(samples, hit_threshold=setup.hit_threshold, max_new_tokens=max(limits))
    return ScenarioReport(
        created_by=f"phf {library_versions('phf')['phf']}",
        run=run_fingerprint(plan.run),
        fingerprint=plan.fingerprint,
        scenario=plan.scenario,
        objective=setup.objective,
        column=setup.column,
        kind=setup.kind,
        step=facts.step,
        control_ids=drawing.control_ids,
        prompts=_prompt_facts(plan, overlaps),
        samples=of_all,
        slices=slices,
        scorer=ScorerFacts(entry=setup.scorer_entry, fingerprint=setup.scorer.fingerprint),
        device=plan.device,
        sampler=plan.sampler,
        seconds=round(seconds, 3),
        samples_per_second=None if rates is None else round(rates[0], 3),
        tokens_per_second=None if rates is None else round(rates[1], 3),
        warnings=[*setup.warnings, *_warnings(plan, of_all.unscored, limits)],
        versions=library_versions("torch", "transformers", "tokenizers", "numpy"),
    )


def _prompt_facts(plan: ScenarioPlan, overlaps: NDArray[np.bool_]) -> PromptFacts:
    prompts = plan.prompts
    lengths = np.array([len(each.own_ids) for each in prompts.every])
    long_enough = int((lengths >= GRAM).sum())
    overlap = OverlapFacts(
        tokens=GRAM,
        prompts=long_enough,
        overlapping=int(overlaps.sum()),
        share=Estimate.of(statistics.share(int(overlaps.sum()), long_enough)),
    )
    return PromptFacts(
        source=prompts.source,
        number=len(prompts.every),
        found=prompts.found,
        too_long=prompts.too_long,
        fingerprint=prompts.fingerprint,
        tokens=float(lengths.mean()),
        inside_token=sum(bool(each.dropped) for each in prompts.every),
        overlap=None if prompts.source == NO_PROMPTS else overlap,
    )


def _warnings(plan: ScenarioPlan, unscored: dict[str, int], limits: Sequence[int]) -> list[str]:
    scenario, warnings = plan.scenario, []
    from_file = scenario.prompts not in (HELD_OUT, NO_PROMPTS)
    if from_file and not plan.boundary.is_exact:
        warnings.append(
            "Prompts are continued after their own tokens: the tokenizer is no byte-level BPE, so that a prompt that "
            "ends inside a word may be continued less well than in training text."
        )
    cut = sum(each < scenario.max_new_tokens for each in limits)
    if cut:
        leaves = "leaves" if cut == 1 else "leave"
        warnings.append(
            f"{cut} of {format_count(len(limits), 'prompt')} {leaves} room for fewer than "
            f"{scenario.max_new_tokens} new tokens, at least {min(limits)}: the model was trained with a context of "
            f"{plan.setup.context_length}."
        )
    if scenario.prompts != NO_PROMPTS and scenario.continuations < MAXIMUM_OF:
        warnings.append(
            f"The expected maximum needs {MAXIMUM_OF} continuations of a prompt; there are {scenario.continuations}."
        )
    others = {reason: count for reason, count in unscored.items() if reason != EMPTY}
    if others:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in others.items())
        number = format_count(sum(others.values()), "sample")
        warnings.append(f"{number} could not be scored ({reasons}); figures leave them out.")
    if plan.prompts.too_long:
        warnings.append(
            f"{format_count(plan.prompts.too_long, 'held-out document')} were passed over, as their first sentences "
            "leave no room in the context."
        )
    return warnings
