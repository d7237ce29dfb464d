"""A sealed dataset of two layers and two groups, for tests to damage; labelled in this process by logging scorers."""

import io
import json
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.checking import unit_checker
from pipeline.config import LabelConfig, LabelExecution
from pipeline.job import unit_folders, unit_store
from pipeline.job.epoch import Epoch
from pipeline.job.record import LayerRecord, layer_path, load_job
from pipeline.labelling import commit
from pipeline.labelling.label import run_label
from pipeline.labelling.monitoring.console import PlainReporter
from pipeline.labelling.resolve import resolve_layer, scorer_entries
from pipeline.labelling.run import Run, RunContext
from pipeline.storage.base import Storage
from pipeline.storage.checked_json import to_checked
from pipeline.storage.open import open_storage
from pipeline.upkeep import purge_units, relabelling, repair_units
from scorers import registry
from scorers.registry import ScorerSpec
from tests.pipeline import probe, without_ray
from tests.pipeline.committed import bytes_below

FOLDER_UNITS = 2
UNITS = 5
EXECUTION = LabelExecution.model_validate({"pools": {"gpu": "cuda"}})
TEXTS = [f"Sentence one of {number}. And a second one, {number * number}. " * 3 for number in range(15)]
LINES = [json.dumps({"id": f"r{index}", "text": text}) for index, text in enumerate(TEXTS)]
UNIT_SIZE = sum(len(line) + 1 for line in LINES) // UNITS + 20


@dataclass(frozen=True)
class Made:
    """The folder with `corpus/` and the dataset `out/`; it is the working directory."""

    folder: Path

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def storage(self) -> Storage:
        return open_storage(str(self.out))

    def data(self) -> dict[str, bytes]:
        return bytes_below(self.out, "data")

    def scored(self) -> Counter[str]:
        log = self.folder / "scored.log"
        return Counter(log.read_text().split()) if log.exists() else Counter()

    def copy(self, folder: Path, patch: pytest.MonkeyPatch) -> "Made":
        """Copy the folder, with an empty log, and make it the working directory."""
        made = Made(Path(shutil.copytree(self.folder, folder)))
        (folder / "scored.log").unlink(missing_ok=True)
        made.enter(patch)
        return made

    def enter(self, patch: pytest.MonkeyPatch) -> None:
        patch.chdir(self.folder)
        patch.setenv(probe.LOG, str(self.folder / "scored.log"))


def set_up(patch: pytest.MonkeyPatch, packages: Path) -> None:
    """Set up labelling without Ray, small folders, and the probe as an installed package."""
    without_ray.install(patch)
    probe.install(packages)
    patch.syspath_prepend(str(packages))
    registry._plugins.cache_clear()
    for module in (unit_store, unit_folders, commit, unit_checker, relabelling, repair_units, purge_units):
        patch.setattr(module, "FOLDER_UNITS", FOLDER_UNITS)


def config(made: Made, *, quarantine_text: bool = False) -> LabelConfig:
    """The settings of the job."""
    return LabelConfig.model_validate(
        {
            "inputs": ["corpus"],
            "output": str(made.out),
            "scorers": {"probe": {"kind": "probe"}, "gpu": {"kind": "gpu_probe"}},
            "unit_size": UNIT_SIZE,
            "shard_size": 1500,
            "quarantine_text": quarantine_text,
            "execution": EXECUTION,
        }
    )


def write_corpus(made: Made) -> None:
    """Write three files; the second ends with a line that is no record."""
    corpus = made.folder / "corpus"
    corpus.mkdir()
    for number, (start, stop) in enumerate([(0, 3), (3, 9), (9, 15)]):
        (corpus / f"{number}.jsonl").write_text("\n".join(LINES[start:stop]) + "\nno json\n" * (number == 1))


def label(made: Made, layers: int = 2, *, quarantine_text: bool = False) -> None:
    """Label the corpus with a column on the CPU and one on a pretended GPU; layer 2 adds a third."""
    reporter = PlainReporter(io.StringIO())
    write_corpus(made)
    run_label(config(made, quarantine_text=quarantine_text), reporter)
    if layers == 2:
        storage = made.storage
        late = scorer_entries({"late": registry.resolve("late", ScorerSpec(kind="probe", version=2))}, LabelExecution())
        storage.put(layer_path(2), to_checked(LayerRecord(scorers=late, thresholds={"late": "p25"}), indent=2))
        job = load_job(storage)
        run = Run(job, Epoch.claim(storage), RunContext(reporter))
        run.finish([1, 2], label=[resolve_layer(job, 2, EXECUTION)])
