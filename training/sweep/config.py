"""The specification of a sweep, and its expansion into runs."""

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from scorers.errors import UserError
from scorers.settings import parse_override, read_number
from training.config import ObjectiveName, ResolvedConfig
from training.measuring_config import EvaluationConfig
from training.runs.folder import RunFolder
from training.setting_types import Count, Seed
from training.settings import resolve_config, takes_dotted_keys

# Settings that the sweep itself gives its runs, each with what decides it.
_OWN = {"output": "out", "data.dataset": "dataset", "objective.name": "objectives", "training.seed": "seeds"}
# Bytes of the name of a folder; file systems allow 255.
_LONGEST_NAME = 200
_UNUSUAL = re.compile(r"[^A-Za-z0-9._+=,-]+")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and the value of each leaf of nested settings.

    An empty mapping is a leaf, and so is one whose keys `--set` cannot name.
    """
    for key, value in values.items():
        if isinstance(value, Mapping) and value and takes_dotted_keys(value):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _nested(settings: Any) -> Any:
    if isinstance(settings, Mapping):
        for key in settings:
            if "." in str(key):
                section, _, rest = str(key).partition(".")
                raise ValueError(f"write {key!r} nested, as in a file for --config: {section}: {{{rest}: ...}}")
    return settings


def _own_refused(settings: dict[str, Any]) -> dict[str, Any]:
    for key, _ in flatten(settings):
        if key in _OWN:
            raise ValueError(f"{key} is not a setting here: {_OWN[key]} of the sweep decides it")
    return settings


def _lists(grid: Any) -> Any:
    if not isinstance(grid, Mapping):
        return grid
    found = dict(flatten({str(key): value for key, value in grid.items()}))
    for key, values in found.items():
        if not isinstance(values, list | tuple) or not values:
            raise ValueError(f"{key} needs a list of values, such as [1e-3, 2e-3]")
    return found


def _some(values: Any) -> Any:
    # Of pydantic's own minimum each wrong item is reported as a missing one too.
    if isinstance(values, list | tuple) and not values:
        raise ValueError("needs at least one")
    return values


Settings = Annotated[dict[str, Any], BeforeValidator(_nested), AfterValidator(_own_refused)]
Grid = Annotated[dict[str, tuple[Any, ...]], BeforeValidator(_lists), AfterValidator(_own_refused)]


class SweepObjective(_Section):
    """An objective of a sweep."""

    name: ObjectiveName
    """The objective's name."""
    settings: Settings = Field(default_factory=dict)
    """Settings of `phf train` for its runs alone."""

    @model_validator(mode="before")
    @classmethod
    def _from_file(cls, given: Any) -> Any:
        if isinstance(given, str):
            return {"name": given}
        if isinstance(given, Mapping) and not {*given} <= {"name", "settings"}:
            if len(given) != 1:
                raise ValueError("give a name, or one name with its own settings")
            name, settings = next(iter(given.items()))
            return {"name": name, "settings": {} if settings is None else settings}
        return given


