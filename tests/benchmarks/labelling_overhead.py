"""The cost of reading, splitting, staging and hashing on top of the bare scorers, in one worker, without Ray."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from infra.demo.corpus import sample_code, sample_prose
from tests.benchmarks.measure import Comparison, compare


def run() -> Iterator[Comparison]:
    with tempfile.TemporaryDirectory() as folder:
        code, prose = Path(folder) / "code", Path(folder) / "prose.jsonl.gz"
        sample_code(code, 200_000, seed=1)
        sample_prose(prose, 100_000, seed=1)
        for inputs, column, kind in (
            (code, "pep8", "pycodestyle"),
            (prose, "toxicity", "linear"),
            (prose, "pii", "scrubadub"),
        ):
            yield _measure(Path(folder) / f"out-{column}", inputs, column, kind)


def _measure(output: Path, inputs: Path, column: str, kind: str) -> Comparison:
    from pipeline.config import LabelConfig
    from pipeline.corpus.cut_units import make_plan
    from pipeline.corpus.inputs import find_sources
    from pipeline.corpus.readers import read_sources
    from pipeline.labelling.resolve import BASE_GROUP, ResolvedJob, groups_of, resolve_config
    from pipeline.labelling.workers.worker import UnitLabeller
    from scorers.registry import ScorerSpec, build
    from scorers.sentences import document

    config = LabelConfig(inputs=[str(inputs)], output=str(output), scorers={column: ScorerSpec(kind=kind)})
    config = resolve_config(config)
    plan = make_plan(config)
    labeller = UnitLabeller(ResolvedJob(config, plan, groups_of(config), {}), BASE_GROUP)
    scorer = build(column, config.scorers[column])
    records = list(read_sources(find_sources(config.inputs, "auto"), config))
    documents = [document(each.text, each.kind, each.name) for each in records]
    sentences = sum(len(each.ends) for each in documents)

    def ours() -> None:
        for unit in plan.units:
            labeller.label(unit, f"staging/{unit.name}.parquet")

    def bare() -> None:
        scorer.score(documents)

    return compare(f"label {column}, against the bare scorer", "sentences/s", sentences, ours, bare, rounds=3)
