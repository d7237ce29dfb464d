"""`phf config label` and `phf config score`: show the settings of labelling jobs."""

from pipeline.options import AsJson
from scorers.settings_page import AsYaml, print_settings


def label(as_yaml: AsYaml = False, as_json: AsJson = False) -> None:
    """Show every setting of `phf label` with its default and meaning, for --config and --set.

    Example: phf config label --yaml > label.yaml
    """
    from pipeline.config import LabelConfig

    print_settings(LabelConfig, as_yaml=as_yaml, as_json=as_json)


def score(as_yaml: AsYaml = False, as_json: AsJson = False) -> None:
    """Show every setting of `phf score` with its default and meaning, for --config and --set."""
    from pipeline.config import ScoreConfig

    print_settings(ScoreConfig, as_yaml=as_yaml, as_json=as_json)
