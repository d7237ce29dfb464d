"""Check a requested guidance sweep before the first one starts, because each takes minutes to hours."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scorers.errors import UserError
from training.evaluation.checks import EvaluationRequest, check_evaluation
from training.evaluation.prepare import Judge
from training.measuring_config import EvaluationConfig
from training.runs.folder import RunFolder

MOST_SCALES = 100


@dataclass(frozen=True)
class SweepRequest:
    """A requested sweep.

    Attributes:
        run: a conditional run.
        scales: guidance scales; 1 is always drawn too.
        config: sampling settings; its own guidance does not matter.
        reference: the run under which the likelihood of the samples is measured; None for none.
    """

    run: RunFolder
    scales: Sequence[float]
    config: EvaluationConfig
    reference: RunFolder | None = None

    @property
    def plain(self) -> EvaluationConfig:
        """The settings without guidance."""
        return self.config.model_copy(update={"guidance": 1.0})


def parse_scales(text: str) -> list[float]:
    """The guidance scales in a list such as `1,1.5,2`, in ascending order and with 1 among them.

    Raises:
        UserError: names what is not a scale.
    """
    found = {1.0}
    for part in text.split(","):
        try:
            scale = float(part)
        except ValueError:
            scale = math.nan
        if not 0 <= scale <= 1e6:
            raise UserError(
                f"--guidance-sweep {text}: {part.strip() or 'an empty entry'} is not a guidance scale. "
                "Give numbers from 0 to 1e6, such as 1,1.5,2,3,5."
            )
        found.add(scale + 0.0)
    if len(found) > MOST_SCALES:
        raise UserError(f"--guidance-sweep has {len(found)} scales; give at most {MOST_SCALES}.")
    return sorted(found)


def check_sweep(request: SweepRequest, dataset: str | None = None) -> None:
    """Check that a sweep can be made, without loading tokens or models.

    Raises:
        UserError: it cannot; says why.
    """
    facts = request.run.read_facts()
    if not facts.conditional:
        raise UserError(
            f"--guidance-sweep needs control tokens, which {request.run.path}, a run of {facts.objective}, does not "
            "have: only runs of the objective conditional do. Leave that run out."
        )
    check_evaluation(EvaluationRequest(request.run, Judge(facts.column), config=request.plain), dataset)
    if request.reference is None:
        return
    other = request.reference.read_facts()
    if not request.reference.model.is_dir():
        raise UserError(f"--reference {request.reference.path} has no model yet. Finish its training first.")
    if other.tokenizer.fingerprint != facts.tokenizer.fingerprint:
        raise UserError(
            f"--reference {request.reference.path} has another tokenizer than {request.run.path}, so it cannot predict "
            "its tokens. Give a run that was trained with the same one, such as the mle run of the same data."
        )
