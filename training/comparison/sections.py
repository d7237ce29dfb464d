"""The sections of the page, in its order. A section is left out if its function returns None."""

from collections.abc import Callable

from training.comparison.about_section import about_section
from training.comparison.capability_section import capability_section
from training.comparison.compute_section import compute_section
from training.comparison.curves import training_section
from training.comparison.distributions import distribution_section
from training.comparison.estimates import estimate_section
from training.comparison.examples import example_section
from training.comparison.findings import finding_section
from training.comparison.guidance_section import guidance_section
from training.comparison.load import Comparison
from training.comparison.probe_section import probe_section
from training.comparison.red_team_section import red_team_section
from training.comparison.reference_section import reference_section
from training.comparison.reproduce import reproduction_section
from training.comparison.scenario_section import scenario_section
from training.comparison.section import Section
from training.comparison.short import short_section
from training.comparison.source_section import source_section
from training.comparison.tables import detail_section, result_section
from training.comparison.tamper_section import tamper_section
from training.comparison.trade_off import trade_off_section

SECTIONS: tuple[Callable[[Comparison], Section | None], ...] = (
    short_section,
    result_section,
    finding_section,
    trade_off_section,
    reference_section,
    scenario_section,
    capability_section,
    source_section,
    compute_section,
    guidance_section,
    probe_section,
    red_team_section,
    tamper_section,
    estimate_section,
    distribution_section,
    example_section,
    training_section,
    detail_section,
    about_section,
    reproduction_section,
)


def sections(comparison: Comparison) -> list[Section]:
    """The sections for which the runs have figures."""
    return [section for make in SECTIONS if (section := make(comparison)) is not None]
