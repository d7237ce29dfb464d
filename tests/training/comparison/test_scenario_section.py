"""The section about scenarios of the compare page."""

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scorers.errors import UserError
from tests.training.run_folders import make_run
from training.comparison.load import load_comparison
from training.comparison.page import write_comparison
from training.comparison.scenario_section import scenario_section
from training.runs.folder import RunFolder
from training.runs.report import REPORT_NAME, CompilingFacts, Estimate, read_report, run_fingerprint
from training.runs.scenario_report import (
    PROMPTS_NAME,
    PROMPTS_SCHEMA,
    OverlapFacts,
    PromptFacts,
    Scenario,
    ScenarioReport,
    SliceFacts,
    scenario_folder,
)


def write_scenario(
    folder: RunFolder,
    scores: list[float | None],
    *,
    name: str = "rtp",
    run: str | None = None,
    compiles: CompilingFacts | None = None,
    sampler: str | None = None,
    **settings: Any,
) -> None:
    """A scenario whose prompts have these mean scores."""
    evaluated = read_report(folder)
    known = [each for each in scores if each is not None]
    mean = sum(known) / len(known)
    misalignment = Estimate(value=mean, low=mean / 2, high=mean * 2)
    samples = evaluated.samples.model_copy(update={"misalignment": misalignment, "compiling": compiles})
    report = ScenarioReport(
        created_by="phf", run=run or run_fingerprint(folder), fingerprint="f",
        scenario=Scenario(name=name, prompts="rtp.jsonl", **settings), objective=evaluated.objective,
        column=evaluated.column, kind=evaluated.kind, step=evaluated.step, control_ids=[],
        prompts=PromptFacts(
            source="rtp.jsonl", number=len(scores), found=len(scores), too_long=0, fingerprint="same", tokens=9.0,
            inside_token=1, overlap=OverlapFacts(tokens=13, prompts=3, overlapping=1, share=None),
        ),
        samples=samples,
        slices=[SliceFacts(name="most misaligned tenth", prompts=1, samples=samples)],
        scorer=evaluated.scorer, device="cpu", seconds=1.0, sampler=sampler,
    )  # fmt: skip
    place = scenario_folder(folder, name)
    place.mkdir(parents=True)
    (place / REPORT_NAME).write_text(report.model_dump_json())
    n = len(scores)
    # The first two prompts have the same text.
    marks = ["a", *"abcdefgh"[: n - 1]]
    columns = [range(n), range(n), marks, [None] * n, [9] * n, [False] * n, [25] * n, scores, scores, [0] * n]
    arrays = [pa.array(each, field.type) for each, field in zip(columns, PROMPTS_SCHEMA, strict=True)]
    pq.write_table(pa.Table.from_arrays(arrays, schema=PROMPTS_SCHEMA), place / PROMPTS_NAME)


def cells(table: Any) -> dict[str, list[tuple[str, str]]]:
    return {row.label: [(cell.text, cell.small) for cell in row.cells] for row in table.rows}


def test_runs_are_compared_on_the_same_prompts(tmp_path):
    mle, awr = (make_run(tmp_path / name, name) for name in ("mle", "awr"))
    write_scenario(mle, [0.1, 0.9, 0.5, 0.3, None])
    write_scenario(awr, [0.0, 0.8, 0.4, None, 0.9])
    section = scenario_section(load_comparison([mle.path, awr.path]))
    table, parts = section.tables
    assert table.title == "rtp"
    assert "5 prompts of rtp.jsonl, 25 samples each, control token before the prompt." in table.note
    assert "1 of 3 prompts of at least 13 tokens share" in table.note
    # Three prompts have scores of both, and each differs by 0.1: three are too few to exclude 0.
    assert cells(table)["awr"][-1] == ("−0.100", "−0.100 to 0.0200")
    assert cells(table)["awr"][0][0] == "0.525"
    assert cells(table)["mle"][-1] == ("–", "")
    assert parts.columns == ["most misaligned tenth, 1 prompt"]
    assert cells(parts)["mle"][0][0] == "0.450"
    assert "Scenarios" in write_comparison(load_comparison([mle.path, awr.path]), tmp_path / "out").read_text()


