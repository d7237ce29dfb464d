"""Check the files that define a job: its configuration, layers and plan."""

from dataclasses import dataclass, field

from pipeline.checking.files import compare_bytes
from pipeline.checking.problems import Findings
from pipeline.job.plan_files import PLANS, PlanFile, plan_path
from pipeline.job.purged import Tombstones, tombstones_path
from pipeline.job.record import JOB, LAYERS, JobRecord, LayerRecord, StoredJob, layer_path, load_job
from pipeline.job.unit_store import UnitStore, layer_numbers
from pipeline.storage.base import Storage
from pipeline.storage.checked_json import Model, from_checked
from scorers.errors import UserError


@dataclass
class JobCheck:
    """The damage to a job.

    Attributes:
        job: the job; None if any of its files is damaged or lost.
        config: whether `job/config.json` is damaged or lost.
        layers: numbers of the layers from 2 on whose record is damaged or lost.
        purges: numbers of the purges whose tombstones are damaged or lost.
        plans: by number, the damaged parts of the plan; None if the file that names the other files is damaged.
        layer_count: the number of layers, inferred from the existing files.
    """

    job: StoredJob | None = None
    config: bool = False
    layers: list[int] = field(default_factory=list)
    purges: list[int] = field(default_factory=list)
    plans: dict[int, PlanFile | None] = field(default_factory=dict)
    layer_count: int = 1

    @property
    def damaged(self) -> bool:
        """Whether any file is damaged or lost."""
        return self.config or bool(self.layers or self.purges or self.plans)


def check_job(storage: Storage, findings: Findings) -> JobCheck:
    """Check the files below `job/` that define the job.

    Raises:
        OSError: the storage fails.
    """
    record = _read(storage, JOB, JobRecord, findings)
    check = JobCheck(config=record is None)
    for number in range(1, record.purges + 1 if record is not None else 0):
        if _read(storage, tombstones_path(number), Tombstones, findings) is None:
            check.purges.append(number)
    check.layer_count = max({1} | _committed_layers(storage) | _numbers(storage, LAYERS))
    for layer in range(2, check.layer_count + 1):
        if _read(storage, layer_path(layer), LayerRecord, findings) is None:
            check.layers.append(layer)
    for number in range(1, max({1} | _numbers(storage, PLANS)) + 1):
        _check_plan(storage, number, findings, check)
    if not check.damaged:
        try:
            check.job = load_job(storage)
        except UserError as error:
            findings.add(PLANS, str(error))
    return check


def _check_plan(storage: Storage, number: int, findings: Findings, check: JobCheck) -> None:
    plan = _read(storage, plan_path(number), PlanFile, findings)
    if plan is None:
        check.plans[number] = None
        return
    for file in (plan.sources, plan.units):
        problem = compare_bytes(storage, file, plan_path(number), lambda _: None)
        if problem is not None:
            findings.add(file.path, problem.what)
            check.plans[number] = plan


def _read(storage: Storage, path: str, model: type[Model], findings: Findings) -> Model | None:
    try:
        return from_checked(model, storage.read(path))
    except FileNotFoundError:
        findings.add(path, "is missing")
    except ValueError as error:
        findings.add(path, f"is damaged: {error}")
    return None


def _committed_layers(storage: Storage) -> set[int]:
    """The layers with at least one committed unit."""
    return {number for number in layer_numbers(storage) if _has_records(storage, UnitStore(storage, number).folder)}


def _has_records(storage: Storage, layer: str) -> bool:
    return any(
        name.endswith(".parquet") or any(each.endswith(".json") for each in storage.children(f"{layer}/{name}"))
        for name in storage.children(layer)
    )


def _numbers(storage: Storage, folder: str) -> set[int]:
    return {int(name[:4]) for name in storage.children(folder) if len(name) == 9 and name[:4].isdecimal()}
