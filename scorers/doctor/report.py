"""Examine the machine and the scorers, and build the report of `phf doctor`."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from scorers import registry
from scorers.contract import Execution
from scorers.doctor.children import LostChildError, run_job
from scorers.doctor.machine import Fact, machine_facts
from scorers.errors import UserError
from scorers.registry import ScorerSpec


def places(spec: ScorerSpec) -> list[str]:
    """Return the files and folders that a scorer with these resolved options reads its weights and models from.

    Options that hold an existing path count for any kind; names of models are resolved for our own kinds.
    """
    found = [value for value in spec.options.values() if isinstance(value, str) and _is_path(value)]
    with contextlib.suppress(UserError):  # the scorer itself reports what is missing
        found += _named(spec.kind, spec.options)
    return found


def _is_path(value: str) -> bool:
    return "/" in value and Path(value).exists()


def _named(kind: str, options: dict[str, Any]) -> list[str]:
    if kind == "detoxify":
        from scorers.classifiers import detoxify_model

        file = detoxify_model.VARIANTS.get(options["model"])
        return [str(detoxify_model.hub_folder() / file)] if file else []
    if kind == "linear":
        from scorers.linear import find_files

        return [str(find_files())]
    if kind == "scrubadub":
        from scorers.pii.entities import find_model

        if "/" in (name := find_model(options["spacy_model"])):
            return [name]
        module = find_spec(name)
        return [str(Path(module.origin).parent)] if module and module.origin else []
    return []


# Enough to hash and load weights of half a gigabyte from a network drive, or after a download.
_PATIENCE_S = 600.0


@dataclass(frozen=True)
class Examined:
    """A scorer on this machine.

    Attributes:
        column, kind, options: its specification, with the defaults filled in.
        problem: why it cannot run here and what to do; None if it runs.
        places: where its weights are.
        found: the result of `trial.try_scorer`.
    """

    column: str
    kind: str
    options: dict[str, Any]
    problem: str | None
    places: list[str] = field(default_factory=list)
    found: dict[str, Any] = field(default_factory=dict)

    @property
    def sentences_per_s(self) -> float | None:
        """Sentences per second; None if nothing was measured."""
        return self._rate("sentences")

    @property
    def bytes_per_s(self) -> float | None:
        """Bytes of UTF-8 per second; None if nothing was measured."""
        return self._rate("bytes")

    def _rate(self, what: str) -> float | None:
        measured = self.found.get("measured", {})
        return measured[what] / measured["seconds"] if measured.get("seconds") else None


@dataclass(frozen=True)
class Report:
    """Everything that `phf doctor` prints."""

    machine: list[Fact]
    scorers: list[Examined]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {
            "machine": {each.name: each.data for each in self.machine},
            "scorers": [
                asdict(each) | {"sentences_per_s": each.sentences_per_s, "bytes_per_s": each.bytes_per_s}
                for each in self.scorers
            ],
            "remedies": self.remedies(),
        }

    def remedies(self) -> dict[str, str]:
        """Return what to do about each problem, by fact or column."""
        machine = {each.name: each.remedy for each in self.machine if each.remedy is not None}
        return machine | {each.column: each.problem for each in self.scorers if each.problem is not None}


def all_scorers() -> dict[str, ScorerSpec]:
    """Return every kind with its default options, keyed by its usual column."""
    columns = {kind: column for column, kind in registry.DEFAULT_KINDS.items()}
    return {columns.get(kind, kind.replace("-", "_")): ScorerSpec(kind=kind) for kind in registry.kinds()}


def examine(
    specs: Mapping[str, ScorerSpec], execution: Execution, seconds: float, show_progress: Callable[[str], None]
) -> Report:
    """Examine this machine and try each scorer in turn, each in a process of its own.

    Args:
        specs: scorers by column.
        execution: how they run; only scorers that run on a GPU use its device.
        seconds: time to measure each scorer for.
        show_progress: called with the name of what is examined next.
    """
    show_progress("the machine")
    try:
        torch = run_job({"what": "torch"}, patience_s=_PATIENCE_S)
    except LostChildError as error:
        torch = {"problem": str(error)}
    return Report(machine_facts(torch), list(_examine_scorers(specs, execution, seconds, show_progress)))


def _examine_scorers(
    specs: Mapping[str, ScorerSpec], execution: Execution, seconds: float, show_progress: Callable[[str], None]
) -> Iterator[Examined]:
    for column, given in specs.items():
        show_progress(column)
        try:
            spec = registry.resolve(column, given)
            registry.check(column, spec)
        except UserError as error:
            yield Examined(column, given.kind, given.options, str(error))
            continue
        job = {
            "what": "scorer",
            "column": column,
            "spec": spec.model_dump(mode="json"),
            "execution": execution.model_dump(mode="json"),
            "seconds": seconds,
        }
        try:
            found = run_job(job, patience_s=_PATIENCE_S + seconds)
        except LostChildError as error:
            found = {"problem": str(error)}
        yield Examined(column, spec.kind, spec.options, found.pop("problem"), places(spec), found)
