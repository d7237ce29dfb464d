"""`phf config train`, `match`, `evaluate`, `credit` and `sweep`: show the settings of these commands."""

from typing import Annotated

import typer

from scorers.settings_page import AsYaml, print_settings

AsJson = Annotated[bool, typer.Option("--json", help="Print the settings as JSON.")]


def train(as_yaml: AsYaml = False, as_json: AsJson = False) -> None:
    """Show every setting of `phf train` with its default and meaning, for --config and --set.

    Presets of a task and an objective override the defaults.

    Example: phf config train --yaml > train.yaml
    """
    from training.config import TrainConfig

    print_settings(TrainConfig, as_yaml=as_yaml, as_json=as_json)


def match(as_yaml: AsYaml = False, as_json: AsJson = False) -> None:
    """Show every setting of `phf match` with its default and meaning, for --config and --set.

    Example: phf config match --yaml > match.yaml
    """
    from training.matching.config import MatchConfig

    print_settings(MatchConfig, as_yaml=as_yaml, as_json=as_json)


def evaluate(as_yaml: AsYaml = False, as_json: AsJson = False) -> None:
    """Show every setting of `phf evaluate` with its default and meaning, for --set.

    The section `evaluation` of a run's configuration overrides the defaults; `phf train --config` takes that section.
    """
    from training.measuring_config import EvaluationConfig

    print_settings(EvaluationConfig, as_yaml=as_yaml, as_json=as_json)


def credit(as_yaml: AsYaml = False, as_json: AsJson = False) -> None:
    """Show every setting of `phf credit` with its default and meaning, for --set."""
    from training.credit.settings import CreditConfig

    print_settings(CreditConfig, as_yaml=as_yaml, as_json=as_json)


def sweep(as_yaml: AsYaml = False, as_json: AsJson = False) -> None:
    """Show every key of the file of `phf sweep` with its default and meaning.

    Example: phf config sweep --yaml > sweep.yaml
    """
    from training.sweep.config import SweepConfig

    print_settings(SweepConfig, as_yaml=as_yaml, as_json=as_json)