class SweepConfig(_Section):
    """A sweep: a run for each objective, each combination of the grid's values, and each seed."""

    dataset: str
    """Folder or URI of a sealed labelled dataset."""
    out: str
    """Folder of the runs, of their logs, and of the page that compares them."""
    objectives: Annotated[tuple[SweepObjective, ...], BeforeValidator(_some)]
    """Names of objectives; or a name with settings of its own, as in `conditional: {objective: {drop_tags: 0.1}}`."""
    seeds: Annotated[tuple[Seed, ...], BeforeValidator(_some)] = (42,)
    """Values of `training.seed`: initialisation, order of the blocks, dropped tags."""
    settings: Settings = Field(default_factory=dict)
    """Settings of `phf train` for all runs, as in a file for its --config: `task`, `model`, `training`, ..."""
    grid: Grid = Field(default_factory=dict)
    """Dotted settings with a list of values each, such as `training.learning_rate: [1e-3, 2e-3]`: all combinations are
    trained. They override `settings` and those of an objective.
    """
    at_once: Count | None = Field(default=None, ge=1)
    """Runs at once; they share the cores, and each has a GPU if there are any. None is one per GPU; on a CPU one per
    core, as far as memory suffices.
    """
    evaluate: EvaluationConfig = Field(default_factory=EvaluationConfig)
    """Settings of the evaluations that differ from the runs' own. `guidance` is used for the objective conditional."""
    reference: ObjectiveName | None = None
    """The objective whose runs the others are compared with, each with the one of its seed and values: KL, and how
    likely samples are under it (`phf evaluate --reference`). Usually mle; null for none.
    """
    guidance_sweep: tuple[Annotated[float, Field(ge=0, le=1e6)], ...] = ()
    """Guidance scales at which runs of the objective conditional are sampled besides, such as [1, 1.5, 2, 3]: `phf
    evaluate --guidance-sweep`. Empty for none.
    """
    compare: bool = True
    """Write the page that compares the runs."""

    @model_validator(mode="after")
    def _check_reference(self) -> Self:
        number = [each.name for each in self.objectives].count(self.reference) if self.reference else 1
        if number != 1:
            where = "not among the objectives" if number == 0 else f"{number} of the objectives"
            raise ValueError(f"reference: {self.reference} is {where}, and must be one of them")
        return self

    @property
    def folder(self) -> Path:
        """The folder of the runs."""
        return Path(self.out)


@dataclass(frozen=True)
class SweepRun:
    """A run of a sweep.

    Attributes:
        name: of its folder.
        seed: `training.seed`.
        values: its values of the grid, by dotted key.
        config: its settings, except what the dataset decides.
        evaluation: settings of its evaluation.
        train: words of the command that trains it, after `phf`.
        evaluate: words of the command that evaluates it.
        sweep_guidance: words of the command that samples it at several guidance scales; empty for none.
        reference: the run that it is compared with; None for none.
        compare_with: words of the command that compares it with this run; empty for none.
    """

    name: str
    seed: int
    values: Mapping[str, Any]
    config: ResolvedConfig
    evaluation: EvaluationConfig
    train: tuple[str, ...]
    evaluate: tuple[str, ...]
    sweep_guidance: tuple[str, ...] = ()
    reference: RunFolder | None = None
    compare_with: tuple[str, ...] = ()

    @property
    def commands(self) -> list[tuple[str, ...]]:
        """The words of its commands, in their order."""
        return [each for each in (self.train, self.evaluate, self.sweep_guidance, self.compare_with) if each]

    @property
    def folder(self) -> RunFolder:
        """The folder of the run."""
        return RunFolder(Path(self.config.output))

    @property
    def without_seed(self) -> str:
        """Its settings except folder and seed, as JSON: what the data and the memory of a run depend on."""
        training = self.config.training.model_copy(update={"seed": 0})
        return self.config.model_copy(update={"output": "", "training": training}).model_dump_json()


def expand(sweep: SweepConfig) -> list[SweepRun]:
    """Return the runs of a sweep: objectives in their order, then the grid's values, then seeds.

    Raises:
        UserError: settings are wrong, with the runs that have them; or two runs have the same name.
    """
    runs: list[SweepRun] = []
    problems = Problems()
    for objective in sweep.objectives:
        for combination in itertools.product(*sweep.grid.values()):
            for seed in sweep.seeds:
                values = dict(zip(sweep.grid, combination, strict=True))
                name = _name(sweep, objective, values, seed)
                with problems.of(name):
                    runs.append(_run(sweep, objective, values, seed, name))
    problems.refuse()
    twice = [name for name, count in Counter(each.name for each in runs).items() if count > 1]
    if twice:
        raise UserError(
            f"Two runs of the sweep would have the folder {twice[0]}: their objective, values and seed are the same. "
            "Leave one out."
        )
    return runs


