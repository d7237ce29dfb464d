"""The section about sources of the compare page."""

import json
from pathlib import Path

from tests.training.run_folders import make_run
from training.comparison.load import load_comparison
from training.comparison.source_section import source_section
from training.runs.folder import RunFolder


def write_sources(run: RunFolder, **bits: float) -> None:
    """Store held-out figures of sources with these bits per byte; the documents of the last one are the rest."""

    def part(name: str, value: float, place: int) -> dict[str, object]:
        figure = {"value": value, "low": value - 0.5, "high": value + 0.5}
        return {
            "value": name, "documents": place + 1, "bytes": 900 - place, "bits_per_byte": figure, "perplexity": figure,
            "misalignment": None,
        }  # fmt: skip

    parts = [part(name, value, place) for place, (name, value) in enumerate(bits.items())]
    path = run.evaluation / "report.json"
    report = json.loads(path.read_text())
    report["by"] = {"field": "source", "groups": parts[:-1], "rest": parts[-1] | {"value": None}}
    path.write_text(json.dumps(report))


def test_sources_are_columns_and_groups_of_seeds_rows(tmp_path: Path) -> None:
    seeds = [make_run(tmp_path / f"mle-{seed}", "mle", training={"seed": seed}) for seed in (1, 2)]
    awr = make_run(tmp_path / "awr", "awr", guided=0.01)
    paths = [run.path for run in (*seeds, awr)]
    assert source_section(load_comparison(paths)) is None
    for run, bits in zip(seeds, (1.9, 2.1), strict=True):
        write_sources(run, wiki=bits, web=2 * bits, rest=3.0)
    write_sources(awr, web=2.5, news=2.2, rest=3.0)
    section = source_section(load_comparison(paths))
    assert section is not None
    (table,) = section.tables
    assert table.title == "Bits per byte by source"
    assert table.columns == ["wiki, 1 document", "web, 2 documents", "news, 2 documents", "all others, 3 documents"]
    mle, other = ([(cell.text, cell.small) for cell in row.cells] for row in table.rows)
    # By hand: t of one degree of freedom is 12.7062, the standard error 0.1.
    assert mle == [("2.000", "0.7294–3.271"), ("4.000", "1.459–6.541"), ("–", ""), ("3.000", "3.000–3.000")]
    assert other == [("–", ""), ("2.500", "2.000–3.000"), ("2.200", "1.700–2.700"), ("3.000", "2.500–3.500")]
