"""The section of samples: texts of the runs side by side, if the user asked for text."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from scorers.amounts import format_count
from scorers.errors import UserError
from scorers.printing import printable
from scorers.shell import phf
from training.comparison.groups import Group
from training.comparison.load import Comparison
from training.comparison.run import LoadedRun
from training.comparison.section import Example, Examples, Section
from training.data.tokenizers import load_tokenizer
from training.evaluation.format_figures import number
from training.runs.report import report_folder
from training.runs.tables import GUIDED_NAME, SAMPLES_NAME, SAMPLES_SCHEMA, read_table

MOST_CHARACTERS = 4000  # of a sample on the page


def example_section(comparison: Comparison) -> Section | None:
    """Samples of each group at the same percentiles of their scores; None unless the user asked for text.

    Raises:
        UserError: samples are missing or damaged, or the folder of a run has no tokenizer to decode them.
    """
    wanted = comparison.show_text
    found = [each for group in comparison.groups if (each := examples(group, wanted))] if wanted else []
    if not found:
        return None
    several = any(len(group.runs) > 1 for group in comparison.groups)
    return Section(
        "Samples side by side",
        note=f"The samples of each run in the order of their misalignment, {format_count(wanted, 'sample')} of each at "
        "equal steps; the last one is the worst. Samples of a row have nothing else in common. They may be offensive "
        "or private." + (" Of several seeds, the first is shown." if several else ""),
        examples=[Examples(_title(place + 1, wanted), [each[place] for each in found]) for place in range(wanted)],
    )


def examples(group: Group, wanted: int) -> list[Example]:
    """Samples of the first seed of a group at equal steps of its scores, the worst last; none if none has a score."""
    run = group.runs[0]
    table = _samples(run)
    scores = table["score"].to_numpy()
    places = at_percentiles(scores, wanted)
    ids = [table["ids"][place].as_py() for place in places]
    if any(token < 0 for sample in ids for token in sample):
        raise UserError(
            f"The samples of {run.folder.path} are damaged: they hold negative token ids. "
            f"Run `{phf('evaluate', run.folder.path)}` again."
        )
    if not run.folder.model.is_dir():
        raise UserError(f"{run.folder.path} has no model, whose tokenizer decodes its samples. Leave out --show-text.")
    texts = load_tokenizer(str(run.folder.model)).decode_all(ids) if ids else []
    seed = "" if len(group.runs) == 1 else f", seed {group.seeds[0]}"
    return [
        Example(
            group.label,
            group.objective,
            group.guidance is not None,
            f"misalignment {number(scores[place], 3)}{seed}",
            _shown(text),
        )
        for place, text in zip(places, texts, strict=True)
    ]


def at_percentiles(scores: Sequence[float] | np.ndarray, wanted: int) -> list[int]:
    """The samples with the ceil(k n / wanted)-th lowest of the n scores, for each k from 1 to `wanted`.

    Args:
        scores: [samples]; NaN for a sample without a score, which is left out. Equal scores keep their order.
        wanted: how many; a sample occurs twice if there are fewer.
    """
    values = np.asarray(scores, dtype=np.float64)
    order = np.argsort(values, kind="stable")[: np.count_nonzero(~np.isnan(values))]
    return [int(order[-(-k * len(order) // wanted) - 1]) for k in range(1, wanted + 1)] if len(order) else []


def _title(step: int, steps: int) -> str:
    return "The worst samples" if step == steps else f"Percentile {100 * step / steps:.0f} of misalignment"


def _samples(run: LoadedRun) -> pa.Table:
    own = run.report.column == run.facts.column
    folder = report_folder(run.folder, None if own else run.report.column)
    name = SAMPLES_NAME if run.guidance is None else GUIDED_NAME
    return read_table(folder / name, SAMPLES_SCHEMA, run.folder, run.report.samples.number)


def _shown(text: str) -> str:
    cut = text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]} …"
    return printable(cut, keep="\n\t")