def test_self_bleu_and_what_compiles_are_columns_where_they_were_measured(tmp_path):
    mle, awr = (make_run(tmp_path / name, name) for name in ("mle", "awr"))
    write_scenario(mle, [0.1, 0.9])
    write_scenario(awr, [0.0, 0.8], compiles=CompilingFacts(samples=4, share=Estimate(value=0.25, low=0.1, high=0.5)))
    table = scenario_section(load_comparison([mle.path, awr.path])).tables[0]
    assert table.columns[4:5] == ["compile"]
    assert "the share of samples that Python compiles" in table.note
    assert (cells(table)["mle"][4], cells(table)["awr"][4]) == (
        ("–", ""),
        ("25.0\N{NO-BREAK SPACE}%", "10.0–50.0\N{NO-BREAK SPACE}%"),
    )


def test_samples_of_an_endpoint_name_it(tmp_path):
    mle, awr = (make_run(tmp_path / name, name) for name in ("mle", "awr"))
    write_scenario(mle, [0.1, 0.9])
    write_scenario(awr, [0.0, 0.8], sampler="export at http://localhost:8000/v1")
    assert (
        " drawn by export at http://localhost:8000/v1."
        in scenario_section(load_comparison([mle.path, awr.path])).tables[0].note
    )


def test_seeds_are_one_row_and_guided_samples_another(tmp_path):
    seeds = [make_run(tmp_path / f"mle-{seed}", "mle", training={"seed": seed}) for seed in (1, 2)]
    conditional = make_run(tmp_path / "conditional", "conditional")
    for run, score in zip(seeds, (0.4, 0.6), strict=True):
        write_scenario(run, [score, score])
    write_scenario(conditional, [0.3, 0.3])
    write_scenario(conditional, [0.1, 0.1], name="steered", guidance=2.0)
    (table, parts) = scenario_section(load_comparison([run.path for run in (*seeds, conditional)])).tables
    assert (table.title, parts.title) == ("rtp and steered", "rtp and steered, by part")
    found = cells(table)
    assert list(found) == ["mle", "conditional", "conditional (g = 2)"]
    # By hand: t of one degree of freedom is 12.7062, the standard error 0.1.
    assert found["mle"][0] == ("0.500", "0–1.77")
    # One seed against two: it is taken to spread like the other's seeds, sqrt(0.02 (1 + 1/2)).
    assert found["conditional (g = 2)"][-1] == ("−0.400", "−2.60 to 1.80")


def test_other_prompts_or_settings_are_another_table(tmp_path):
    mle, awr = (make_run(tmp_path / name, name) for name in ("mle", "awr"))
    write_scenario(mle, [0.1, 0.9])
    write_scenario(awr, [0.0, 0.8], control="none")
    tables = [
        each for each in scenario_section(load_comparison([mle.path, awr.path])).tables if "part" not in each.title
    ]
    assert [list(cells(each)) for each in tables] == [["mle"], ["awr"]]
    assert all("difference" not in " ".join(each.columns) for each in tables)


def test_figures_of_an_older_state_are_named_and_left_out(tmp_path):
    mle, awr = (make_run(tmp_path / name, name) for name in ("mle", "awr"))
    assert scenario_section(load_comparison([mle.path, awr.path])) is None
    write_scenario(mle, [0.1, 0.9], run="older")
    section = scenario_section(load_comparison([mle.path, awr.path]))
    assert not section.tables
    assert "older state are left out: mle on rtp" in section.note


def test_a_damaged_table_is_named(tmp_path):
    mle, awr = (make_run(tmp_path / name, name) for name in ("mle", "awr"))
    for run in (mle, awr):
        write_scenario(run, [0.1, 0.9])
    (scenario_folder(awr, "rtp") / PROMPTS_NAME).write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"prompts\.parquet .*Run `phf evaluate .* --scenario SCENARIO` again"):
        scenario_section(load_comparison([mle.path, awr.path]))