class Problems:
    """Collects the errors of runs, to refuse them together."""

    def __init__(self) -> None:
        self._names: dict[str, list[str]] = {}

    def of(self, name: str) -> "_Collecting":
        """Collect a `UserError` that the block raises for the run `name`."""
        return _Collecting(self._names, name)

    def refuse(self) -> None:
        """Raise a `UserError` that lists the errors collected so far, each once with the runs that have it."""
        if self._names:
            lines = []
            for message, names in self._names.items():
                more = f" and {len(names) - 1} more" if len(names) > 1 else ""
                lines.append(f"{names[0]}{more}: {message}")
            raise UserError("\n".join(lines))


class _Collecting:
    def __init__(self, names: dict[str, list[str]], name: str) -> None:
        self._names, self._name = names, name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        # A subclass is a stop, or a problem of the machine rather than of a run.
        if type(error) is not UserError:
            return False
        self._names.setdefault(str(error), []).append(self._name)
        return True


def _run(sweep: SweepConfig, objective: SweepObjective, values: Mapping[str, Any], seed: int, name: str) -> SweepRun:
    output = str(sweep.folder / name)
    settings = dict(flatten(sweep.settings)) | dict(flatten(objective.settings)) | dict(values)
    overrides = _set(settings)
    config = resolve_config(
        None,
        {
            "output": output,
            "data": {"dataset": sweep.dataset},
            "objective": {"name": objective.name},
            "training": {"seed": seed},
        },
        overrides[1::2],
    )
    changes = {key: getattr(sweep.evaluate, key) for key in sorted(sweep.evaluate.model_fields_set)}
    if not config.objective.conditions:
        changes.pop("guidance", None)
    train = ["train", sweep.dataset, "--output", output, "--objective", objective.name, "--seed", str(seed)]
    train += overrides
    evaluate = ["evaluate", output, *_set(changes)]
    sampling = _set({key: value for key, value in changes.items() if key != "guidance"})
    reference, beside = None, []
    if sweep.reference not in (None, objective.name):
        other = next(each for each in sweep.objectives if each.name == sweep.reference)
        reference = RunFolder(sweep.folder / _name(sweep, other, values, seed))
        beside = ["--reference", str(reference.path)]
    scales = ",".join(f"{scale:g}" for scale in sweep.guidance_sweep) if config.objective.conditions else ""
    return SweepRun(
        name,
        seed,
        values,
        config,
        config.evaluation.model_copy(update=changes),
        tuple(train),
        tuple(evaluate),
        ("evaluate", output, "--guidance-sweep", scales, *beside, *sampling) if scales else (),
        reference,
        ("evaluate", output, *beside, *sampling) if beside else (),
    )


def _set(settings: Mapping[str, Any]) -> list[str]:
    return [word for key, value in settings.items() for word in ("--set", _override(key, value))]


def _override(key: str, value: Any) -> str:
    """Return the `--set` argument that gives a setting this value."""
    if isinstance(value, str):
        with suppress(UserError):
            read: Any = parse_override(f"{key}={value}")
            for part in key.split("."):
                read = read[part]
            if read in (value, read_number(value)):
                return f"{key}={value}"
    return f"{key}={json.dumps(value)}"


def _name(sweep: SweepConfig, objective: SweepObjective, values: Mapping[str, Any], seed: int) -> str:
    parts = dict(values)
    if [each.name for each in sweep.objectives].count(objective.name) > 1:
        parts = dict(flatten(objective.settings)) | parts
    last = Counter(key.rpartition(".")[2] for key in parts)
    shown = [
        f"{short if last[short] == 1 else key}={value if isinstance(value, str) else json.dumps(value)}"
        for key, value in parts.items()
        for short in [key.rpartition(".")[2]]
    ]
    name = "-".join([objective.name, *(_UNUSUAL.sub("_", each) for each in shown), f"s{seed}"])
    if len(name) > _LONGEST_NAME:
        raise UserError(
            f"The name of a run's folder would have {len(name)} characters, too long for a file system: {name[:60]}... "
            "Give the grid fewer settings or shorter values."
        )
    return name


def words_of(runs: Sequence[SweepRun], output: Path) -> tuple[str, ...]:
    """Return the words of the command that compares runs, after `phf`."""
    return ("compare", *(each.config.output for each in runs), "--output", str(output))
