"""`phf label --plan`: hours agree with the real scheduler on a simulated clock, and it names what limits a job."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from typer.testing import CliRunner

from phf import app
from pipeline.corpus.plan import Unit
from pipeline.labelling.capacity import Fleet, Workload, plan_capacity
from pipeline.labelling.rates import COMMITS_PER_S, StepRate
from pipeline.labelling.scheduler.autoscaling import Pool
from pipeline.labelling.scheduler.scheduler import Scheduler
from pipeline.labelling.workers.worker import PartResult
from scorers.errors import UserError
from tests.pipeline.simulation import SimulatedBackend, units

TOLERANCE = 0.05
MIB = 1024 * 1024


def work(text: float, *, core: float, gpu: float = 0.0, unit: int = MIB, threads: int = 1) -> Workload:
    """A job whose scorers take so many microseconds of a core and of a GPU for a byte."""
    steps = [StepRate("pii", "scrubadub", "cpu", core / 1e6, "here")]
    steps += [StepRate("toxicity", "detoxify", "cuda", gpu / 1e6, "here")] * bool(gpu)
    return Workload(text, unit, steps, threads)


def simulate(job: Workload, fleet: Fleet) -> float:
    """Seconds until the last unit is committed by the real scheduler, with workers and commits of the planned rates."""
    nodes = fleet.nodes or 1
    pools = {"cpu": Pool.of(nodes * (fleet.cores // job.threads))}
    seconds = {"cpu": job.seconds(on_gpu=False) * job.unit_size / job.threads}
    if job.seconds(on_gpu=True):
        pools["toxicity"] = Pool.of(nodes * fleet.gpus)
        seconds["toxicity"] = job.seconds(on_gpu=True) * job.unit_size
    backend = SimulatedBackend(seconds=lambda unit, group: seconds[group])
    committed = 0.0

    def commit(unit: Unit, parts: Sequence[PartResult]) -> None:
        nonlocal committed
        committed = max(committed, backend.now) + 1 / COMMITS_PER_S

    Scheduler(backend, pools, commit, clock=backend.clock, unit_deadline_s=1e9).run(units(job.units))
    return committed


@pytest.mark.parametrize(
    ("job", "fleet", "longest"),
    [
        (work(2000 * MIB, core=20), Fleet(16, nodes=4), "cores"),
        (work(2000 * MIB, core=20, threads=4), Fleet(16, nodes=4), "cores"),
        (work(130.5 * MIB, core=20), Fleet(32, nodes=2), "cores"),
        (work(2000 * MIB, core=1, gpu=4), Fleet(16, 2, nodes=4), "gpus"),
        (work(2000 * MIB, core=9, gpu=1), Fleet(8, 8, nodes=4), "cores"),
        (work(5000 * MIB, core=1, unit=256 * 1024), Fleet(64, nodes=16), "commit"),
    ],
)
def test_the_hours_are_those_of_the_scheduler(job: Workload, fleet: Fleet, longest: str) -> None:
    found = plan_capacity(job, fleet)
    assert found.parts[longest] == found.label_seconds
    assert found.label_seconds == pytest.approx(simulate(job, fleet), rel=TOLERANCE)


@given(text=st.floats(1e6, 1e14), core=st.floats(0.01, 100), hours=st.floats(0.1, 1e4), cores=st.integers(1, 200))
def test_as_many_nodes_are_done_in_time_and_fewer_are_not(text: float, core: float, hours: float, cores: int) -> None:
    job, wanted = work(text, core=core, unit=64 * MIB), Fleet(cores, nodes=None, hours=hours, price=2.0)
    try:
        found = plan_capacity(job, wanted)
    except UserError:
        # What one process does takes too long, or a single unit does.
        most = plan_capacity(job, replace(wanted, hours=None, nodes=10_000_000))
        assert most.seconds > 0.99 * hours * 3600
        return
    assert found.seconds <= hours * 3600 * (1 + 1e-9)
    assert found.cost is not None
    assert found.cost[0] <= found.cost[1] * (1 + 1e-9)
    assume(found.nodes > 1)
    # Beyond a hundred nodes they are counted in steps of a hundredth.
    fewer = plan_capacity(job, replace(wanted, hours=None, nodes=max(1, int(found.nodes * 0.97) - 1)))
    assert fewer.seconds > hours * 3600


def plan(*arguments: object, expect: int = 0) -> Any:
    result = CliRunner().invoke(app, ["label", "--plan", "--json", *map(str, arguments)])
    assert result.exit_code == expect, result.output
    return json.loads(result.stdout) if expect == 0 else " ".join(result.output.split())


def test_ten_trillion_tokens_are_bound_by_sealing_and_the_plan_says_what_to_change() -> None:
    job = ("--plan-bytes", "42TB", "--scorer", "toxicity=linear", "--scorer", "pii", "--plan-cores", 64)
    found = plan(*job, "--plan-nodes", 100)
    assert found["tokens"] == pytest.approx(1e13)
    assert found["units"] == pytest.approx(160e6, rel=0.01)
    assert found["bottleneck"] == "sealing, in one process"
    units, jobs = found["advice"]
    assert "--unit-size 27MiB" in units
    assert "phf train --mix" in jobs
    # What it advises helps.
    better = plan(*job, "--plan-nodes", 100, "--unit-size", "27MiB", "--plan-bytes", "1.7TB")
    assert better["advice"] == []
    assert better["seconds"] < 48 * 3600
    assert "scoring pii (scrubadub)" in plan(*job, "--plan-nodes", 1)["bottleneck"]
    refused = plan(*job, "--plan-hours", 24, expect=2)
    assert "No number of nodes is done within 24 h" in refused
    assert "most of it to seal" in refused


def test_a_corpus_is_planned_at_rates_that_bench_measured(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": f"number = {each}\n"}) + "\n" for each in range(500)))
    scorer = ("--kind", "python", "--scorer")
    bench = ["bench", "scorers", str(corpus), *scorer, "pep8=pycodestyle", "--seconds", "0", "--json"]
    measured = CliRunner().invoke(app, bench)
    assert measured.exit_code == 0, measured.output
    rates = tmp_path / "rates.json"
    rates.write_text(measured.stdout)
    result = json.loads(measured.stdout)
    job = (corpus, *scorer, "pep8=pycodestyle", "--plan-rates", rates, "--plan-cores", 1)
    found = plan(*job, "--plan-price", 3)
    assert found["text_bytes"] == result["corpus"]["text_bytes"]
    by_name = {each["name"]: each for each in found["rates"]}
    hours = {each["name"]: each["hours"]["value"] for each in result["steps"]}
    for name in ("read", "split", "pep8"):
        assert by_name[name]["seconds"] * found["text_bytes"] == pytest.approx(hours[name] * 3600)
        assert by_name[name]["source"] == "rates.json"
    assert found["cost"]["kept"] == pytest.approx(3 * found["seconds"] / 3600)
    refused = plan(corpus, *scorer, "pep8=ruff", "--plan-rates", rates, expect=2)
    assert "measured pep8 with the scorer pycodestyle, and the job uses ruff" in refused
    assert not (tmp_path / "plan").exists()


def test_a_scorer_that_was_measured_on_a_gpu_needs_gpus(tmp_path: Path) -> None:
    rates = tmp_path / "rates.json"
    step = {"name": "toxicity", "kind": "detoxify", "device": "cuda", "hours": {"value": 2.0}}
    rates.write_text(json.dumps({"total_bytes": 1e9, "steps": [step]}))
    job = ("--plan-bytes", "100GB", "--scorer", "toxicity=detoxify", "--plan-rates", rates, "--plan-cores", 32)
    assert "say with --plan-gpus how many a node has" in plan(*job, expect=2)
    found = plan(*job, "--plan-gpus", 4, "--plan-nodes", 5)
    assert found["parts"]["gpus"] == pytest.approx(100 * 2 * 3600 / 20, rel=0.01)
    assert found["bottleneck"] == "scoring toxicity (detoxify), 100% of the GPU time"
    table = CliRunner().invoke(app, ["label", "--plan", *map(str, job), "--plan-gpus", "4"]).output
    assert "toxicity (detoxify) 0.14 MB/s of a GPU, rates.json" in " ".join(table.split())
    assert "The memory of detoxify is not included" in table


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--plan-bytes", "1TB", "--scorer", "toxicity=detoxify"], "No rate of toxicity (detoxify) is published"),
        (["--plan-bytes", "much", "--scorer", "pii"], "--plan-bytes 'much' is not a size"),
        (["--plan-bytes", "0", "--scorer", "pii"], "--plan-bytes '0' is not a size"),
        (["--plan-bytes", "1e30TB", "--scorer", "pii"], "is not a size"),
        (["--plan-bytes", "1TB", "--scorer", "pii", "--plan-rates", "missing"], "Cannot read --plan-rates missing"),
        (["--plan-bytes", "1TB", "--scorer", "pii", "--plan-rates", __file__], "is not the output of phf bench"),
        (["--plan-bytes", "1TB", "--scorer", "pii", "--plan-nodes", "1", "--plan-hours", "1"], "not both"),
        (["--plan-bytes", "1TB", "corpus.jsonl", "--scorer", "pii"], "not both"),
        (
            ["--plan-bytes", "1TB", "--scorer", "pii", "--plan-cores", "2", "--set", "execution.threads=4"],
            "A worker has 4 threads",
        ),
    ],
)
def test_what_cannot_be_planned_is_refused(arguments: list[str], message: str) -> None:
    assert message in plan(*arguments, expect=2)


def test_options_of_a_plan_need_it() -> None:
    result = CliRunner().invoke(app, ["label", "corpus", "--output", "out", "--scorer", "pii", "--plan-cores", "4"])
    assert result.exit_code == 2
    assert "--plan-cores: only with --plan" in result.output
