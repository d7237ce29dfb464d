"""What `phf label --plan` does: check its options, find the size of the corpus, and print the plan."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from scorers.amounts import format_count, format_duration, format_size
from scorers.console import print_json
from scorers.errors import UserError

if TYPE_CHECKING:
    from pipeline.config import LabelConfig
    from pipeline.labelling.capacity import CapacityPlan
    from pipeline.labelling.rates import StepRate


def check_plan(described: Mapping[str, Any], inputs: object, *, plan: bool) -> None:
    """Refuse options of a plan without `--plan`, or that contradict each other.

    Args:
        described: the options `--plan-…` by the end of their names; None where not given.
        inputs: the inputs; None without any.
        plan: whether a plan is asked for.

    Raises:
        UserError: names the options.
    """
    given = [f"--plan-{name}" for name, value in described.items() if value is not None]
    if given and not plan:
        raise UserError(f"{' and '.join(given)}: only with --plan. Add it, or leave them out.")
    if described["nodes"] is not None and described["hours"] is not None:
        raise UserError("Give --plan-nodes or --plan-hours, not both: the other follows.")
    if described["bytes"] is not None and inputs:
        raise UserError("Give inputs or --plan-bytes, not both.")


def show_plan(config: "LabelConfig", described: Mapping[str, Any], *, as_json: bool) -> None:
    """Print the plan of a job, as a table or as JSON.

    Raises:
        UserError: the corpus or the rates cannot be read, a rate is not known, or the job cannot be done in time.
    """
    from pipeline.labelling.capacity import Fleet, Workload, plan_capacity
    from pipeline.labelling.rates import rates_of
    from scorers.doctor.machine import usable_cores
    from scorers.terminal import Terminal

    steps = rates_of(config, described["rates"])
    text_bytes = _text_bytes(config) if described["bytes"] is None else _size(described["bytes"])
    nodes, hours = described["nodes"], described["hours"]
    fleet = Fleet(
        cores=described["cores"] or max(1, int(usable_cores())),
        gpus=described["gpus"] or 0,
        nodes=nodes if hours is not None else nodes or 1,
        hours=hours,
        price=described["price"],
    )
    if fleet.cores < config.execution.threads:
        raise UserError(
            f"A worker has {config.execution.threads} threads (execution.threads), and a node {fleet.cores} cores "
            "(--plan-cores): give at least as many."
        )
    found = plan_capacity(Workload(text_bytes, int(config.unit_size), steps, config.execution.threads), fleet)
    if as_json:
        print_json(found.to_dict())
    else:
        _show(Terminal(), found)


def _text_bytes(config: "LabelConfig") -> float:
    from pipeline.corpus.sampling import sample_corpus
    from pipeline.labelling.monitoring.console import reporter_for
    from scorers.terminal import Terminal

    with reporter_for(Terminal(stderr=True)) as reporter:
        return sample_corpus(config, reporter.measure).text_bytes


def _size(given: str) -> float:
    from pydantic import ByteSize, TypeAdapter, ValidationError

    try:
        size = int(TypeAdapter(ByteSize).validate_python(given))
    except (ValidationError, OverflowError):
        size = 0
    if not 0 < size <= 10**18:
        raise UserError(f"--plan-bytes {given!r} is not a size from 1 byte to 1 EB; write 500GB or 10TB.")
    return float(size)


def _show(console: Any, found: "CapacityPlan") -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for name, value in _rows(found).items():
        table.add_row(Text(name), Text(value))
    console.print(table)
    console.print()
    for line in (*found.advice, *_notes(found)):
        console.print(Text(line), soft_wrap=True)


def _rows(found: "CapacityPlan") -> dict[str, str]:
    from pipeline.labelling.capacity import BYTES_PER_TOKEN

    work, fleet, parts = found.work, found.fleet, found.parts
    machine = format_count(fleet.cores, "core") + (f", {format_count(fleet.gpus, 'GPU')}" if fleet.gpus else "")
    together = {"cores": "scoring and splitting on cores", "gpus": "scoring on GPUs", "commit": "commits by the driver"}
    rows = {
        "text": f"{format_size(work.text_bytes)}, about {work.text_bytes / BYTES_PER_TOKEN:.3g} tokens; "
        f"{format_count(work.units, 'unit')} of {format_size(work.unit_size)}",
        "nodes": f"{found.nodes:,} of {machine}",
        "time": f"{format_duration(found.seconds)} in all",
        "  cut into units": f"{format_duration(parts['plan'])}, in one process",
        **{f"  {name}": format_duration(parts[part]) for part, name in together.items() if part in parts},
        "  seal": f"{format_duration(parts['seal'])}, in one process",
        "bottleneck": found.bottleneck,
        "rates": "; ".join(_rate(each) for each in work.steps if each.kind or each.name == "split"),
    }
    if found.cost is not None:
        released, kept = found.cost
        rows["cost"] = (
            f"{released:,.2f}, or {kept:,.2f} if all nodes are kept while one process cuts and seals"
            if kept > 1.005 * released
            else f"{kept:,.2f}"
        )
    sizes = {name: format_size(size) for name, size in found.storage.items()}
    rows["storage"] = (
        f"{sizes['peak']} at most: units {sizes['units']}, data {sizes['data']}, staging {sizes['staging']}"
    )
    rows["memory"] = (
        f"{format_size(found.node_memory)} for the workers of a node; {format_size(found.driver_memory)} for the driver"
    )
    return rows


def _rate(step: "StepRate") -> str:
    kind = f" ({step.kind})" if step.kind and step.kind != step.name else ""
    rate = f"{1e-6 / step.seconds:,.2g} MB/s of a {'GPU' if step.on_gpu else 'core'}" if step.seconds else "no time"
    return f"{step.name}{kind} {rate}, {step.source}"


def _notes(found: "CapacityPlan") -> list[str]:
    from pipeline.labelling.rates import SCORER_BYTES

    kinds = {each.kind for each in found.work.steps if each.kind}
    notes = []
    if any(each.source == "published" for each in found.work.steps if each.kind):
        notes.append(
            "Rates of scorers are published ones, of a shared Xeon (scorers/README.md). Measure your own with phf "
            "bench scorers --json, and give them with --plan-rates."
        )
    if unknown := sorted(kinds - SCORER_BYTES.keys() - {"column"}):
        notes.append(f"The memory of {', '.join(unknown)} is not included: phf doctor measures it.")
    notes.append("The start of Ray and its workers, from seconds to minutes, is not included.")
    notes.append(
        "What one process does was measured on a local disk. On an object store it is bound by the network; that was "
        "not measured."
    )
    return notes
