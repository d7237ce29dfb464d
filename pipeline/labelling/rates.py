"""The rates that a capacity plan is computed from: measured by `phf bench scorers` on the user's corpus, or published.

Published rates are those of the tables in `scorers/README.md` and `tests/benchmarks/README.md`, measured on two cores
of a Xeon that other work shared. They say what to expect of another machine only roughly: measure your own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, FiniteFloat, ValidationError

from pipeline.config import LabelConfig
from scorers.errors import UserError
from scorers.printing import printable
from scorers.registry import ScorerSpec
from scorers.shell import phf
from scorers.stored import read_stored

MB = 1e6

# What one process does, in CPU time on 20 and 100 MB of prose (web mix, `linear` one to three times, local disk): bytes
# per second of reading the inputs, and seconds of sealing for a byte, without columns and for each of them.
PLAN_BYTES_PER_S = 348 * MB
SEAL_SECONDS, SEAL_COLUMN_SECONDS = 0.026 / MB, 0.011 / MB
# Units per second of one driver on a local disk, the slowest of six runs (tests/benchmarks/README.md, Scheduling).
COMMITS_PER_S = 266.0
# Bytes on disk for a byte of text, without columns and for each of them, from the same runs.
UNITS_SHARE, UNITS_COLUMN_SHARE = 0.517, 0.029
DATA_SHARE, DATA_COLUMN_SHARE = 0.505, 0.007
# Peaks of resident memory (tests/benchmarks/README.md, Memory): of a worker without scorers, of the driver, and bytes
# of the plan for a unit.
ACTOR_BYTES, DRIVER_BYTES, UNIT_BYTES = 210 * MB, 365 * MB, 40.0
SCORER_BYTES: Mapping[str, float] = {"scrubadub": 300 * MB, "linear": 37 * MB}

# MB/s of a core (scorers/README.md; read and write: tests/benchmarks/README.md).
_READ, _WRITE = 54.0, 43.0
_SPLIT = {"prose": 3.0, "python": 82.0}
_SCORERS = {
    "linear": 6.2,
    "scrubadub": 0.050,
    "pycodestyle": 0.88,
    "pylint": 0.059,
    "ruff": 8.0,
    "column": 54.0,  # it reads the scores with the record
}
_ENTITIES = {"no-parser": 0.088, "none": 1.3}


@dataclass(frozen=True)
class StepRate:
    """How long a step takes.

    Attributes:
        name: the column, or `read`, `split` or `write`.
        kind: kind of the scorer; empty for the others.
        device: where it was measured.
        seconds: of a core, or of a GPU, for a byte of the corpus's text.
        source: where the figure is from.
    """

    name: str
    kind: str
    device: str
    seconds: float
    source: str

    @property
    def on_gpu(self) -> bool:
        """Whether `seconds` are those of a GPU."""
        return self.device != "cpu"


class _Hours(BaseModel):
    value: Annotated[FiniteFloat, Field(ge=0)]


class _Step(BaseModel):
    name: str
    kind: str | None = None
    device: str
    hours: _Hours


class _Bench(BaseModel):
    """The part of the output of `phf bench scorers --json` that a plan needs."""

    total_bytes: Annotated[FiniteFloat, Field(gt=0)]
    steps: list[_Step]


def rates_of(config: LabelConfig, measured: Path | None) -> list[StepRate]:
    """The steps of a job with their rates: those in a file of `phf bench scorers --json`, or else published ones.

    Raises:
        UserError: the file is not one of these, or nothing is known of a scorer.
    """
    bench = {} if measured is None else _read(measured)
    splits: Literal["prose", "python"] = "python" if config.kind == "python" else "prose"
    steps = [_step("read", _READ, bench), _step("split", _SPLIT[splits], bench)]
    for column, spec in config.scorers.items():
        found = bench.get(column)
        if found is not None and found.kind != spec.kind:
            raise UserError(
                f"{printable(str(measured))} measured {column} with the scorer {printable(found.kind)}, and the job "
                f"uses {spec.kind}: measure again."
            )
        steps.append(found or _published(column, spec, config, measured))
        if column in config.execution.pools:
            # Workers of their own read and split once more.
            again = steps[0].seconds + steps[1].seconds
            steps.append(StepRate(f"read and split for {column}", "", "cpu", again, steps[1].source))
    return [*steps, _step("write", _WRITE, {})]


def _step(name: str, rate: float, bench: Mapping[str, StepRate]) -> StepRate:
    return bench.get(name) or StepRate(name, "", "cpu", 1 / (rate * MB), "published")


def _published(column: str, spec: ScorerSpec, config: LabelConfig, measured: Path | None) -> StepRate:
    rate = _SCORERS.get(spec.kind)
    if spec.kind == "scrubadub":
        rate = _ENTITIES.get(str(spec.options.get("entities")), rate)
    device = config.execution.of(column).device
    if rate is None or device != "cpu":
        where = "" if rate is None else f" on {device}"
        lacking = "has no rate of it" if measured is not None else "is not given"
        bench = phf("bench", "scorers", "SAMPLE", "--scorer", f"{column}={spec.kind}", "--json")
        raise UserError(
            f"No rate of {column} ({spec.kind}){where} is published, and --plan-rates {lacking}. Measure it on a "
            f"sample of the corpus: {bench} > rates.json, then add --plan-rates rates.json."
        )
    return StepRate(column, spec.kind, "cpu", 1 / (rate * MB), "published")


def _read(path: Path) -> dict[str, StepRate]:
    try:
        bench = _Bench.model_validate_json(read_stored(path))
    except OSError as error:
        raise UserError(f"Cannot read --plan-rates {printable(str(path))}: {error.strerror or error}.") from None
    except (ValidationError, ValueError):
        raise UserError(
            f"--plan-rates {printable(str(path))} is not the output of phf bench scorers --json. Write one: phf bench "
            "scorers CORPUS --scorer NAME --json > rates.json"
        ) from None
    return {
        each.name: StepRate(
            each.name, each.kind or "", each.device, each.hours.value * 3600 / bench.total_bytes, printable(path.name)
        )
        for each in bench.steps
    }
