"""The folder of a training run: its paths, and how its configuration, facts and metrics are read and written."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from scorers.errors import UserError
from scorers.settings import describe_first_error
from scorers.stored import read_stored
from training.config import ResolvedConfig
from training.disk import check_writable, refuse_links, write_atomically
from training.runs.facts import RunFacts
from training.runs.metrics_lines import read_metrics

# Prefix of files by which ranks check that they share a folder, before it holds a run.
SHARED_MARK = ".shared-"
# Links that W&B creates: to its newest run, and in each run to the log of its service process.
_OF_WANDB = re.compile(r"wandb/[^/]+(/logs/debug-core\.log)?")
# Nesting of a configuration: far beyond what phf writes.
_DEEPEST = 32


@dataclass(frozen=True)
class RunFolder:
    """Paths in the output folder of a run; use `RunFolder.existing` for a folder that must hold a run."""

    path: Path

    @classmethod
    def existing(cls, path: str | Path) -> "RunFolder":
        """The folder of a run that `phf train` started.

        Raises:
            UserError: there is no such folder, it holds no run, or there is a link in it.
        """
        folder = cls(Path(path))
        if not folder.path.is_dir():
            raise UserError(f"There is no folder {path}. Give the --output of a `phf train` run.")
        if not folder.facts.is_file():
            raise UserError(
                f"{path} is not a training run: it has no {folder.facts.name}. Give the --output of `phf train`."
            )
        folder.refuse_links()
        return folder

    @property
    def config(self) -> Path:
        """The resolved configuration, YAML."""
        return self.path / "config.yaml"

    @property
    def facts(self) -> Path:
        """`RunFacts`, JSON."""
        return self.path / "run.json"

    @property
    def lock(self) -> Path:
        """The lock of the launch that trains; see `training.runs.lock`."""
        return self.path / ".lock"

    @property
    def metrics(self) -> Path:
        """One JSON object per line: a logged step, or a measurement after it (`validation`, `evaluation`)."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard event files."""
        return self.path / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        """Committed checkpoints, one folder each; see `training.runs.checkpoints`."""
        return self.path / "checkpoints"

    @property
    def set_aside(self) -> Path:
        """What the run had beyond steps that it went back to, one run folder each time (`training.runs.set_aside`)."""
        return self.path / "set-aside"

    @property
    def exports(self) -> Path:
        """Models of checkpoints that `phf export-model` wrote, in folders `step-N`."""
        return self.path / "exports"

    @property
    def model(self) -> Path:
        """The final model, a Hugging Face folder, with the value head, if any, in `value_head/`."""
        return self.path / "model"

    @property
    def evaluation(self) -> Path:
        """Evaluations that `phf evaluate` wrote."""
        return self.path / "evaluation"

    def read_config(self) -> ResolvedConfig:
        """The resolved configuration.

        Raises:
            UserError: the file is missing or damaged, or was written by another version of phf.
        """
        try:
            text = read_stored(self.config).decode()
            _refuse_bombs(self.config, text)
            return ResolvedConfig.model_validate(yaml.safe_load(text))
        except OSError as error:
            raise UserError(f"Cannot read {self.config}: {error.strerror or error}.") from None
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise UserError(_damaged(self.config, error)) from None

    def write_config(self, config: ResolvedConfig) -> None:
        """Replace `config.yaml` in one step."""
        write_atomically(self.config, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))

    def read_facts(self) -> RunFacts:
        """The facts of the run.

        Raises:
            UserError: the file is missing or damaged, or was written by another version of phf.
        """
        try:
            return RunFacts.model_validate_json(read_stored(self.facts))
        except OSError as error:
            raise UserError(f"Cannot read {self.facts}: {error.strerror or error}.") from None
        except ValidationError as error:
            raise UserError(_damaged(self.facts, error)) from None

    def write_facts(self, facts: RunFacts) -> None:
        """Replace `run.json` in one step."""
        write_atomically(self.facts, facts.model_dump_json(indent=2) + "\n")

    def refuse_links(self) -> None:
        """Refuse a folder with a link in it, except those of W&B.

        Raises:
            UserError: names the link.
        """
        refuse_links(self.path, allowed=_OF_WANDB)

    def check_new(self) -> None:
        """Refuse a folder with a link in it, or a new one that cannot be written.

        Raises:
            UserError: says why.
        """
        self.refuse_links()
        if not self.facts.is_file():
            check_writable(self.path, "Give another --output, or make it writable.")

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl` in the order of their steps; an unfinished last line is left out.

        Raises:
            UserError: another line is damaged; gives its number.
        """
        return list(read_metrics(self.metrics)) if self.metrics.is_file() else []


def _refuse_bombs(path: Path, text: str) -> None:
    """Refuse YAML of somebody else that takes hours to read or expands to billions of values.

    Deeply nested brackets take PyYAML cubic time, and nested aliases expand exponentially. phf writes neither.

    Raises:
        UserError: it has aliases, or is nested too deeply.
    """
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise UserError(f"{path} is damaged: it has YAML aliases, which phf does not write.")
        if isinstance(event, yaml.CollectionStartEvent | yaml.CollectionEndEvent):
            depth += 1 if isinstance(event, yaml.CollectionStartEvent) else -1
        if depth > _DEEPEST:
            raise UserError(f"{path} is damaged: it is nested more than {_DEEPEST} deep, which phf does not write.")


def _damaged(path: Path, error: Exception) -> str:
    if isinstance(error, ValidationError):
        return f"{path} is damaged, or of another version of phf, at {describe_first_error(error)}."
    return f"{path} is damaged: {type(error).__name__}."
